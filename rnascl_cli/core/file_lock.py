"""File locks between processes, by ``filelock``: the operating system releases them when the process ends or is killed.

Processes that the holder forks do not hold the lock. It works on NFS where the server runs a lock manager. A file
system without locks gives a warning, and nothing is refused there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".rnascl.lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
MAX_NOTE_BYTES = 200


class DirectoryLock:
    """A held lock of a run directory: until :meth:`release`, until it is collected, or until the process ends."""

    def __init__(self, lock: BaseFileLock) -> None:
        self.release = weakref.finalize(self, _release, lock, os.getpid())


# filelock would let one process lock a file twice, by two objects, only to wait for itself.
_held: weakref.WeakValueDictionary[Path, DirectoryLock] = weakref.WeakValueDictionary()


def lock_directory(folder: Path) -> DirectoryLock:
    """Lock an existing run directory; a process that holds the lock already gets the same one.

    Raises:
        UserError: Another process holds it, or the folder cannot be written to.
    """
    from filelock import Timeout

    path = folder.resolve() / LOCK
    held = _held.get(path)
    if held is not None and held.release.alive:
        return held
    lock = _file_lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(path, folder) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise UserError(f"--out {folder}: {error.strerror}") from None
        warning(f"{folder}: its file system has no locks; make sure that no other process writes there")
    with contextlib.suppress(OSError):  # the disk may be full, and this is only for the message of a refused process
        path.write_text(_note(), encoding="utf-8")
    _held[path] = held = DirectoryLock(lock)
    return held


def refuse_if_in_use(folder: Path) -> None:
    """Refuse a run directory that another process is writing to; nothing is created or changed.

    Raises:
        UserError: Another process holds its lock.
    """
    from filelock import Timeout

    path = folder.resolve() / LOCK
    if path in _held or not path.is_file():
        return
    lock = _file_lock(path)
    with contextlib.suppress(OSError):
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            raise _in_use(path, folder) from None


@contextlib.contextmanager
def waiting_lock(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold a lock file while the body runs; wait for it where another process holds it.

    Args:
        path: The lock file; its folder exists.
        waiting: A message to print before waiting.

    Raises:
        OSError: The file cannot be made.
    """
    from filelock import Timeout

    lock = _file_lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            info(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _file_lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    # Without filelock's fallback for file systems that have no locks: a soft lock would outlive a killed process.
    return FileLock(path, mode=0o644, thread_local=False, fallback_to_soft=False)


def _note() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: Path, folder: Path) -> UserError:
    note = ""
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        note = file.read(MAX_NOTE_BYTES).decode()
    holder = f" ({note})" if note.startswith("process ") and note.isprintable() else ""
    return UserError(f"--out {folder}: another rnascl{holder} is writing there; wait for it, or name another folder")


def _release(lock: BaseFileLock, owner: int) -> None:
    if os.getpid() != owner:  # a forked worker's copy
        return
    path = Path(lock.lock_file)
    with contextlib.suppress(OSError):
        # Not another process's, where somebody has replaced the folder. Removed while it is held: a process that waits
        # for it notices, and makes a new one.
        if path.read_text(encoding="utf-8") == _note():
            path.unlink()
    with contextlib.suppress(OSError):
        lock.release()
