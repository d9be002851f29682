"""Download a checkpoint: from Google Drive by gdown, the Hugging Face Hub by huggingface_hub, other links by pooch.

Each address has a folder in the cache's ``downloads/``. A file appears there under its own name only when it is
complete, looks like a checkpoint and has the expected sha256. An interrupted download starts over.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rich.filesize import decimal

from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core.cache_dir import VARIABLE, cache_dir
from rnascl_cli.core.console import info, stderr
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.core.file_lock import waiting_lock
from rnascl_cli.core.version import __version__
from rnascl_cli.teachers.files import PICKLED, SUFFIX

FORMS = "https://..., hf:OWNER/REPO/FILE or gdrive:ID"

ATTEMPTS = 3
PAUSE = 2.0  # seconds between attempts
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between bytes
BUSY = (408, 425, 429)  # with every 5xx, the HTTP statuses worth another attempt
MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, the limit of the format's own reader


class DownloadError(RunError):
    """A checkpoint cannot be downloaded from an address; the message starts with its URL."""


@dataclass(frozen=True)
class Address:
    """Where a checkpoint can be downloaded.

    Attributes:
        text: ``gdrive:ID``, ``hf:OWNER/REPO[@REVISION]/FILE`` or a link.
        url: The page to open in a browser.
        file_name: Name of the file, as far as the address tells; safe to use in a folder.
        hub: Repository, file and revision on the Hugging Face Hub; None elsewhere.
    """

    text: str
    url: str
    file_name: str
    hub: tuple[str, str, str] | None = None

    @property
    def folder(self) -> Path:
        """The folder of its download: readable, and different for each address."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:8]
        return cache_dir() / "downloads" / f"{self.file_name[-60:].strip('-.')}-{digest}"


def parse_address(text: str) -> Address:
    """Parse an address.

    Args:
        text: ``gdrive:ID``, ``hf:OWNER/REPO[@REVISION]/FILE`` or a link. Links to Google Drive and to files of the
            Hugging Face Hub, as a browser shows them, are recognized.

    Raises:
        UserError: It is none of these.
    """
    host, path = "", ""
    with contextlib.suppress(ValueError):
        parts = urlsplit(text)
        if parts.scheme in ("http", "https"):
            host, path = parts.hostname or "", unquote(parts.path)
    drive_id = found[1] if (found := re.fullmatch(r"gdrive:([-\w]+)", text)) else None
    if host in ("drive.google.com", "docs.google.com"):
        from gdown.parse_url import parse_url

        drive_id = parse_url(text)[0]
        host = ""
    if drive_id is not None:
        return Address(f"gdrive:{drive_id}", f"https://drive.google.com/uc?id={drive_id}", f"gdrive-{drive_id}")
    on_page = re.fullmatch(r"/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)", path) if host == "huggingface.co" else None
    if found := on_page or re.fullmatch(r"hf:(?://)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", text):
        repository, revision, file = found[1], found[2] or "main", found[3]
        short = f"hf:{repository}{'' if revision == 'main' else f'@{revision}'}/{file}"
        url = f"https://huggingface.co/{repository}/blob/{revision}/{file}"
        return Address(short, url, _safe_name(file), hub=(repository, file, revision))
    if not host:
        raise UserError(f"{text}: not the address of a file to download; write {FORMS}")
    return Address(text, text, _safe_name(path) or _safe_name(host))


def _safe_name(path: str) -> str:
    """Return the last part of a path as a file name that cannot lead out of its folder."""
    return re.sub(r"[^\w.+=-]+", "_", PurePosixPath(path).name)[-100:].lstrip(".")


@contextlib.contextmanager
def exclusive(address: Address) -> Iterator[None]:
    """Hold the lock of an address; where another process holds it, wait."""
    folder = address.folder
    with contextlib.ExitStack() as stack:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            waiting = f"another rnascl is downloading {address.text}; waiting for it"
            stack.enter_context(waiting_lock(folder / "lock", waiting=waiting))
        yield


