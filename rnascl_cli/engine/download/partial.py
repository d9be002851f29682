"""What has arrived of a file, and what is known of it: a folder for each address in the cache's ``downloads/``.

In it are ``file.part`` while the file is under way, the file under its own name once it is whole, ``record.json``,
which outlives both, and a lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.filesize import decimal

from rnascl_cli.artifacts.store import sha256_file, write_text
from rnascl_cli.core.cache_dir import VARIABLE
from rnascl_cli.core.console import info
from rnascl_cli.core.errors import RunError


class Record(BaseModel):
    """What is known of the file at an address.

    Attributes:
        address: It.
        validator: The ETag or date of the file whose beginning is here, for If-Range.
        size: Bytes of the whole.
        name: Of the whole file, once it was.
        sha256: Of the last whole file that came from there.
        fetched: When that was, UTC.
    """

    model_config = ConfigDict(frozen=True)

    address: str
    validator: str | None = None
    size: int | None = None
    name: str | None = None
    sha256: str | None = None
    fetched: str | None = None


class Partial:
    """A file under way.

    Attributes:
        folder: Everything about it.
        part: What has arrived.
        record: What is known.
        furthest: The most bytes there have been, so that progress can be told from going in circles.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.part = folder / "file.part"
        self.record = self._read(address)
        self.furthest = self.size

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def begin(self, *, validator: str | None, size: int | None) -> None:
        """Note which file the bytes to come belong to, and see that there is room for them.

        Raises:
            RunError: There is not.
        """
        self._know(validator=validator, size=size)
        missing = 0 if size is None else size - self.size
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise RunError(
                f"{self.folder}: {decimal(missing)} more are needed and {decimal(free)} are free; make room, or let "
                f"{VARIABLE} name a folder on another disk"
            )

    @contextlib.contextmanager
    def appending(self) -> Iterator[BinaryIO]:
        """Open the part to write behind what is there; whatever happens, what was written is kept."""
        with writing(self.folder):
            file = self.part.open("ab")
        try:
            yield file
        finally:
            with writing(self.folder):
                file.close()
            self.furthest = max(self.furthest, self.size)

    def start_over(self) -> None:
        """Throw away what has arrived."""
        with writing(self.folder):
            self.part.unlink(missing_ok=True)
        self._know(validator=None, size=None)

    def whole(self) -> Path | None:
        """Return the file where it is here whole, and still what came."""
        path = self.folder / self.record.name if self.record.name else None
        if path is None or not path.is_file() or sha256_file(path) != self.record.sha256:
            return None
        return path

    def finish(self, name: str, *, sha256: str) -> Path:
        """Sync the part, put it in place under ``name``, and record its sha256."""
        path = self.folder / name
        with writing(self.folder):
            with self.part.open("rb") as file:
                os.fsync(file.fileno())
            self.part.replace(path)
            directory = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        self._know(name=name, sha256=sha256, fetched=datetime.now(UTC).isoformat(timespec="seconds"))
        return path

    def _know(self, **facts: str | int | None) -> None:
        self.record = self.record.model_copy(update=facts)
        with writing(self.folder):
            write_text(self.folder / "record.json", self.record.model_dump_json(indent=2) + "\n")

    def _read(self, address: str) -> Record:
        try:
            return Record.model_validate_json((self.folder / "record.json").read_bytes())
        except (OSError, ValidationError):
            # Bytes of which nothing is known cannot be gone on from.
            with writing(self.folder):
                self.part.unlink(missing_ok=True)
            return Record(address=address)


def folder_for(downloads: Path, address: str) -> Path:
    """Return where everything about the file at an address is kept: a name that can be read, and is its own."""
    readable = re.sub(r"[^\w.]+", "-", address.rpartition("/")[2])[-60:].strip("-.")
    return downloads / f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def alone(lock: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file while the body runs; where another process holds it, say so and wait."""
    with writing(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            info(f"another rnascl is fetching {what}; waiting until it is done")
            held.acquire()
    try:
        yield
    finally:
        held.release()


def check_writable(folder: Path) -> None:
    """See that files can be written to ``folder``, which is made, before a long download is begun.

    Raises:
        RunError: They cannot.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure of the disk into one clear line.

    Raises:
        RunError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}); make room or mend its permissions, or let "
            f"{VARIABLE} name another cache folder"
        ) from None
