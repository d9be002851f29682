"""Where a file is: Google Drive, the Hugging Face Hub, or a plain link; and how each says where its bytes are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from rnascl_cli.core.errors import UserError
from rnascl_cli.core.version import __version__
from rnascl_cli.engine.download.pages import page_title, what_came_instead
from rnascl_cli.engine.download.trouble import DownloadError, HiccupError, UnreachableError, refuse_status

DRIVE = "https://drive.google.com/uc?id={id}"
HUB = "https://huggingface.co"
FORMS = "https://..., hf:OWNER/REPO/FILE or gdrive:ID"
LONGEST_PAGE = 2**20  # bytes read of a page that Google Drive shows before a file
REVISION = "main"
OURSELVES = {"library_name": "rnascl", "library_version": __version__}

Timeout = tuple[float, float]


@dataclass(frozen=True)
class Offer:
    """What a host says about a file.

    Attributes:
        url: Where its bytes are, for now.
        headers: To send along.
        size: Bytes; None where it does not say.
        sha256: Hex; None where it does not say.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Link:
    """A plain http or https link."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def page(self) -> str:
        """What to open in a browser."""
        return self.url

    @property
    def file_name(self) -> str:
        """The file's name as far as the address tells."""
        return _plain(unquote(urlsplit(self.url).path)) or _plain(urlsplit(self.url).hostname or "") or "download"

    def offer(self, session: requests.Session, timeout: Timeout) -> Offer:
        """Return the link itself."""
        return Offer(self.url)


@dataclass(frozen=True)
class Drive:
    """A public file of Google Drive."""

    file_id: str

    def __str__(self) -> str:
        return f"gdrive:{self.file_id}"

    @property
    def page(self) -> str:
        """What to open in a browser."""
        return DRIVE.format(id=self.file_id)

    @property
    def file_name(self) -> str:
        """Google Drive tells the name only with the file."""
        return f"gdrive-{self.file_id}"

    def offer(self, session: requests.Session, timeout: Timeout) -> Offer:
        """Ask for the file, and go through the page that stands before large ones ("cannot scan for viruses").

        Raises:
            DownloadError: The page says that the file is not to be had: too many downloads today, not shared, gone.
        """
        from gdown.download import get_url_from_gdrive_confirmation
        from gdown.exceptions import FileURLRetrievalError

        with session.get(self.page, stream=True, timeout=timeout) as response:
            refuse_status(response)
            page = next(response.iter_content(LONGEST_PAGE), b"") if _is_page(response) else b""
            if not page or what_came_instead(page) is None:
                return Offer(response.url)
        try:
            return Offer(get_url_from_gdrive_confirmation(page.decode("utf-8", "replace")))
        except FileURLRetrievalError as error:
            reason = page_title(page) or "a page without a link to the file"
            said = re.sub(r"<[^>]+>", "", str(error)).split(". ")[0]
            raise DownloadError(f"Google Drive shows a page instead of the file ({reason}: {said})") from None


@dataclass(frozen=True)
class Hub:
    """A file of a model repository on the Hugging Face Hub."""

    repository: str
    file: str
    revision: str = REVISION

    def __str__(self) -> str:
        at = "" if self.revision == REVISION else f"@{self.revision}"
        return f"hf:{self.repository}{at}/{self.file}"

    @property
    def page(self) -> str:
        """What to open in a browser."""
        return f"{HUB}/{self.repository}/blob/{self.revision}/{self.file}"

    @property
    def file_name(self) -> str:
        """The file's name."""
        return _plain(self.file) or "download"

    def offer(self, session: requests.Session, timeout: Timeout) -> Offer:
        """Ask the Hub for size and sha256, which it keeps for every large file.

        ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean elsewhere.
        """
        import huggingface_hub
        from huggingface_hub import errors, utils

        url = huggingface_hub.hf_hub_url(
            self.repository, self.file, revision=self.revision, endpoint=os.environ.get("HF_ENDPOINT")
        )
        try:
            found = huggingface_hub.get_hf_file_metadata(url, timeout=timeout[0], **OURSELVES)
        except (errors.OfflineModeIsEnabled, errors.EntryNotFoundError, errors.RepositoryNotFoundError) as error:
            raise DownloadError(f"the Hugging Face Hub: {_first_line(error)}") from None
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            kind = HiccupError if status == 429 or status >= 500 else DownloadError
            raise kind(f"the Hugging Face Hub answers {status or _first_line(error)}") from None
        except Exception as error:  # its HTTP library, and so the exceptions, differ from release to release
            raise UnreachableError(f"no connection to the Hugging Face Hub ({_first_line(error)})") from None
        sha256 = found.etag if found.etag and re.fullmatch(r"[0-9a-f]{64}", found.etag) else None
        headers: dict[str, str] = utils.build_hf_headers(**OURSELVES)
        return Offer(url, headers, found.size, sha256)


Address = Drive | Hub | Link


def parse_address(text: str) -> Address:
    """Read an address.

    Args:
        text: ``gdrive:ID``, ``hf:OWNER/REPO[@REVISION]/FILE``, or a link; links to Google Drive and to files of the
            Hugging Face Hub, as a browser shows them, are understood.

    Raises:
        UserError: It is none of these.
    """
    kind, _, rest = text.partition(":")
    if kind == "gdrive" and re.fullmatch(r"[-\w]+", rest):
        return Drive(rest)
    if kind == "hf" and (found := re.fullmatch(r"(?://)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", rest)):
        return Hub(found[1], found[3], found[2] or REVISION)
    parts = urlsplit(text)
    if kind not in ("http", "https") or not parts.hostname:
        raise UserError(f"{text}: not an address to download from; write {FORMS}")
    if parts.hostname in ("drive.google.com", "docs.google.com"):
        from gdown.parse_url import parse_url

        file_id = parse_url(text)[0]
        if file_id is None:
            raise UserError(f"{text}: names no file of Google Drive; give the link of one file, or gdrive:ID")
        return Drive(file_id)
    shown = re.fullmatch(r"/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)", unquote(parts.path))
    if parts.hostname == urlsplit(HUB).hostname and shown:
        return Hub(shown[1], shown[3], shown[2])
    return Link(text)


def _plain(path: str) -> str:
    """Return the last part of a path as a name that is safe for a file of ours."""
    return re.sub(r"[^\w.+=-]+", "_", PurePosixPath(path).name)[-100:].lstrip(".")


def _is_page(response: requests.Response) -> bool:
    return "Content-Disposition" not in response.headers and "html" in response.headers.get("Content-Type", "html")


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
