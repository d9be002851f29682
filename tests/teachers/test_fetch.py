"""``rnascl teacher fetch``, from the address to the imported teacher, against a server on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.artifacts.store import read_header
from rnascl_cli.stages.teacher import fetch
from rnascl_cli.teachers.download import exclusive, parse_address
from rnascl_cli.teachers.load import read_teacher, write_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from tests.command import done, refused, rnascl
from tests.teachers.conftest import images, random_teacher
from tests.teachers.file_server import FileServer, files, on_hub, page, scan_page, status, whole

__all__ = ["files"]

DRIVE = "https://drive.google.com/uc?id=1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu"
MIRROR = "/salman/robust/resolve/main/robust.ckpt"
MIRROR_PAGE = "https://huggingface.co/salman/robust/blob/main/robust.ckpt"


def checkpoint() -> bytes:
    """A public checkpoint: the state dict of an r8 in two wrappers."""
    state = random_teacher("r8").state_dict()
    file = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    return file.getvalue()


DATA = checkpoint()
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def small_public_teachers(files: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public teachers of a small architecture: r18 on Google Drive, r50 also on a mirror."""
    small = dataclasses.replace(PUBLIC["r18"], architecture="r8")
    monkeypatch.setitem(PUBLIC, "r18", small)
    monkeypatch.setitem(PUBLIC, "r50", dataclasses.replace(small, mirror="hf:salman/robust/robust.ckpt"))


def fetched(*arguments: object) -> tuple[dict[str, Any], str]:
    """Run a fetch that must succeed; return its result and its messages."""
    outcome = done("teacher", "fetch", *arguments, "--json")
    return json.loads(outcome.out), " ".join(outcome.err.split())


