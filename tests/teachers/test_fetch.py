"""``rnascl teacher fetch``, from the address to the imported teacher, against a server on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from rnascl_cli.artifacts.store import read_header
from rnascl_cli.cli.app import run
from rnascl_cli.engine.download import Patience, addresses
from rnascl_cli.stages.teacher import fetch
from rnascl_cli.teachers.load import read_teacher, write_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from tests.teachers.conftest import images, random_teacher
from tests.teachers.downloading import SCAN
from tests.teachers.file_server import FileServer, Handler, broken_off, files, page, stalled, status, whole

__all__ = ["files"]

Capture = pytest.CaptureFixture[str]

MIRROR = "/salman/robust/resolve/main/robust.ckpt"


def checkpoint() -> bytes:
    """A checkpoint as others make them: an r8 behind two wrappers."""
    state = random_teacher("r8").state_dict()
    file = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    return file.getvalue()


DATA = checkpoint()
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def world(files: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Google Drive and the Hub on this machine, no patience, and r18 for a network that is small."""
    monkeypatch.setattr(addresses, "DRIVE", files.url("/uc") + "?id={id}")
    monkeypatch.setenv("HF_ENDPOINT", files.url(""))
    monkeypatch.setattr(fetch, "PATIENCE", Patience(connect=2.0, stall=0.2, attempts=2, pause=0.01, redirects=5))
    small = dataclasses.replace(PUBLIC["r18"], architecture="r8")
    monkeypatch.setitem(PUBLIC, "r18", small)
    monkeypatch.setitem(PUBLIC, "r50", dataclasses.replace(small, mirror="hf:salman/robust/robust.ckpt"))
    return files


