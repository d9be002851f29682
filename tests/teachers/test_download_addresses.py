"""Where a file is, and what is no file: Google Drive, the Hugging Face Hub, links, pages in place of weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.download import addresses, parse_address
from rnascl_cli.engine.download.addresses import Drive, Hub, Link
from rnascl_cli.engine.download.pages import is_checkpoint, what_came_instead
from tests.teachers.downloading import DATA, OTHER, SCAN, SHA256, fetch, refused
from tests.teachers.file_server import STALL_AT, FileServer, broken_off, files, page, redirect, status, whole

__all__ = ["files"]

REST = f"bytes={STALL_AT}-"


@pytest.mark.parametrize(
    ("head", "instead"),
    [
        (b"PK\x03\x04rest", None),
        (b"\x80\x02\x8a\nl\xfc", None),
        (b"\x7b\x00\x00\x00\x00\x00\x00\x00{}", None),  # safetensors with a header of 123 bytes: "{" comes first
        (b"", "an empty file came"),
        (b'{"error": "quota"}', 'a message came instead of the file: {"error": "quota"}'),
        (b"\xef\xbb\xbf <HTML>", "a web page came instead of the file"),
        (b"too many\nrequests", "what came is no checkpoint; it starts with 'too many requests'"),
    ],
)
def test_what_a_checkpoint_starts_with(head: bytes, instead: str | None) -> None:
    assert what_came_instead(head) == instead
    assert is_checkpoint(head) == (instead is None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("gdrive:1-Z_x", Drive("1-Z_x")),
        ("https://drive.google.com/file/d/1-Z_x/view?usp=sharing", Drive("1-Z_x")),
        ("https://drive.google.com/uc?id=1-Z_x", Drive("1-Z_x")),
        ("hf:owner/repo/file.pt", Hub("owner/repo", "file.pt")),
        ("hf:owner/repo@v1/deep/file.pt", Hub("owner/repo", "deep/file.pt", "v1")),
        ("hf://owner/repo/file.pt", Hub("owner/repo", "file.pt")),
        ("https://huggingface.co/owner/repo/blob/main/a%20b.pt", Hub("owner/repo", "a b.pt")),
        ("https://huggingface.co/owner/repo/resolve/v1/deep/file.pt", Hub("owner/repo", "deep/file.pt", "v1")),
        ("https://example.org/..%2F..%2Fa%00b.pt", Link("https://example.org/..%2F..%2Fa%00b.pt")),
        ("https://example.org/a%20b.pt?download=1", Link("https://example.org/a%20b.pt?download=1")),
    ],
)
def test_addresses(text: str, address: Drive | Hub | Link) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert re.fullmatch(r"[\w-][\w.-]*", address.file_name)  # nothing that could lead out of a folder


@pytest.mark.parametrize(
    "text",
    [
        "gdrive:",
        "gdrive:a/b",
        "hf:owner/file.pt",
        "ftp://example.org/a.pt",
        "https://",
        "https://drive.google.com/drive/folders/1234567890123456789012345",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="gdrive:ID"):
        parse_address(text)


@pytest.fixture
def drive(files: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A server that stands for Google Drive."""
    monkeypatch.setattr(addresses, "DRIVE", files.url("/uc") + "?id={id}")
    return files


def test_google_drive_gives_small_files_at_once(drive: FileServer, tmp_path: Path) -> None:
    drive.serve("/uc", redirect("/download?id=1-Z"))
    drive.serve("/download", whole(DATA, Content_Disposition='attachment; filename="x.pt"'))
    got = fetch(tmp_path, "gdrive:1-Z")
    assert (got.data, got.name) == (DATA, "gdrive-1-Z.pt")


def test_google_drive_asks_about_large_files(drive: FileServer, tmp_path: Path) -> None:
    scan = page("Google Drive - Virus scan warning", SCAN.format(action=drive.url("/download")))
    drive.serve("/uc", scan)
    drive.serve("/download", broken_off(DATA), whole(DATA))
    assert fetch(tmp_path, "gdrive:1-Z").data == DATA
    # The page's token is asked for anew, as it may be stale by then.
    assert [seen.path for seen in drive.seen] == 2 * ["/uc?id=1-Z", "/download?id=1-Z&confirm=t&uuid=u-1"]
    assert drive.ranges == [None, None, None, REST]


def test_google_drive_s_quota_is_final(drive: FileServer, tmp_path: Path) -> None:
    told = '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Later.</p>'
    drive.serve("/uc", page("Google Drive - Quota exceeded", told))
    message = refused(tmp_path, "gdrive:1-Z")
    assert "Google Drive shows a page instead of the file (Google Drive - Quota exceeded: Too many users" in message
    assert len(drive.seen) == 1


def test_google_drive_without_the_file(drive: FileServer, tmp_path: Path) -> None:
    drive.serve("/uc", status(503), status(404, b"<title>Error 404 (Not Found)!!1</title>"))
    assert refused(tmp_path, "gdrive:1-Z") == "the server answers 404 Not Found (Error 404 (Not Found)!!1)"
    assert len(drive.seen) == 2  # the first answer might have passed


def test_a_page_behind_google_drive_s_page_is_noticed(drive: FileServer, tmp_path: Path) -> None:
    drive.serve("/uc", page("Virus scan warning", SCAN.format(action=drive.url("/download"))))
    drive.serve("/download", page("Sign in"))
    assert refused(tmp_path, "gdrive:1-Z") == "a web page came instead of the file (Sign in)"


HUB_FILE = "/owner/repo/resolve/main/deep/robust.ckpt"


@pytest.fixture
def hub(files: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A server that stands for the Hugging Face Hub."""
    monkeypatch.setenv("HF_ENDPOINT", files.url(""))
    return files


def test_the_hub_knows_size_and_sha256(hub: FileServer, tmp_path: Path) -> None:
    hub.serve(HUB_FILE, whole(DATA, etag=f'"{SHA256}"', X_Repo_Commit="c" * 40))
    assert fetch(tmp_path, "hf:owner/repo/deep/robust.ckpt") == (DATA, "robust.ckpt", SHA256, True)
    assert [seen.method for seen in hub.seen if seen.path == HUB_FILE] == ["HEAD", "GET"]
    hub.serve(HUB_FILE, whole(OTHER, etag=f'"{SHA256}"'))
    assert f"not {SHA256}" in refused(tmp_path, "hf:owner/repo/deep/robust.ckpt")


def test_the_hub_without_the_file(hub: FileServer, tmp_path: Path) -> None:
    hub.serve(HUB_FILE, status(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found"))
    assert refused(tmp_path, "hf:owner/repo/deep/robust.ckpt").startswith("the Hugging Face Hub: 404")
    hub.serve(HUB_FILE, status(403))
    assert refused(tmp_path, "hf:owner/repo/deep/robust.ckpt") == "the Hugging Face Hub answers 403"
    assert len([seen for seen in hub.seen if seen.path == HUB_FILE]) == 2


def test_the_hub_when_it_is_busy(hub: FileServer, tmp_path: Path) -> None:
    hub.serve(HUB_FILE, status(503), whole(DATA, etag=f'"{SHA256}"'))
    assert fetch(tmp_path, "hf:owner/repo/deep/robust.ckpt").checked
