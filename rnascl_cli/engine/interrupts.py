"""Ctrl-C and SIGTERM: the first ends a training after its step, with a checkpoint; the second ends it at once.

SIGTERM is what clusters send before they take a machine away. A signal that the command was started with ignored
(``nohup``, or a shell's ``&`` for SIGINT) stays ignored. Handlers belong to the main thread: elsewhere the
contexts do nothing.

A process under torchrun heeds one signal and no second one. That is not a person's: a terminal or SLURM tells every
process, torchrun passes on within a millisecond what it was told itself, and it sends SIGTERM to the other ranks once
one has ended, while the first may still be writing the checkpoint. What has not ended after 30 s, torchrun kills.
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
    """Whether somebody wants the command to stop.

    Attributes:
        signum: The signal that came; None as long as none did.
    """

    signum: int | None = None


@contextlib.contextmanager
def stop_after_step() -> Iterator[StopRequest]:
    """Take note of the first signal, for the body to obey when its step is done; raise at the second.

    Raises:
        Interrupted: A second signal came, not under torchrun.
    """
    request = StopRequest()

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None:
            raise Interrupted(signum)
        request.signum = signum
        ignore_further_signals()
        # Not by print: the signal may have come in the middle of one.
        second = "" if _is_told_twice() else "; once more to stop at once"
        line = f"\nrnascl: {NAMES[signal.Signals(signum)]}: stopping after this step{second}\n"
        if distributed.is_rank_zero():
            with contextlib.suppress(OSError):
                os.write(2, line.encode())

    with _handling(STOPPING, note):
        yield request


@contextlib.contextmanager
def raise_on_signal() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does: by an exception, so that temporary files and locks are cleared away.

    Raises:
        Interrupted: SIGTERM came.
        KeyboardInterrupt: Ctrl-C, as always.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        ignore_further_signals()
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Interrupted(signum)

    with _handling(STOPPING, end):
        yield


def ignore_further_signals() -> None:
    """Under torchrun, ignore signals from now on, up to the end of the process: it is stopping already."""
    if _is_told_twice():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _is_told_twice() -> bool:
    return distributed.size() > 1 or distributed.under_torchrun()


@contextlib.contextmanager
def _handling(signals: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    # None is a handler that was not set from Python, and could not be put back.
    heard = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in heard.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, old)
