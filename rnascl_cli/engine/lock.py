"""One process a run directory, by a lock that the kernel drops when the process dies, however it dies.

The lock is a POSIX record lock on a hidden file (``fcntl.lockf``). Workers that a process forks do not hold it, so
it does not outlive a killed parent. It works on NFS where the server runs a lock manager; where the file system has
no locks, a warning says so and nothing is refused. The file is removed when the lock is given back; a killed process
leaves it behind, unlocked, which hinders nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import weakref
from pathlib import Path

from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError

LOCK = ".rnascl.lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
LONGEST_NOTE = 200


class Lock:
    """A held lock: given back by :meth:`release`, when nothing refers to it any more, or when the process ends."""

    def __init__(self, path: Path, handle: int) -> None:
        self.release = weakref.finalize(self, _release, path, handle, os.getpid())


# A second lock on the same file in one process would be granted, and giving it back would drop the first.
_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def lock_directory(folder: Path) -> Lock:
    """Take the lock of an existing run directory.

    Raises:
        UserError: Another process holds it, or the folder cannot be written to.
    """
    path = folder.resolve() / LOCK
    held = _held.get(path)
    if held is not None and held.release.alive:
        return held
    lock = None
    while lock is None:
        lock = _try(path, folder)
    _held[path] = lock
    return lock


def refuse_if_in_use(folder: Path) -> None:
    """Refuse a run directory that another process is writing to; touch nothing.

    Raises:
        UserError: Another process holds its lock.
    """
    path = folder.resolve() / LOCK
    if path in _held or not path.is_file():
        return
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise _refusal(path, folder) from None
        finally:
            os.close(handle)


def _try(path: Path, folder: Path) -> Lock | None:
    """Take the lock; None where the file was removed by a process that gave it back in between."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            os.close(handle)
            raise _refusal(path, folder) from None
        if error.errno not in LOCKLESS:
            os.close(handle)
            raise UserError(f"--out {folder}: {error.strerror}") from None
        warning(f"{folder}: its file system has no locks; see to it yourself that no other process writes there")
    if not _is_open(path, handle):
        os.close(handle)
        return None
    with contextlib.suppress(OSError):  # a note for who is refused, no more: the disk may be full
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return Lock(path, handle)


def _is_open(path: Path, handle: int) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(handle))


def _refusal(path: Path, folder: Path) -> UserError:
    note = ""
    with contextlib.suppress(OSError, ValueError):
        note = path.read_bytes()[:LONGEST_NOTE].decode()
    who = f" ({note})" if note.startswith("process ") and note.isprintable() else ""
    return UserError(f"--out {folder}: another rnascl{who} is writing there; wait for it, or name another folder")


def _release(path: Path, handle: int, owner: int) -> None:
    if os.getpid() != owner:  # a forked worker's copy: the lock is its parent's
        return
    with contextlib.suppress(OSError):
        if _is_open(path, handle):
            path.unlink()
    with contextlib.suppress(OSError):
        os.close(handle)