def download(address: Address, *, stem: str | None = None, sha256: str | None = None, fresh: bool = False) -> Path:
    """Download a checkpoint into the cache, unless it is there already. The caller holds :func:`exclusive`.

    Args:
        address: Where it is.
        stem: Name of the file without suffix; by default as the address says.
        sha256: Expected sha256, hex. By default the one that the Hugging Face Hub publishes, elsewhere none.
        fresh: Whether to download again what is there.

    Returns:
        The file. The caller removes it.

    Raises:
        DownloadError: The address cannot be reached, has no such file, or has something else.
        RunError: The disk is full, or the folder cannot be written to.
    """
    for path in [item for item in address.folder.iterdir() if item.suffix in (*PICKLED, SUFFIX)]:
        if not fresh and sha256 in (None, sha256_file(path)):
            info(f"{path} was downloaded before and is used")
            return path
    partial = address.folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left one
    with _writing(address.folder):
        partial.mkdir()
        try:
            file, published = _transfer_with_retries(address, partial)
            suffix = _suffix(file, address)
            name = (stem or address.file_name.removesuffix(suffix)) + suffix
            digest, expected = sha256_file(file), sha256 or published
            if expected not in (None, digest):
                raise DownloadError(f"{address.url}: the file has sha256 {digest}, not {expected}; it was changed")
            checked = "as published" if expected is not None else "recorded"
            info(f"downloaded {name} ({decimal(file.stat().st_size)}): sha256 {digest}, {checked}")
            return file.replace(address.folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _transfer_with_retries(address: Address, folder: Path) -> tuple[Path, str | None]:
    attempt = 0
    while True:
        attempt += 1
        try:
            return _transfer(address, folder)
        except Exception as error:  # each library raises the errors of its own HTTP library
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise  # of the file system: errors of an HTTP library carry no errno
            if attempt == ATTEMPTS or not _is_transient(error):
                raise DownloadError(f"{address.url}: {_reason(error)}") from None
            info(f"{address.url}: {_reason(error)}; retrying in {PAUSE:g} s ({attempt} of {ATTEMPTS - 1})")
            time.sleep(PAUSE)


def _transfer(address: Address, folder: Path) -> tuple[Path, str | None]:
    """Download to ``folder``; return the file, and its sha256 where the host publishes one."""
    if address.hub is not None:
        import huggingface_hub

        repository, file, revision = address.hub
        endpoint = os.environ.get("HF_ENDPOINT")
        url = huggingface_hub.hf_hub_url(repository, file, revision=revision, endpoint=endpoint)
        etag = huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT[0]).etag or ""
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision, local_dir=folder, endpoint=endpoint, library_name="rnascl"
        )
        return Path(path), etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None  # large files have a sha256 there
    path = folder / "file"
    if address.text.startswith("gdrive:"):
        import gdown
        from gdown.exceptions import FileURLRetrievalError

        try:  # without cookies: gdown would keep them outside of the cache
            gdown.download(address.url, str(path), quiet=not stderr.is_terminal, use_cookies=False, timeout=TIMEOUT)
        except FileURLRetrievalError as error:
            reason = re.split("You may still|Check FAQ", str(error))[0].removeprefix("Failed to retrieve file url:")
            raise DownloadError(
                f"Google Drive shows a web page instead of the file ({' '.join(reason.split())})"
            ) from None
        return path, None
    import pooch

    # Without compression Content-Length counts the file's own bytes, and a short file is noticed.
    headers = {"User-Agent": f"rnascl/{__version__}", "Accept-Encoding": "identity"}
    fetch = pooch.HTTPDownloader(progressbar=stderr.is_terminal, chunk_size=2**20, timeout=TIMEOUT, headers=headers)
    fetch(address.url, str(path), None)
    return path, None


def _is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: the server is busy, or the connection broke."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in BUSY or status >= 500
    return not isinstance(error, DownloadError | ValueError) and type(error).__name__ != "OfflineModeIsEnabled"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(" for url")[0]
    if text.startswith("('"):  # an error with several arguments, of which the first is the message
        text = text[2:].partition("'")[0]
    system = re.search(r"\[Errno -?\d+\] ([^()'\"<>]+)|(certificate verify failed[^()]*)", text)
    return (system[1] or system[2]).strip() if system else text[:200] or type(error).__name__


def _suffix(path: Path, address: Address) -> str:
    """Return the suffix that says how to read a downloaded file.

    Raises:
        DownloadError: It is no checkpoint. Hosts answer with web pages about quotas, virus scans and sign-in.
    """
    with path.open("rb") as file:
        head = file.read(2**16)
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= MAX_SAFETENSORS_HEADER:
        return SUFFIX
    if head.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", head):  # torch.save: a zip; before 1.6 a pickle
        suffix = PurePosixPath(address.file_name).suffix
        return suffix if suffix in PICKLED else ".pt"
    text = head.decode("utf-8", "replace")
    if not re.match(r"[\ufeff\s]*<", text):
        raise DownloadError(f"{address.url}: not a checkpoint; the file starts with {text[:40]!r}")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    shown = f" ({' '.join(html.unescape(title[1]).split())[:120]})" if title else ""
    raise DownloadError(f"{address.url}: a web page came instead of the file{shown}")


def check_writable(folder: Path) -> None:
    """Check that files can be written to ``folder``, which is created.

    Raises:
        RunError: They cannot.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space, fix its permissions, or set "
            f"{VARIABLE} to another cache folder"
        ) from None
