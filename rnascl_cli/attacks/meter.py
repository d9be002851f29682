"""How far an evaluation has come, counted in forward passes of single images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
"""Moves progress on by so many steps."""


class Meter:
    """Moves progress on with each forward pass, so that it moves inside long batches too."""

    def __init__(self) -> None:
        self.show: Advance = lambda steps: None
        self._left = 0

    def count(self, images: int) -> None:
        """Take note of a forward pass; more passes than were planned for the batch do not show."""
        steps = min(images, self._left)
        self._left -= steps
        if steps:
            self.show(steps)

    def skip(self, planned: int) -> None:
        """Count ``planned`` image passes as made: they were made before, or by another rank."""
        if planned:
            self.show(planned)

    @contextlib.contextmanager
    def batch(self, planned: int) -> Iterator[None]:
        """Expect ``planned`` image passes, and count those not needed as made at the end."""
        self._left = planned
        yield
        self.skip(self._left)
        self._left = 0
