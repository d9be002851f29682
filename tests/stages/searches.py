"""Two searches beside each other: all that they have learned and told of, but for what a clock or memory meter says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnascl_cli.artifacts.documents import SearchDocument

METERS = {"seconds", "images_per_second", "peak_memory_bytes"}


def assert_same_search(one: SearchDocument, other: SearchDocument, same: Callable[[Any, Any], None]) -> None:
    """Hold two searches to each other by ``same``, which is given numbers of both and fails where they differ."""
    for logits, others in zip(one.width_logits, other.width_logits, strict=True):
        same(logits, others)
    same(one.tutor_logits, other.tutor_logits)
    for before, after in zip(one.history, other.history, strict=True):
        names = sorted(set(before) - METERS)
        same([before[name] for name in names], [after[name] for name in names])
