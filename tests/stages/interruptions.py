"""Ctrl-C at a given step of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def interrupted(step_class: type, *, before_call: int, method: str = "step") -> Iterator[None]:
    """Raise KeyboardInterrupt in place of the ``before_call``-th call (from 0) of a method of a training step."""
    original, calls = getattr(step_class, method), iter(range(1_000_000))

    def wrapper(self: Any, *arguments: Any) -> Any:
        if next(calls) == before_call:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_class, method, wrapper)
        yield
