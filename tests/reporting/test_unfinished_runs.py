"""Unfinished runs and damaged files: the report names them and shows the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.unfinished_runs import describe_journal, read_metrics
from rnascl_cli.reporting.page import build_page, html
from tests.reporting import factories as make
from tests.reporting.test_report_stage import read, undrawn

LINES = [json.dumps({"epoch": epoch, "loss": 2.0 - epoch / 2, "ce": 1.0}) for epoch in range(3)]


def metrics(folder: Path, *lines: str, end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


def journal(folder: Path, *entries: object, end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "attack.partial.jsonl"
    lines = [json.dumps({"header": 1}), *map(json.dumps, entries)]
    path.write_text("\n".join(lines) + "\n" + end, encoding="utf-8")
    return path


def batch(attack: str, *images: int) -> dict[str, object]:
    return {"attack": attack, "eps": "8/255", "round": 0, "images": images, "broken": [], "out_of_ball": 0}


def test_whole_metrics(tmp_path: Path) -> None:
    found = read_metrics(metrics(tmp_path, *LINES))
    assert (len(found.history), found.problems) == (3, ())
    assert found.summary == "3 epochs recorded, last loss 1"


@pytest.mark.parametrize(
    ("lines", "end", "entries", "problem"),
    [
        ([*LINES, '{"epoch": 3, "lo'], "", 3, "line 4 of metrics.jsonl is truncated"),
        ([LINES[0], "x", LINES[1]], "\n", 2, "line 2 of metrics.jsonl is not JSON"),
        ([LINES[0], "[1]"], "\n", 1, "line 2 of metrics.jsonl is not a JSON object"),
        ([LINES[0], '{"epoch": 1, "loss": NaN}'], "\n", 2, "loss is NaN in line 2 of metrics.jsonl"),
        ([LINES[0], '{"epoch": 1, "kl": -Infinity}'], "\n", 2, "kl is infinite in line 2 of metrics.jsonl"),
    ],
    ids=["cut", "no-json", "list", "nan", "infinite"],
)
def test_damaged_metrics(tmp_path: Path, lines: list[str], end: str, entries: int, problem: str) -> None:
    found = read_metrics(metrics(tmp_path, *lines, end=end))
    assert (len(found.history), found.problems) == (entries, (problem,))


def test_many_problems_are_counted(tmp_path: Path) -> None:
    assert read_metrics(metrics(tmp_path, *["x"] * 6)).problems[-1] == "and 3 more"


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00\n")
    assert "not JSON" in read_metrics(tmp_path / "metrics.jsonl").problems[0]


def test_describe_journal(tmp_path: Path) -> None:
    path = journal(tmp_path, batch("fgsm", 0, 1, 2), batch("fgsm", 3), batch("pgd20", 0), end='{"attack": "pg')
    assert describe_journal(path) == "completed: 4 images of fgsm at 8/255, 1 image of pgd20 at 8/255"
    assert describe_journal(journal(tmp_path)) == "no batch completed"


def test_unfinished_runs_are_described(tmp_path: Path) -> None:
    make.write_train(tmp_path / "runs" / "done", student="a")
    metrics(tmp_path / "runs" / "died", *LINES)
    journal(tmp_path / "runs" / "stopped", batch("fgsm", 0, 1))
    (tmp_path / "runs" / "early").mkdir()
    (tmp_path / "runs" / "early" / "checkpoint.pt").write_bytes(b"")
    runs = collect([tmp_path / "runs"])
    assert {found.run: found.state for found in runs.unfinished} == {
        "died": "not finished; 3 epochs recorded, last loss 1",
        "early": "not finished; it contains a checkpoint.pt and no metrics",
        "stopped": "attack not finished; completed: 2 images of fgsm at 8/255",
    }
    page = build_page(runs, draw=undrawn)
    words = read(html(page)).words
    assert "2 unfinished" not in words
    assert "3 unfinished" in words
    assert "curves-died-unfinished" in page.drawn
    for found in runs.unfinished:
        assert f"{found.run}: {found.state}" in page.caveats


def test_an_unfinished_attack_of_a_finished_training(tmp_path: Path) -> None:
    make.write_train(tmp_path / "s3", student="a")
    journal(tmp_path / "s3", batch("aa", 0))
    runs = collect([tmp_path])
    assert runs.unfinished == ()
    assert runs.damaged == ("s3: an attack was started and not finished; completed: 1 image of aa at 8/255",)


def test_damaged_metrics_beside_a_document(tmp_path: Path) -> None:
    make.write_train(tmp_path / "s3", student="a")
    metrics(tmp_path / "s3", LINES[0], "{", end="")
    assert collect([tmp_path]).damaged == (
        "s3: line 2 of metrics.jsonl is truncated; the curves are taken from the run's document",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [('{"kind": "train"', "not a JSON document"), ("{}", "not an rnascl document"), ("", "not a JSON document")],
)
def test_a_damaged_document_is_left_out_and_the_rest_reported(tmp_path: Path, text: str, why: str) -> None:
    make.write_train(tmp_path / "runs" / "good", student="a")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "train.json").write_text(text, encoding="utf-8")
    runs = collect([tmp_path / "runs"])
    assert [found.run for found in runs.artifacts] == ["good"]
    (said,) = runs.damaged
    assert said.startswith("bad: train.json was skipped: ")
    assert why in said
    assert str(tmp_path) not in said
    page = build_page(runs, draw=undrawn)
    assert said in page.caveats
    assert [model.name for model in page.models] == ["good"]


def test_damaged_documents_alone_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "attack.json").write_text('{"kind": "attack", "n": NaN}', encoding="utf-8")
    with pytest.raises(UserError, match=r"bad/attack\.json: not a JSON document \(NaN is not a number"):
        collect([tmp_path])


def test_a_report_of_unfinished_runs_alone(tmp_path: Path) -> None:
    metrics(tmp_path / "runs" / "died", *LINES)
    page = build_page(collect([tmp_path / "runs"]), draw=undrawn)
    assert "died: not finished; 3 epochs recorded, last loss 1" in page.caveats
    assert "robust accuracy is unknown" in read(html(page)).words
