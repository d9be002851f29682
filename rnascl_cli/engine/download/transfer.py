"""Moving the bytes: ask where they are, go on behind what is here, and try again until the file is whole."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests
from rich.filesize import decimal

from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.progress import byte_progress
from rnascl_cli.core.version import __version__
from rnascl_cli.engine.download.addresses import Address, Offer
from rnascl_cli.engine.download.pages import is_safetensors, what_came_instead
from rnascl_cli.engine.download.partial import Partial, alone, folder_for, writing
from rnascl_cli.engine.download.trouble import (
    TROUBLE,
    DownloadError,
    HiccupError,
    UnreachableError,
    explained,
    refuse_status,
)

CHUNK = 2**16  # bytes; small, so that little is lost where a connection breaks
HEAD = 512  # bytes that tell a checkpoint from a page
SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".safetensors")
UNREACHABLE_ATTEMPTS = 3

Show = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, and how often to try.

    Attributes:
        connect: Seconds until a connection stands.
        stall: Longest silence of the server, seconds.
        attempts: Attempts in a row that bring no new byte.
        pause: Seconds before the second attempt; each further one waits twice as long.
        redirects: How many are followed.
    """

    connect: float = 15.0
    stall: float = 60.0
    attempts: int = 5
    pause: float = 1.0
    redirects: int = 10


@dataclass(frozen=True)
class Downloaded:
    """A whole file.

    Attributes:
        path: Where it is for now.
        sha256: Of it.
        size: Bytes.
        checked: Whether the sha256 was known beforehand, and agreed.
    """

    path: Path
    sha256: str
    size: int
    checked: bool


@contextlib.contextmanager
def downloaded(
    address: Address,
    downloads: Path,
    *,
    stem: str | None = None,
    sha256: str | None = None,
    fresh: bool = False,
    patience: Patience | None = None,
) -> Iterator[Downloaded]:
    """Download a checkpoint, for the body to use.

    After the body the file is removed; where the body fails it stays, and the next call takes it as it is. While it
    is under way, what has arrived is kept, and the next call goes on from there.

    Args:
        address: Where it is.
        downloads: The folder in which downloads are kept.
        stem: What to call the file, without suffix; as the address says by default.
        sha256: What it must be, hex; None where nobody knows. It then goes into the record, and a later download
            that differs is a warning.
        fresh: Whether to download again what is here whole.
        patience: Timeouts and attempts.

    Yields:
        The file.

    Raises:
        DownloadError: The file cannot be had from there, or is not what it should be.
        RunError: The disk is full, or the folder cannot be written.
    """
    folder = folder_for(downloads, str(address))
    with alone(folder / "lock", what=str(address)):
        partial = Partial(folder, str(address))
        path = None if fresh else partial.whole()
        if path is not None and sha256 in (None, partial.record.sha256):
            info(f"{path} is here from before; it is not downloaded again")
            file = Downloaded(path, str(partial.record.sha256), path.stat().st_size, checked=sha256 is not None)
        else:
            try:
                file = _download(address, partial, stem=stem, sha256=sha256, patience=patience or Patience())
            except KeyboardInterrupt:
                if partial.size:
                    info(f"{decimal(partial.size)} have arrived and are kept; the same command goes on from there")
                raise
        yield file
        with writing(partial.folder):
            file.path.unlink(missing_ok=True)


def _download(
    address: Address, partial: Partial, *, stem: str | None, sha256: str | None, patience: Patience
) -> Downloaded:
    label = stem or address.file_name
    had = partial.size
    with requests.Session() as session, byte_progress(label) as show:
        session.max_redirects = patience.redirects
        session.headers["User-Agent"] = f"rnascl/{__version__}"
        if had:
            info(f"{label}: going on behind the {decimal(had)} that are here")
        for fresh in (not had, True):
            offer = _persist(address, partial, session, patience, show)
            expected, found = sha256 or offer.sha256, sha256_file(partial.part)
            if expected in (None, found):
                break
            partial.start_over()
            if fresh:
                raise DownloadError(f"the file's sha256 is {found}, not {expected}: it is damaged, or another one")
            info(f"{label}: what was here before does not go with what came; starting over")
    before = partial.record
    if before.sha256 not in (None, found):
        warning(
            f"{address}: is another file than on {before.fetched}: its sha256 was {before.sha256} and is {found}. "
            "Compare them before you rely on it"
        )
    path = partial.finish(_name(partial, address, stem), sha256=found)
    return Downloaded(path, found, path.stat().st_size, checked=expected is not None)


