"""Downloading a checkpoint, from a server on this machine that is busy, breaks off and shows pages instead."""

from __future__ import annotations

import errno
import hashlib
import random
import re
import threading
from pathlib import Path

import pytest

from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.teachers.download import DownloadError, download, exclusive, parse_address
from tests.teachers.file_server import FileServer, files, on_hub, page, scan_page, status, truncated, whole

__all__ = ["files"]

DATA = b"PK\x03\x04" + random.Random(0).randbytes(300_000)
OTHER = b"PK\x03\x04" + random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
HUB = "hf:owner/repo/deep/robust.ckpt"
HUB_FILE = "/owner/repo/resolve/main/deep/robust.ckpt"

# pooch does not close the connection of a failed download.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Capture = pytest.CaptureFixture[str]


def fetch(text: str, *, sha256: str | None = None, fresh: bool = False) -> Path:
    address = parse_address(text)
    with exclusive(address):
        return download(address, sha256=sha256, fresh=fresh)


def refused(text: str, *, sha256: str | None = None) -> str:
    """The error of a download that must fail, and that leaves nothing behind."""
    with pytest.raises(DownloadError) as caught:
        fetch(text, sha256=sha256)
    assert [path.name for path in parse_address(text).folder.iterdir()] == ["lock"]
    message = str(caught.value)
    assert message.startswith(f"{parse_address(text).url}: ")
    return message.removeprefix(f"{parse_address(text).url}: ")


@pytest.mark.parametrize(
    ("text", "canonical", "name"),
    [
        ("gdrive:1-Z_x", "gdrive:1-Z_x", "gdrive-1-Z_x"),
        ("https://drive.google.com/file/d/1-Z_x/view?usp=sharing", "gdrive:1-Z_x", "gdrive-1-Z_x"),
        ("https://drive.google.com/uc?id=1-Z_x", "gdrive:1-Z_x", "gdrive-1-Z_x"),
        ("hf:owner/repo/file.pt", "hf:owner/repo/file.pt", "file.pt"),
        ("hf://owner/repo@v1/deep/file.pt", "hf:owner/repo@v1/deep/file.pt", "file.pt"),
        ("https://huggingface.co/owner/repo/blob/main/a%20b.pt", "hf:owner/repo/a b.pt", "a_b.pt"),
        ("https://huggingface.co/owner/repo/resolve/v1/file.pt", "hf:owner/repo@v1/file.pt", "file.pt"),
        ("https://example.org/..%2F..%2Fa%00b.pt", None, "a_b.pt"),
        ("https://example.org/a%20b.pt?download=1", None, "a_b.pt"),
        ("https://example.org", None, "example.org"),
    ],
)
def test_addresses(text: str, canonical: str | None, name: str) -> None:
    address = parse_address(text)
    assert (address.text, address.file_name) == (canonical or text, name)
    assert parse_address(address.text) == address
    assert re.fullmatch(r"[\w-][\w.-]*", address.folder.name)


@pytest.mark.parametrize(
    "text",
    [
        *("gdrive:", "gdrive:a/b", "hf:owner/file.pt", "ftp://example.org/a.pt", "https://", "https://[a"),
        "https://drive.google.com/drive/folders/1234567890123456789012345",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="gdrive:ID"):
        parse_address(text)


def test_a_file_arrives_complete(files: FileServer, capsys: Capture) -> None:
    files.serve("/there", whole(DATA))
    url = files.serve("/robust.pth", status(302, Location="/there"))
    path = fetch(url)
    assert (path.name, path.read_bytes()) == ("robust.pth", DATA)
    assert sorted(item.name for item in path.parent.iterdir()) == ["lock", "robust.pth"]
    assert f"downloaded robust.pth (300.0 kB): sha256 {SHA256}, recorded" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [status(429), status(503), truncated(DATA)], ids=["429", "503", "truncated"])
def test_transient_errors_are_retried(files: FileServer, capsys: Capture, answer: object) -> None:
    url = files.serve("/a.pt", answer, answer, whole(DATA))  # type: ignore[arg-type]
    assert fetch(url).read_bytes() == DATA
    assert "; retrying in 0.01 s (2 of 2)" in capsys.readouterr().err
    files.serve("/b.pt", answer)  # type: ignore[arg-type]
    refused(files.url("/b.pt"))
    assert files.requests.count("GET /b.pt") == 3


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_other_statuses_are_final(files: FileServer, code: int) -> None:
    url = files.serve("/a.pt", status(code))
    assert str(code) in refused(url)
    assert len(files.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (page("Sign in &amp; accept"), "a web page came instead of the file (Sign in & accept)"),
        (status(200, b"\xef\xbb\xbf <HTML>"), "a web page came instead of the file"),
        (status(200, b'{"error": "quota"}'), 'not a checkpoint; the file starts with \'{"error": "quota"}\''),
        (status(200), "not a checkpoint; the file starts with ''"),
    ],
)
def test_a_page_is_no_checkpoint(files: FileServer, answer: object, message: str) -> None:
    assert refused(files.serve("/a.pt", answer)) == message  # type: ignore[arg-type]
    assert len(files.requests) == 1


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"\x80\x02\x8a\nl\xfc", "a.pt"), (b"\x7b\x00\x00\x00\x00\x00\x00\x00{}", "a.pt.safetensors")],
)
def test_the_suffix_says_how_to_read_the_file(files: FileServer, head: bytes, name: str) -> None:
    assert fetch(files.serve("/a.pt", whole(head))).name == name


