"""Stands for a progress bar, and notes how far it went."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def watched(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[tuple[str, int, int]]:
    """Return what the long progress of a module will show: its label, its total, and the steps that it was moved on."""
    shown: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def watch(label: str, total: int) -> Iterator[Callable[[], None]]:
        steps: list[int] = []
        yield lambda: steps.append(1)
        shown.append((label, total, sum(steps)))

    monkeypatch.setattr(module, "long_progress", watch)
    return shown
