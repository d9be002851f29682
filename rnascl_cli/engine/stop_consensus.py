"""Ranks agree between two steps on stopping and on writing a checkpoint.

All ranks must do so after the same step, otherwise they would wait for one another forever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rnascl_cli.core import distributed


class StopFlags(NamedTuple):
    """Requests between two steps.

    Attributes:
        signum: The signal to stop for; 0 for none.
        checkpoint: Whether a checkpoint is due.
    """

    signum: int = 0
    checkpoint: bool = False


class StopConsensus:
    """All-reduces the flags of all ranks."""

    def __init__(self) -> None:
        self._pending: Callable[[], tuple[int, ...]] | None = None

    def after_step(self, flags: StopFlags) -> StopFlags:
        """Return the flags to act on after this step: with several ranks, those of the step before.

        Their all-reduce ran during the step, so no rank waits for it.
        """
        if distributed.size() == 1:
            return flags
        before, self._pending = self._pending, _all_reduce(flags)
        return StopFlags() if before is None else _wait(before)

    def at_end(self, flags: StopFlags) -> StopFlags:
        """Return the flags of any rank, now or after the last step."""
        if distributed.size() == 1:
            return flags
        before, self._pending = self._pending, None
        earlier = StopFlags() if before is None else _wait(before)
        now = _wait(_all_reduce(flags))
        return StopFlags(max(earlier.signum, now.signum), earlier.checkpoint or now.checkpoint)


def _all_reduce(flags: StopFlags) -> Callable[[], tuple[int, ...]]:
    # Rank zero writes the checkpoints, so its clock decides.
    return distributed.all_reduce_max_async([flags.signum, int(flags.checkpoint and distributed.is_rank_zero())])


def _wait(pending: Callable[[], tuple[int, ...]]) -> StopFlags:
    signum, checkpoint = pending()
    return StopFlags(signum, bool(checkpoint))
