"""Where a run is, so that whoever finds a fault in the middle of it can say so: stage, epoch and step."""

from __future__ import annotations

from contextvars import ContextVar

_place: ContextVar[tuple[str, int, int] | None] = ContextVar("place", default=None)


def set_place(stage: str, *, epoch: int, step: int) -> None:
    """Take note of the step that is about to run; both numbers count from 0."""
    _place.set((stage, epoch, step))


def faulty(term: str, what: str) -> str:
    """Return ``"search: 'kl' at epoch 1, step 1: WHAT"``, for the running step."""
    place = _place.get()
    if place is None:
        return f"'{term}': {what}"
    stage, epoch, step = place
    return f"{stage}: '{term}' at epoch {epoch + 1}, step {step + 1}: {what}"
