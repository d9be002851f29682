"""A process that ends with the one that started it, however that one ends, where the system allows it: on Linux.

The child asks the kernel itself, as it begins. Code between fork and exec (``preexec_fn``) would ask a moment sooner,
but is not safe in a process that has threads. The signal comes when the *thread* that started the child is gone, so
children are to be started by the main thread.
"""

from __future__ import annotations

import os
import signal
import sys

from rnascl_cli.core import distributed

VARIABLE = "RNASCL_ENDS_WITH"
PR_SET_PDEATHSIG = 1


def ending_with_this_process() -> dict[str, str]:
    """Return what the environment of a child says, for it to end with this process."""
    return {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Take SIGTERM, as from a person, once the process that started this one is gone, if that one wants it so.

    torchrun does, but does not say who it is: if it has gone before this is called, that is not seen. Children of this
    process are not told. On other systems than Linux nothing happens.
    """
    parent = os.environ.pop(VARIABLE, None)
    if parent is None and distributed.under_torchrun():
        parent = str(os.getppid())
    if parent is None or sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0 and str(os.getppid()) != parent:
        os.kill(os.getpid(), signal.SIGTERM)  # it was gone before the kernel was asked