def test_an_unreachable_server(files: FileServer) -> None:
    files.stop()
    assert refused(files.url("/a.pt")) == "Connection refused"


def test_the_sha256_is_checked(files: FileServer, capsys: Capture) -> None:
    url = files.serve("/a.pt", whole(OTHER), whole(DATA))
    assert f"has sha256 {hashlib.sha256(OTHER).hexdigest()}, not {SHA256}" in refused(url, sha256=SHA256)
    assert fetch(url, sha256=SHA256).read_bytes() == DATA
    assert f"sha256 {SHA256}, as published" in capsys.readouterr().err


def test_a_complete_download_is_used_again(files: FileServer) -> None:
    url = files.serve("/a.pt", whole(OTHER), whole(DATA))
    assert fetch(url) == fetch(url)
    assert len(files.requests) == 1
    assert fetch(url, sha256=SHA256).read_bytes() == DATA  # what is there is another file
    fetch(url, fresh=True)
    assert len(files.requests) == 3


def test_two_downloads_of_one_file_wait_for_each_other(files: FileServer, capsys: Capture) -> None:
    url = files.serve("/a.pt", whole(DATA))
    paths: list[Path] = []
    thread = threading.Thread(target=lambda: paths.append(fetch(url)))
    with exclusive(parse_address(url)):
        thread.start()
        thread.join(0.2)
        assert files.requests == []
        path = download(parse_address(url))
    thread.join(10)
    assert paths == [path]
    assert files.requests == ["GET /a.pt"]
    assert "another rnascl is downloading" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_no_partial_file(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(self: object, url: str, output_file: str, pooch: None) -> None:
        Path(output_file).write_bytes(DATA[:100])
        raise error

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", fails)
    with pytest.raises((RunError, KeyboardInterrupt)) as caught:
        fetch("http://127.0.0.1:9/a.pt")
    if isinstance(error, OSError):
        assert re.search(r"cannot be written \(No space left on device\).*RNASCL_CACHE", str(caught.value))
    assert [path.name for path in (own_cache / "downloads").glob("*/*")] == ["lock"]


def test_a_folder_that_cannot_be_written(files: FileServer, own_cache: Path) -> None:
    own_cache.touch()
    with pytest.raises(RunError, match="cannot be written"):
        fetch(files.serve("/a.pt", whole(DATA)))
    assert files.requests == []


def test_google_drive(files: FileServer) -> None:
    files.serve("/uc", scan_page(files.url("/download")))
    files.serve("/download", status(503, Content_Disposition="x"), whole(DATA))
    path = fetch("gdrive:1-Z")
    assert (path.name, path.read_bytes()) == ("gdrive-1-Z.pt", DATA)
    attempt = ["GET /uc?id=1-Z", "GET /download?id=1-Z&confirm=t&uuid=u-1"]
    assert files.requests == 2 * attempt


def test_google_drives_pages_are_final(files: FileServer) -> None:
    quota = '<p class="uc-error-subcaption">Too many users have viewed this file recently.</p>'
    files.serve("/uc", page("Google Drive - Quota exceeded", quota))
    assert "Google Drive shows a web page instead of the file (Too many users have" in refused("gdrive:1-Z")
    assert len(files.requests) == 1


def test_the_hub_publishes_the_sha256(files: FileServer, capsys: Capture) -> None:
    files.serve(HUB_FILE, status(503), on_hub(DATA, SHA256))
    path = fetch(HUB)
    assert (path.name, path.read_bytes()) == ("robust.ckpt", DATA)
    assert f"sha256 {SHA256}, as published" in capsys.readouterr().err
    path.unlink()
    files.serve(HUB_FILE, on_hub(OTHER, SHA256))
    assert f"not {SHA256}" in refused(HUB)


@pytest.mark.parametrize("code", [403, 404])
def test_the_hub_without_the_file(files: FileServer, code: int) -> None:
    files.serve(HUB_FILE, status(code, X_Error_Code="EntryNotFound" if code == 404 else ""))
    assert str(code) in refused(HUB)
    assert len(files.requests) == 1


def test_the_page_of_an_address() -> None:
    assert parse_address(HUB).url == "https://huggingface.co/owner/repo/blob/main/deep/robust.ckpt"
    assert parse_address("gdrive:1").url == "https://drive.google.com/uc?id=1"
