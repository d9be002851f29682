"""End a process together with its parent, however the parent ends (Linux only).

The child calls prctl itself when it starts: a ``preexec_fn`` is not safe in a process with threads. The signal comes
when the *thread* that started the child ends, so children must be started by the main thread.
"""

from __future__ import annotations

import os
import signal
import sys

from rnascl_cli.core import distributed

VARIABLE = "RNASCL_ENDS_WITH"
PR_SET_PDEATHSIG = 1


def ending_with_this_process() -> dict[str, str]:
    """Return environment variables that make a child process end with this one."""
    return {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Receive SIGTERM when the parent ends, if the parent requested it or is torchrun.

    torchrun does not pass its process id, so a torchrun that has already ended is not noticed. Does nothing on systems
    other than Linux.
    """
    parent = os.environ.pop(VARIABLE, None)
    if parent is None and distributed.under_torchrun():
        parent = str(os.getppid())
    if parent is None or sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0 and str(os.getppid()) != parent:
        os.kill(os.getpid(), signal.SIGTERM)  # the parent ended before the call