def fetched(capsys: Capture, *arguments: str) -> tuple[dict[str, object], str]:
    """Run a fetch that must succeed; return its result and what it said."""
    code = run(["teacher", "fetch", *arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report: dict[str, object] = json.loads(captured.out)
    return report, captured.err


def failed(capsys: Capture, *arguments: str, code: int) -> str:
    """Run a fetch that must fail; return the line that says why."""
    assert run(["teacher", "fetch", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("rnascl: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_from_google_drive_to_a_teacher(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    world.serve("/uc", page("Virus scan warning", SCAN.format(action=world.url("/download"))))
    world.serve("/download", stalled(DATA), broken_off(DATA), whole(DATA))
    report, told = fetched(capsys, "r18")
    out = own_cache / "teachers" / "r18.safetensors"
    assert (report["path"], report["architecture"], report["source_sha256"]) == (str(out), "r8", SHA256)
    assert f"downloaded Sehwag2021Proxy_R18.pt: sha256 {SHA256}, recorded" in told
    assert "the server was silent for 0.2 s" in told
    teacher = read_teacher("r18")
    torch.testing.assert_close(teacher.module(images()), random_teacher("r8")(images()), atol=1e-6, rtol=0)
    header = teacher.header
    assert header["source"] == "RobustBench Sehwag2021Proxy_R18"
    assert header["source_sha256"] == SHA256
    assert header["source_file"] == "Sehwag2021Proxy_R18.pt"
    assert header["source_url"] == world.url("/uc?id=1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu")
    assert header["published"]["autoattack"] == 0.5554
    assert not list((own_cache / "downloads").rglob("*.pt"))
    assert not list((own_cache / "downloads").rglob("*.part"))


def test_a_teacher_that_is_here_is_not_fetched_again(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    world.serve("/uc", whole(DATA))
    first, _ = fetched(capsys, "r18")
    asked = len(world.seen)
    again, told = fetched(capsys, "r18")
    assert len(world.seen) == asked
    assert "r18 is here: " in told
    for fact in ("path", "sha256", "architecture", "num_classes", "mean", "std", "source_sha256", "published"):
        assert again[fact] == first[fact]
    fetched(capsys, "r18", "--force")
    assert len(world.seen) > asked


def test_another_teacher_is_not_taken_for_it(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    out = own_cache / "teachers" / "r18.safetensors"
    write_teacher(out, random_teacher("r8"), architecture="r8", num_classes=10, about={"source": "my training"})
    line = failed(capsys, "r18", code=2)
    assert f"--out {out}: already exists and was made from my training; use another name, or --force" in line
    assert world.seen == []
    world.serve("/uc", whole(DATA))
    fetched(capsys, "r18", "--force")
    assert (read_header(out) or {})["source"] == "RobustBench Sehwag2021Proxy_R18"


def test_the_mirror_helps_out(world: FileServer, capsys: Capture) -> None:
    world.serve("/uc", page("Google Drive - Quota exceeded"))
    world.serve(MIRROR, whole(DATA, etag=f'"{SHA256}"'))
    report, told = fetched(capsys, "r50")
    told = " ".join(told.split())
    assert "Quota exceeded" in told
    assert "there is a mirror" in told
    assert f"sha256 {SHA256}, as published" in told
    header = read_header(Path(str(report["path"]))) or {}
    assert header["source_file"] == "robust.ckpt"
    assert header["source_url"] == "https://huggingface.co/salman/robust/blob/main/robust.ckpt"


def test_nobody_gives_it(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    world.serve("/uc", page("Google Drive - Quota exceeded"))
    world.serve(MIRROR, status(500))
    line = failed(capsys, "r50", code=1)
    for part in (
        "rnascl: teacher fetch r50: ",
        "Google Drive - Quota exceeded",
        "https://huggingface.co/salman/robust/blob/main/robust.ckpt: the Hugging Face Hub answers 500, 2 times in a",
        f"Or open {world.url('/uc?id=')}",
        "in a browser and run 'rnascl teacher import FILE --public r50'",
    ):
        assert part in line
    assert not list((own_cache / "teachers").iterdir())


def test_offline(world: FileServer, capsys: Capture) -> None:
    world.server.closing.set()
    world.server.shutdown()
    world.server.server_close()
    line = failed(capsys, "r18", code=1)
    assert f"{world.url('/uc?id=1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu')}: no connection to the server (Conn" in line
    assert "rnascl teacher import FILE --public r18" in line


def test_from_a_link(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    url = world.serve("/mine/robust.pth", whole(DATA))
    report, _ = fetched(
        capsys, url, "--arch", "r8", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3", "--sha256", SHA256.upper()
    )
    assert report["path"] == str(own_cache / "teachers" / "robust.safetensors")
    teacher = read_teacher("robust")
    expected = random_teacher("r8", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    torch.testing.assert_close(teacher.module(images()), expected(images()), atol=1e-6, rtol=0)
    assert teacher.header["source_url"] == url
    asked = len(world.seen)
    assert "is here" in fetched(capsys, url)[1]
    assert len(world.seen) == asked


def test_from_the_hub_with_a_self_test(world: FileServer, tmp_path: Path, capsys: Capture) -> None:
    world.serve(MIRROR, whole(DATA, etag=f'"{SHA256}"'))
    out = tmp_path / "t.safetensors"
    arguments = ["--data", "digits", "--limit-test", "20", "--device", "cpu", "--out", str(out)]
    report, _ = fetched(capsys, "hf:salman/robust/robust.ckpt", *arguments)
    assert report["measured"]["n"] == 20  # type: ignore[index]
    assert report["path"] == str(out)


def test_another_file_than_asked_for(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    url = world.serve("/robust.pth", whole(DATA))
    line = failed(capsys, url, "--arch", "r8", "--sha256", "0" * 64, code=1)
    assert f"the file's sha256 is {SHA256}, not {'0' * 64}" in line
    assert "rnascl teacher import FILE --arch r8" in line
    assert not list((own_cache / "teachers").iterdir())


def test_a_download_that_is_no_teacher_is_kept(world: FileServer, own_cache: Path, capsys: Capture) -> None:
    url = world.serve("/robust.pth", whole(DATA))
    line = failed(capsys, url, "--arch", "r18", code=2)
    assert "the download is whole, but cannot be imported" in line
    (kept,) = (own_cache / "downloads").rglob("robust.pth")
    assert f"rnascl teacher import {kept}" in line
    failed(capsys, url, "--arch", "r18", "--force", code=2)
    assert len(world.seen) == 2  # --force does not trust what is kept
    asked = len(world.seen)
    _, told = fetched(capsys, url, "--arch", "r8")  # the right word this time
    assert "is here from before; it is not downloaded again" in told
    assert len(world.seen) == asked
    assert not kept.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r19"], "no public teacher 'r19'; did you mean 'r18'? (known: "),
        (["r19"], "or write https://..., hf:OWNER/REPO/FILE or gdrive:ID"),
        (["ftp://example.org/a.pt"], "not an address to download from"),
        (["r18", "--sha256", "abc"], "--sha256 abc: write 64 hexadecimal digits"),
        (["r18", "--out", "t.pt"], "--out t.pt: a teacher file ends in .safetensors"),
        (["r18", "--mean", "0,0,0"], "--mean and --std must be given together"),
        (["r18", "--data", "digitz"], "unknown data set 'digitz'"),
    ],
)
def test_what_is_refused_before_any_request(
    world: FileServer, own_cache: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert message in failed(capsys, *arguments, code=2)
    assert world.seen == []
    assert not own_cache.exists()


def test_a_file_that_is_here_is_for_import(world: FileServer, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.pt").touch()
    assert f"run 'rnascl teacher import {tmp_path / 'a.pt'}'" in failed(capsys, str(tmp_path / "a.pt"), code=2)


def test_an_out_that_cannot_be_written_costs_no_download(world: FileServer, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    line = failed(capsys, "r18", "--out", str(tmp_path / "file" / "t.safetensors"), code=1)
    assert f"{tmp_path / 'file'}: cannot be written" in line
    assert world.seen == []


def test_ctrl_c_keeps_what_has_arrived(
    world: FileServer, own_cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press() -> None:
        for _ in range(500):
            if any(part.stat().st_size for part in (own_cache / "downloads").rglob("*.part")):
                break
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(fetch, "PATIENCE", Patience(connect=2.0, stall=5.0, attempts=1))
    try:
        url = world.serve("/robust.pth", stalled(DATA, then=press), whole(DATA))
        assert run(["teacher", "fetch", url]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    (part,) = (own_cache / "downloads").rglob("*.part")
    told = " ".join(capsys.readouterr().err.split())
    assert "have arrived and are kept; the same command goes on from there" in told
    assert 0 < part.stat().st_size < len(DATA)
    begin = part.stat().st_size
    fetched(capsys, url)
    assert world.ranges == [None, f"bytes={begin}-"]


def test_two_fetches_at_once_share_one_download(world: FileServer, own_cache: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(handler: Handler) -> None:
        begun.set()
        go_on.wait(10)
        whole(DATA)(handler)

    url = world.serve("/robust.pth", slowly)
    patient = Patience(connect=5.0, stall=10.0)
    results = []

    def fetch_once() -> None:
        results.append(fetch.fetch_teacher(url, own_cache / "t.safetensors", architecture="r8"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "PATIENCE", patient)
        threads = [threading.Thread(target=fetch_once) for _ in range(2)]
        threads[0].start()
        assert begun.wait(10)
        threads[1].start()
        threads[1].join(0.2)
        assert threads[1].is_alive()  # it waits
        go_on.set()
        for thread in threads:
            thread.join(20)
    assert len(results) == 2
    assert results[0].sha256 == results[1].sha256
    assert len(world.seen) == 1


def test_every_public_teacher_has_addresses_that_can_be_read() -> None:
    for name in PUBLIC:
        pages = [address.page for address, _ in fetch.fetch_request(name).addresses]
        assert pages[0] == PUBLIC[name].url
        if name in ("wrt50", "imagenet-r18", "imagenet-r50"):
            (mirror,) = pages[1:]
            assert mirror.startswith("https://huggingface.co/madrylab/robust-imagenet-models/blob/3f04ac96")
            assert mirror.endswith("_linf_eps4.0.ckpt")
