"""Ctrl-C and SIGTERM: the first ends a training after its step, with a checkpoint; the second ends it immediately.

Signals that were ignored when the command started (``nohup``, or a shell's ``&`` for SIGINT) stay ignored. Outside of
the main thread the contexts do nothing.

Under torchrun, only the first signal counts. A terminal or SLURM signals every process, torchrun forwards its own
signal within a millisecond, and it sends SIGTERM to the other ranks once one has ended, when rank zero may still be
writing the checkpoint. torchrun kills what has not ended after 30 s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

Handler = Callable[[int, FrameType | None], None]


@dataclass
class StopRequest:
    """A request to stop.

    Attributes:
        signum: The signal; None without one.
    """

    signum: int | None = None


@contextlib.contextmanager
def stop_after_step() -> Iterator[StopRequest]:
    """Record the first signal, to act on after the step; raise at the second.

    Raises:
        Interrupted: A second signal came, not under torchrun.
    """
    request = StopRequest()

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None:
            raise Interrupted(signum)
        request.signum = signum
        ignore_further_signals()
        # The signal may have come inside of print, which is not reentrant.
        second = "" if _is_signaled_twice() else "; repeat to stop immediately"
        line = f"\nrnascl: {NAMES[signal.Signals(signum)]}: stopping after this step{second}\n"
        if distributed.is_rank_zero():
            with contextlib.suppress(OSError):
                os.write(2, line.encode())

    with _handling(STOPPING, note):
        yield request


@contextlib.contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise an exception at SIGTERM as at Ctrl-C, so that temporary files and locks are removed.

    Raises:
        Interrupted: SIGTERM came.
        KeyboardInterrupt: Ctrl-C.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        ignore_further_signals()
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Interrupted(signum)

    with _handling(STOPPING, end):
        yield


def ignore_further_signals() -> None:
    """Under torchrun, ignore signals until the process ends: it is stopping already."""
    if _is_signaled_twice():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _is_signaled_twice() -> bool:
    return distributed.size() > 1 or distributed.under_torchrun()


@contextlib.contextmanager
def _handling(signals: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    # None is a handler that was not set from Python and could not be restored.
    heard = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in heard.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, old)
