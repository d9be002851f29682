"""What goes wrong on the way: what will not pass, what may, and what means that nobody answers at all."""

from __future__ import annotations

import re

import requests
import urllib3

from rnascl_cli.core.errors import RunError
from rnascl_cli.engine.download.pages import page_title

BUSY = (408, 425, 429)  # with every 5xx, what a server says when it may do better later
LONGEST_WAIT = 60.0  # seconds; a server's Retry-After is heeded up to this
TROUBLE = (requests.RequestException, urllib3.exceptions.HTTPError)

NO_ADDRESS = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidURL,
    urllib3.exceptions.LocationParseError,
)


class DownloadError(RunError):
    """The file cannot be had from this address; trying again now is no use."""


class HiccupError(Exception):
    """Something that may pass.

    Attributes:
        wait: Seconds that the server asks to be left alone; None where it does not say.
    """

    def __init__(self, message: str, *, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class UnreachableError(HiccupError):
    """No connection at all: worth fewer attempts, as there may be no network."""


def refuse_status(response: requests.Response) -> None:
    """Raise for an answer that is no file.

    Raises:
        HiccupError: The server is busy or broken.
        DownloadError: It has no such file, or does not give it away.
    """
    status = response.status_code
    if status in (200, 206):
        return
    answer = f"the server answers {status} {response.reason or ''}".rstrip()
    if status in BUSY or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise HiccupError(answer, wait=min(float(wait), LONGEST_WAIT) if wait.isdecimal() else None)
    title = page_title(next(response.iter_content(2**16), b""))
    raise DownloadError(f"{answer}{f' ({title})' if title else ''}")


def explained(error: Exception, *, stall: float) -> DownloadError | HiccupError:
    """Return what an exception of requests or urllib3 means.

    Args:
        error: It.
        stall: Seconds of silence after which reading gives up.
    """
    inner: object = error.args[0] if error.args else None
    inner = getattr(inner, "reason", inner)  # urllib3 wraps the cause in "max retries exceeded"
    if isinstance(error, requests.TooManyRedirects):
        return DownloadError("the address redirects without end")
    if isinstance(error, requests.exceptions.SSLError):
        return DownloadError(f"no secure connection ({_short(error)})")
    if isinstance(error, NO_ADDRESS):
        return DownloadError(f"not an address to download from ({_short(error)})")
    if isinstance(error, requests.ReadTimeout) or isinstance(inner, urllib3.exceptions.ReadTimeoutError):
        return HiccupError(f"the server was silent for {stall:g} s")
    if isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError) or isinstance(
        inner, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
    ):
        return UnreachableError(f"no connection to the server ({_short(error)})")
    return HiccupError(f"the connection broke ({_short(error)})")


def _short(error: Exception) -> str:
    """Return the system's own words for it, without the addresses of Python objects around them."""
    text = str(error)
    found = re.search(r"\[Errno -?\d+\] ([^()'\"<>]+)", text) or re.search(r"(certificate verify failed[^()]*)", text)
    return found[1].strip() if found else f"{type(error).__name__}: {' '.join(text.split())[:120]}"
