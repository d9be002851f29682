"""What several ranks agree on between two steps: to stop, since one of them was asked to, or to write a checkpoint.

All must do it behind the same step, or those that go on wait for those that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rnascl_cli.core import distributed


class StopFlags(NamedTuple):
    """What is wanted between two steps.

    Attributes:
        signum: The signal to stop for; 0 for none.
        checkpoint: Whether a checkpoint is due.
    """

    signum: int = 0
    checkpoint: bool = False


class StopConsensus:
    """Brings the wishes of all ranks together."""

    def __init__(self) -> None:
        self._asked: Callable[[], tuple[int, ...]] | None = None

    def after_step(self, wish: StopFlags) -> StopFlags:
        """Return what is to be done behind this step: with several ranks, what was wished for behind the one before.

        That has been on its way for the length of a step, so that nobody waits for it.
        """
        if distributed.size() == 1:
            return wish
        before, self._asked = self._asked, _ask(wish)
        return StopFlags() if before is None else _answer(before)

    def at_end(self, wish: StopFlags) -> StopFlags:
        """Return what any rank wishes for now, or has wished for behind the last step."""
        if distributed.size() == 1:
            return wish
        before, self._asked = self._asked, None
        earlier = StopFlags() if before is None else _answer(before)
        now = _answer(_ask(wish))
        return StopFlags(max(earlier.signum, now.signum), earlier.checkpoint or now.checkpoint)


def _ask(wish: StopFlags) -> Callable[[], tuple[int, ...]]:
    # The clock of the first rank, which writes the checkpoints, is the one that counts.
    return distributed.all_reduce_max_async([wish.signum, int(wish.checkpoint and distributed.is_rank_zero())])


def _answer(asked: Callable[[], tuple[int, ...]]) -> StopFlags:
    signum, checkpoint = asked()
    return StopFlags(signum, bool(checkpoint))