def _persist(address: Address, partial: Partial, session: requests.Session, patience: Patience, show: Show) -> Offer:
    """Try until the part is whole; attempts are counted from the last one that brought something new."""
    failures, furthest = 0, partial.furthest
    while True:
        try:
            try:
                offer = address.offer(session, (patience.connect, patience.stall))
                _attempt(offer, partial, session, patience, show)
                return offer
            except TROUBLE as error:
                raise explained(error, stall=patience.stall) from None
        except HiccupError as problem:
            failures = 0 if partial.furthest > furthest else failures + 1
            furthest = partial.furthest
            attempts = patience.attempts
            if isinstance(problem, UnreachableError):
                attempts = min(attempts, UNREACHABLE_ATTEMPTS)
            if failures >= attempts:
                raise DownloadError(f"{problem}, {attempts} times in a row") from None
            pause = problem.wait if problem.wait is not None else patience.pause * 2 ** max(failures - 1, 0)
            count = f" ({failures} of {attempts - 1})" if failures else ""
            info(f"{problem}; trying again in {pause:g} s{count}")
            time.sleep(pause)


def _attempt(offer: Offer, partial: Partial, session: requests.Session, patience: Patience, show: Show) -> None:
    """Ask for what is missing, once, and append it.

    Raises:
        HiccupError: It is not whole yet.
        DownloadError: There is no file to be had here.
    """
    have = partial.size
    headers = {**offer.headers, "Accept-Encoding": "identity"}  # a size and a range count the file's own bytes
    if have:
        headers["Range"] = f"bytes={have}-"
        if partial.record.validator:
            headers["If-Range"] = partial.record.validator
    timeout = (patience.connect, patience.stall)
    with session.get(offer.url, headers=headers, stream=True, timeout=timeout) as response:
        if have and response.status_code == 416:  # nothing lies behind what is here: it is whole, or another file
            if _content_range(response)[1] == have:
                return
            partial.start_over()
            raise HiccupError("the server has another file than the beginning that is here")
        refuse_status(response)
        chunks = response.iter_content(CHUNK)
        first = next(chunks, b"")
        if response.status_code == 206:
            size = _size_of_rest(response, partial)
        else:
            _refuse_what_is_no_checkpoint(first)
            if have:
                info("the server sends the file from its beginning; starting over")
                partial.start_over()
            size = _length(response)
        # A partial answer may leave out what the whole one said of itself.
        known = partial.record.validator if response.status_code == 206 else None
        partial.begin(validator=_validator(response) or known, size=size)
        with partial.appending() as file:
            while first:
                with writing(partial.folder):
                    file.write(first)
                show(file.tell(), size)
                first = next(chunks, b"")
    _check_size(partial, offer.size if offer.size is not None else size)


def _size_of_rest(response: requests.Response, partial: Partial) -> int | None:
    """Check that a partial answer goes on where the part ends, in the same file; return the size of the whole."""
    start, size = _content_range(response)
    known = partial.record
    changed = known.size is not None and size is not None and size != known.size
    if known.validator is not None and _validator(response) not in (None, known.validator):
        changed = True
    if start != partial.size or changed:
        partial.start_over()
        raise HiccupError("the file at the server is not the one whose beginning is here")
    return size if size is not None else known.size


def _check_size(partial: Partial, size: int | None) -> None:
    have = partial.size
    if not have:
        raise HiccupError("the server sent an empty file")
    if size is not None and have < size:
        raise HiccupError(f"the connection ended after {decimal(have)} of {decimal(size)}")
    if size is not None and have > size:
        partial.start_over()
        raise HiccupError(f"the server sent {have} bytes where {size} are the whole file")


def _refuse_what_is_no_checkpoint(head: bytes) -> None:
    instead = what_came_instead(head[:HEAD]) if head else None  # an empty answer may pass: see _check_size
    if instead is not None:
        # The title of a page may stand further down than the bytes that tell a page from a file.
        raise DownloadError(what_came_instead(head) or instead)


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """Return where a partial answer starts, and the size of the whole; None for what it does not say."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    return (int(found[1]) if found[1] else None), (None if found[2] == "*" else int(found[2]))


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    if response.headers.get("Content-Encoding", "identity") != "identity" or not length.isdecimal():
        return None
    return int(length)


def _validator(response: requests.Response) -> str | None:
    """Return what tells this file from a later one: a strong ETag, or the date of its last change (RFC 9110, 13.1)."""
    etag: str | None = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    modified: str | None = response.headers.get("Last-Modified")
    return modified


def _name(partial: Partial, address: Address, stem: str | None) -> str:
    """Return what to call the file, with a suffix that says how to read it."""
    with partial.part.open("rb") as file:
        safetensors = is_safetensors(file.read(HEAD))
    told = PurePosixPath(address.file_name)
    suffix = told.suffix if told.suffix.lower() in SUFFIXES else ".pt"
    if safetensors != (suffix.lower() == ".safetensors"):
        suffix = ".safetensors" if safetensors else ".pt"
    return (stem or told.name.removesuffix(told.suffix if told.suffix.lower() in SUFFIXES else "")) + suffix
