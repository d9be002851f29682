"""One file by HTTP, from a server on this machine that stalls, breaks off, redirects and shows pages instead."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from rnascl_cli.core import progress
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.engine.download import DownloadError, Patience, downloaded, parse_address
from tests.teachers.downloading import DATA, OTHER, QUICK, SHA256, Got, fetch, parts, refused, said
from tests.teachers.file_server import (
    ETAG,
    STALL_AT,
    Answer,
    FileServer,
    Handler,
    broken_off,
    files,
    page,
    redirect,
    stalled,
    status,
    whole,
)

__all__ = ["files"]

Capture = pytest.CaptureFixture[str]
REST = f"bytes={STALL_AT}-"


def test_a_file_arrives_whole(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/robust.pth", whole(DATA))
    assert fetch(tmp_path, url) == (DATA, "robust.pth", SHA256, False)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "record.json"]
    record = json.loads((folder / "record.json").read_text())
    assert (record["address"], record["sha256"], record["size"]) == (url, SHA256, len(DATA))
    assert files.ranges == [None]


def test_a_stall_is_gone_on_from(files: FileServer, tmp_path: Path, capsys: Capture) -> None:
    url = files.serve("/a.pt", stalled(DATA), whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges == [None, REST]
    assert files.seen[1].headers["If-Range"] == '"one"'
    assert "the server was silent for 0.2 s; trying again in 0.01 s" in said(capsys)


def test_a_stall_without_end_is_given_up(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", stalled(DATA, at=0))
    begun = time.monotonic()
    assert refused(tmp_path, url) == "the server was silent for 0.2 s, 3 times in a row"
    assert time.monotonic() - begun < 3.0
    assert len(files.seen) == 3


def test_attempts_are_counted_from_the_last_new_byte(files: FileServer, tmp_path: Path) -> None:
    def some_more(step: int) -> Answer:
        start = step * 2**16
        rest = {"Content_Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}", "ETag": ETAG}
        return lambda handler: handler.send(206, DATA[start : start + 2**16], length=len(DATA) - start, headers=rest)

    # Four broken connections are one more than QUICK bears in a row, but each has brought something.
    url = files.serve("/a.pt", broken_off(DATA, 2**16), *(some_more(step) for step in (1, 2, 3)), whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges == [None, *(f"bytes={step * 2**16}-" for step in (1, 2, 3, 4))]


def test_a_truncated_file_is_noticed_and_gone_on_with(files: FileServer, tmp_path: Path, capsys: Capture) -> None:
    url = files.serve("/a.pt", broken_off(DATA), whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges == [None, REST]
    assert "; trying again in 0.01 s" in said(capsys)


def test_what_arrived_is_kept_for_the_next_command(files: FileServer, tmp_path: Path, capsys: Capture) -> None:
    url = files.serve("/a.pt", broken_off(DATA), status(503))
    assert "the server answers 503" in refused(tmp_path, url)
    assert parts(tmp_path) == [STALL_AT]
    files.serve("/a.pt", whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges[-1] == REST
    assert "going on behind the 131.1 kB that are here" in said(capsys)


def test_a_server_without_ranges_is_asked_from_the_beginning(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), whole(DATA, ranges=False))
    assert fetch(tmp_path, url).data == DATA


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA))
    assert "3 times in a row" in refused(tmp_path, url)
    assert len(files.seen) == 4  # the first brought something, the others nothing new


def test_without_etag_a_file_of_another_size_is_not_gone_on_with(files: FileServer, tmp_path: Path) -> None:
    longer = OTHER + b"more"
    url = files.serve("/a.pt", broken_off(DATA, etag=None), whole(longer, etag=None))
    assert fetch(tmp_path, url).data == longer
    assert files.ranges == [None, REST, None]


def test_a_file_that_changed_meanwhile_is_taken_anew(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), whole(OTHER, etag='"two"'))
    assert fetch(tmp_path, url).data == OTHER
    assert files.ranges == [None, REST]


def test_a_changed_file_is_noticed_where_if_range_is_ignored(files: FileServer, tmp_path: Path) -> None:
    rest = status(206, OTHER[STALL_AT:], ETag='"two"', Content_Range=f"bytes {STALL_AT}-{len(OTHER) - 1}/{len(OTHER)}")
    url = files.serve("/a.pt", broken_off(DATA), rest, whole(OTHER, etag='"two"'))
    assert fetch(tmp_path, url).data == OTHER
    assert files.ranges == [None, REST, None]


@pytest.mark.parametrize("content_range", ["bytes 7-168938/300004", "nonsense"])
def test_a_wrong_range_is_not_believed(files: FileServer, tmp_path: Path, content_range: str) -> None:
    missing = len(DATA) - STALL_AT
    url = files.serve(
        "/a.pt",
        broken_off(DATA),
        status(206, DATA[7 : 7 + missing], Content_Range=content_range),  # just as many bytes as are missing
        whole(DATA),
    )
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges == [None, REST, None]


def whole_part(folder: Path, url: str, data: bytes) -> None:
    """Leave all of a file under way, as if we had been stopped before it was put in place."""
    with pytest.raises(DownloadError):
        fetch(folder, url)
    (part,) = folder.glob("*/file.part")
    part.write_bytes(data)


def test_416_at_the_end_of_the_file_means_that_it_is_whole(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), status(404))
    whole_part(tmp_path, url, DATA)
    files.serve("/a.pt", whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges[-1] == f"bytes={len(DATA)}-"


def test_416_elsewhere_means_another_file(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), status(404))
    whole_part(tmp_path, url, DATA + b"too much")
    files.serve("/a.pt", whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges[-1] is None


def test_redirects_are_followed(files: FileServer, tmp_path: Path) -> None:
    files.serve("/there/robust.pt", whole(DATA))
    files.serve("/2", redirect("/there/robust.pt"))
    files.serve("/1", redirect(files.url("/2")))
    url = files.serve("/a.pt", redirect("/1"))
    assert fetch(tmp_path, url).data == DATA
    assert [seen.path for seen in files.seen] == ["/a.pt", "/1", "/2", "/there/robust.pt"]


def test_redirects_without_end_are_given_up_at_once(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", redirect("/a.pt"))
    assert refused(tmp_path, url) == "the address redirects without end"
    assert len(files.seen) == QUICK.redirects + 1


@pytest.mark.parametrize("content_type", ["text/html", "application/octet-stream"])
def test_a_page_is_no_checkpoint(files: FileServer, tmp_path: Path, content_type: str) -> None:
    url = files.serve("/a.pt", page("Sign in &amp; accept", content_type=content_type))
    assert refused(tmp_path, url) == "a web page came instead of the file (Sign in & accept)"
    assert len(files.seen) == 1
    assert parts(tmp_path) == []


def test_a_page_does_not_cost_what_is_here(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), page("Quota exceeded"))
    assert "Quota exceeded" in refused(tmp_path, url)
    assert parts(tmp_path) == [STALL_AT]


@pytest.mark.parametrize("code", [401, 403, 404, 410, 204])
def test_some_answers_are_final(files: FileServer, tmp_path: Path, code: int) -> None:
    url = files.serve("/a.pt", status(code, b"<title>No such thing</title>" if code != 204 else b""))
    answer = refused(tmp_path, url)
    assert answer.startswith(f"the server answers {code}")
    assert ("(No such thing)" in answer) == (code != 204)
    assert len(files.seen) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_some_answers_may_pass(files: FileServer, tmp_path: Path, capsys: Capture, code: int) -> None:
    url = files.serve("/a.pt", status(code), status(code, Retry_After="0"), whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"the server answers {code} ")
    assert [line.partition("; ")[2] for line in lines] == [
        "trying again in 0.01 s (1 of 2)",
        "trying again in 0 s (2 of 2)",  # as the server asked
    ]


def test_an_empty_file_is_none(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", status(200))
    assert refused(tmp_path, url) == "the server sent an empty file, 3 times in a row"


def test_nobody_there(files: FileServer, tmp_path: Path) -> None:
    url = files.url("/a.pt")
    files.server.closing.set()
    files.server.shutdown()
    files.server.server_close()
    assert refused(tmp_path, url) == "no connection to the server (Connection refused), 3 times in a row"


def test_the_sha256_is_checked(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", whole(OTHER))
    message = refused(tmp_path, url, sha256=SHA256)
    assert hashlib.sha256(OTHER).hexdigest() in message
    assert f"not {SHA256}" in message
    assert parts(tmp_path) == []
    files.serve("/a.pt", whole(DATA))
    assert fetch(tmp_path, url, sha256=SHA256).checked


def test_a_wrong_beginning_is_not_the_end(files: FileServer, tmp_path: Path) -> None:
    # The same size and no ETag: only the sha256 tells that the beginning is another file's.
    url = files.serve("/a.pt", broken_off(OTHER, etag=None), status(404))
    refused(tmp_path, url)
    files.serve("/a.pt", whole(DATA, etag=None))
    assert fetch(tmp_path, url, sha256=SHA256).data == DATA
    assert files.ranges[-2:] == [REST, None]


def test_a_file_that_changed_upstream_is_a_warning(files: FileServer, tmp_path: Path, capsys: Capture) -> None:
    url = files.serve("/a.pt", whole(DATA))
    fetch(tmp_path, url)
    assert "warning" not in said(capsys)
    fetch(tmp_path, url)
    assert "warning" not in said(capsys)
    files.serve("/a.pt", whole(OTHER))
    fetch(tmp_path, url)
    assert f"its sha256 was {SHA256} and is {hashlib.sha256(OTHER).hexdigest()}" in said(capsys)


def test_a_file_whose_use_failed_is_kept(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", whole(DATA))
    with pytest.raises(UserError), downloaded(parse_address(url), tmp_path, patience=QUICK):
        raise UserError("no teacher")
    files.serve("/a.pt", status(500))
    (kept,) = tmp_path.glob("*/a.pt")
    with downloaded(parse_address(url), tmp_path, patience=QUICK) as file:
        assert file.path == kept
    assert len(files.seen) == 1
    assert not kept.exists()


def test_two_downloads_of_one_file_do_not_mix(files: FileServer, tmp_path: Path, capsys: Capture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(handler: Handler) -> None:
        begun.set()
        go_on.wait(10)
        whole(DATA)(handler)

    url = files.serve("/a.pt", slowly)
    got: list[Got] = []

    def one() -> None:
        with downloaded(parse_address(url), tmp_path, patience=Patience(stall=10.0)) as file:
            got.append(Got(file.path.read_bytes(), file.path.name, file.sha256, file.checked))

    threads = [threading.Thread(target=one) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert len(files.seen) == 1  # the second waits
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert [one.data for one in got] == [DATA, DATA]
    assert "another rnascl is fetching" in said(capsys)


def test_a_kept_file_that_was_damaged_is_not_used(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", whole(DATA))
    with pytest.raises(UserError), downloaded(parse_address(url), tmp_path, patience=QUICK):
        raise UserError("no teacher")
    (kept,) = tmp_path.glob("*/a.pt")
    kept.write_bytes(DATA[:-1])
    assert fetch(tmp_path, url).data == DATA
    assert len(files.seen) == 2


def test_fresh_downloads_a_kept_file_again(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", whole(DATA))
    with pytest.raises(UserError), downloaded(parse_address(url), tmp_path, patience=QUICK):
        raise UserError("no teacher")
    fetch(tmp_path, url, fresh=True)
    assert len(files.seen) == 2


def test_a_lost_record_means_from_the_beginning(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), status(404))
    refused(tmp_path, url)
    (record,) = tmp_path.glob("*/record.json")
    record.write_text("{")
    files.serve("/a.pt", whole(DATA))
    assert fetch(tmp_path, url).data == DATA
    assert files.ranges[-1] is None


def test_a_disk_without_room_is_noticed_beforehand(
    files: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = files.serve("/a.pt", whole(DATA))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(RunError, match=r"300\.0 kB more are needed and 1\.0 kB are free; make room, or let RNASCL_CA"):
        fetch(tmp_path, url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_one_line(files: FileServer, tmp_path: Path) -> None:
    url = files.serve("/a.pt", broken_off(DATA), status(404))
    refused(tmp_path, url)
    (part,) = tmp_path.glob("*/file.part")
    part.unlink()
    part.symlink_to("/dev/full")
    files.serve("/a.pt", whole(DATA))
    with pytest.raises(RunError, match="cannot be written \\(No space left on device\\)"):
        fetch(tmp_path, url)


def test_a_folder_that_cannot_be_written_is_one_line(files: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        fetch(tmp_path / "file" / "downloads", files.serve("/a.pt", whole(DATA)))
    assert files.seen == []


def test_the_bar_shows_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    monkeypatch.setattr(progress, "stderr", console)
    with progress.byte_progress("robust") as show:
        show(150_000, 300_000)
    bar = console.export_text()
    assert "robust" in bar
    assert "150.0/300.0 kB" in bar


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    with progress.byte_progress("robust") as show:
        show(100_000, 300_000)
        monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
        show(150_000, 300_000)
        show(160_000, None)
    assert capsys.readouterr().err.splitlines() == ["robust: 150.0 kB of 300.0 kB", "robust: 160.0 kB"]
