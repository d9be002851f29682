"""Ctrl-C and SIGTERM: the first ends a training after its step, with a checkpoint; the second ends it at once.

SIGTERM is what clusters send before they take a machine away. A signal that the command was started with ignored
(``nohup``, or a shell's ``&`` for SIGINT) stays ignored. Handlers belong to the main thread: elsewhere the
contexts do nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from rnascl_cli import ranks
from rnascl_cli.errors import Interrupted

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
def finishing_steps() -> Iterator[StopRequest]:
    """Take note of the first signal, for the body to obey when its step is done; raise at the second.

    Raises:
        Interrupted: A second signal came.
    """
    request = StopRequest()

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is not None:
            _raise(signum, frame)
        request.signum = signum
        # Not by print: the signal may have come in the middle of one.
        line = f"\nrnascl: {NAMES[signal.Signals(signum)]}: stopping after this step; once more to stop at once\n"
        if ranks.is_first():
            with contextlib.suppress(OSError):
                os.write(2, line.encode())

    with _handling(STOPPING, note):
        yield request


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does: by an exception, so that temporary files and locks are cleared away.

    Raises:
        Interrupted: SIGTERM came.
    """
    with _handling((signal.SIGTERM,), _raise):
        yield


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


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
            signal.signal(number, old)