def failed(*arguments: object) -> str:
    """Run a fetch that must fail while running (exit 1); return its messages."""
    outcome = rnascl("teacher", "fetch", *arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback" not in outcome.err
    return outcome.err.splitlines()[-1]


def test_from_google_drive(files: FileServer, own_cache: Path) -> None:
    files.serve("/uc", scan_page(files.url("/download")))
    files.serve("/download", status(503, Content_Disposition="x"), whole(DATA))
    report, messages = fetched("r18")
    out = own_cache / "teachers" / "r18.safetensors"
    assert (report["path"], report["architecture"], report["source_sha256"]) == (str(out), "r8", SHA256)
    assert f"sha256 {SHA256}, recorded" in messages
    teacher = read_teacher("r18")
    torch.testing.assert_close(teacher.module(images()), random_teacher("r8")(images()), atol=1e-6, rtol=0)
    header = teacher.header
    assert (header["source"], header["source_url"]) == ("RobustBench Sehwag2021Proxy_R18", DRIVE)
    assert (header["source_file"], header["source_sha256"]) == ("Sehwag2021Proxy_R18.pt", SHA256)
    assert header["published"]["autoattack"] == 0.5554
    assert [path.name for path in (own_cache / "downloads").glob("*/*")] == ["lock"]


def test_an_existing_teacher_is_not_fetched_again(files: FileServer, own_cache: Path) -> None:
    files.serve("/uc", whole(DATA))
    first, _ = fetched("r18")
    again, messages = fetched("r18")
    assert len(files.requests) == 1
    assert "r18 exists already: " in messages
    for fact in ("path", "sha256", "architecture", "num_classes", "mean", "std", "source_sha256", "published"):
        assert again[fact] == first[fact]
    fetched("r18", "--force")
    assert len(files.requests) == 2


def test_another_teacher_is_replaced_with_force_only(files: FileServer, own_cache: Path) -> None:
    out = own_cache / "teachers" / "r18.safetensors"
    write_teacher(out, random_teacher("r8"), architecture="r8", num_classes=10, about={"source": "my training"})
    line = refused("teacher", "fetch", "r18")
    assert f"--out {out}: already exists and was made from my training; use another name, or --force" in line
    assert files.requests == []
    files.serve("/uc", whole(DATA))
    fetched("r18", "--force")
    assert (read_header(out) or {})["source"] == "RobustBench Sehwag2021Proxy_R18"


def test_the_mirror(files: FileServer) -> None:
    files.serve("/uc", page("Google Drive - Quota exceeded"))
    files.serve(MIRROR, on_hub(DATA, SHA256))
    report, messages = fetched("r50")
    assert "Google Drive shows a web page instead of the file" in messages
    assert "trying the mirror" in messages
    assert f"sha256 {SHA256}, as published" in messages
    header = read_header(Path(report["path"])) or {}
    assert (header["source_file"], header["source_url"]) == ("robust.ckpt", MIRROR_PAGE)


def test_no_address_has_the_file(files: FileServer, own_cache: Path) -> None:
    files.serve("/uc", page("Google Drive - Quota exceeded"))
    files.serve(MIRROR, status(404))
    line = failed("r50")
    assert line.startswith(f"rnascl: teacher fetch r50: {DRIVE}: Google Drive shows a web page")
    assert f"; {MIRROR_PAGE}: Client error '404 Not Found'. Check the network" in line
    assert f"or open {DRIVE} in a browser and run 'rnascl teacher import FILE --public r50'" in line
    assert not list((own_cache / "teachers").iterdir())


def test_offline(files: FileServer) -> None:
    files.stop()
    line = failed("r18")
    assert f"{DRIVE}: Connection refused. Check the network connection" in line
    assert "rnascl teacher import FILE --public r18" in line


def test_from_a_link(files: FileServer, own_cache: Path) -> None:
    url = files.serve("/mine/robust.pth", whole(DATA))
    constants = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3")
    report, _ = fetched(url, "--arch", "r8", *constants, "--sha256", SHA256.upper())
    assert report["path"] == str(own_cache / "teachers" / "robust.safetensors")
    teacher = read_teacher("robust")
    expected = random_teacher("r8", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    torch.testing.assert_close(teacher.module(images()), expected(images()), atol=1e-6, rtol=0)
    assert teacher.header["source_url"] == url
    assert "exists already" in fetched(url)[1]
    assert len(files.requests) == 1


def test_from_the_hub_with_a_self_test(files: FileServer, tmp_path: Path) -> None:
    files.serve(MIRROR, on_hub(DATA, SHA256))
    out = tmp_path / "t.safetensors"
    options = ("--data", "digits", "--limit-test", 20, "--device", "cpu", "--out", out)
    report, _ = fetched("hf:salman/robust/robust.ckpt", *options)
    assert (report["measured"]["n"], report["path"]) == (20, str(out))


def test_a_checkpoint_that_cannot_be_imported_is_kept(files: FileServer, own_cache: Path) -> None:
    url = files.serve("/robust.pth", whole(DATA))
    outcome = rnascl("teacher", "fetch", url, "--arch", "r18")
    assert outcome.code == 2
    assert "downloaded, but it cannot be imported" in outcome.err
    (kept,) = (own_cache / "downloads").rglob("robust.pth")
    assert f"rnascl teacher import {kept}" in " ".join(outcome.err.split())
    assert "was downloaded before and is used" in fetched(url, "--arch", "r8")[1]
    assert len(files.requests) == 1
    assert not kept.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r19"], "no public teacher 'r19'; did you mean 'r18'? (known: "),
        (["r19"], "or write https://..., hf:OWNER/REPO/FILE or gdrive:ID"),
        (["ftp://example.org/a.pt"], "not the address of a file to download"),
        (["r18", "--sha256", "abc"], "--sha256 abc: write 64 hexadecimal digits"),
        (["r18", "--out", "t.pt"], "--out t.pt: a teacher file ends in .safetensors"),
        (["r18", "--mean", "0,0,0"], "--mean and --std must be given together"),
        (["r18", "--data", "digitz"], "unknown data set 'digitz'"),
        ([__file__], f"run 'rnascl teacher import {__file__}'"),
    ],
)
def test_bad_arguments_are_refused_before_any_request(
    files: FileServer, own_cache: Path, arguments: list[str], message: str
) -> None:
    assert message in refused("teacher", "fetch", *arguments)
    assert files.requests == []
    assert not own_cache.exists()


def test_an_out_that_cannot_be_written_costs_no_download(files: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: cannot be written" in failed("r18", "--out", tmp_path / "file" / "t.safetensors")
    assert files.requests == []


def test_two_fetches_share_one_download(files: FileServer, own_cache: Path) -> None:
    url = files.serve("/robust.pth", whole(DATA))
    results: list[str] = []

    def fetch_once() -> None:
        results.append(fetch.fetch_teacher(url, own_cache / "t.safetensors", architecture="r8").sha256)

    threads = [threading.Thread(target=fetch_once) for _ in range(2)]
    with exclusive(parse_address(url)):  # until both wait
        for thread in threads:
            thread.start()
            thread.join(0.2)
    for thread in threads:
        thread.join(20)
    assert len(results) == 2
    assert results[0] == results[1]
    assert files.requests == ["GET /robust.pth"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_teachers_have_addresses(name: str) -> None:
    drive, *mirrors = [address.url for address, _ in fetch.fetch_request(name).addresses]
    assert drive == PUBLIC[name].url
    if name in ("wrt50", "imagenet-r18", "imagenet-r50"):
        (mirror,) = mirrors
        assert mirror.startswith("https://huggingface.co/madrylab/robust-imagenet-models/blob/3f04ac96")
        assert mirror.endswith("_linf_eps4.0.ckpt")
