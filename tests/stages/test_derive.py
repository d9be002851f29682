"""``derive``: argmax, one JSON document on stdout, and nothing read that does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.artifacts.documents import DerivedDocument
from rnascl_cli.artifacts.store import parse_document, read_document, sha256_file
from rnascl_cli.distill.tutor_baselines import random_tutors, same_depth_tutors
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.search.derive import argmax, derive
from tests.command import done, files, refused
from tests.conftest import FAST

PARADIGMS = ("rnas-cl", "icc", "kl", "standard")


def changed(source: Path, out: Path, **changes: Any) -> Path:
    """A copy of a run's search.json with other fields."""
    raw = json.loads((source / "search.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    (out / "search.json").write_text(json.dumps(raw | changes))
    return out


@pytest.mark.unit
@pytest.mark.parametrize(
    ("values", "index"),
    [([1.0, 3.0, 2.0], 1), ([2.0, 2.0], 0), ([-5.0], 0), ([-3.0, -1.0, -1.0], 1), ([0, 0, 1e-9], 2)],
)
def test_argmax(values: list[float], index: int) -> None:
    assert argmax(values) == index


@pytest.mark.pipeline
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_stdout_is_one_document_and_the_argmax_of_the_search(searched: dict[str, Path], paradigm: str) -> None:
    source = searched[paradigm]
    before = files(source)
    outcome = done("derive", source)
    assert files(source) == before
    found = parse_document(outcome.out, DerivedDocument, where="stdout")
    raw = json.loads((source / "search.json").read_text())
    widths = [
        choices[logits.index(max(logits))]
        for choices, logits in zip(raw["width_choices"], raw["width_logits"], strict=True)
    ]
    assert found.architecture.widths == widths
    cost = network_cost(SPACES["S3"], widths, num_classes=10)
    assert (found.architecture.params, found.architecture.macs) == (cost.params, cost.macs)
    assert (found.architecture.space, found.architecture.num_classes, found.architecture.input_size) == ("S3", 10, 32)
    assert found.paradigm == paradigm
    if paradigm in ("rnas-cl", "icc"):
        assert found.tutors is not None
        assert found.tutors.tutor == [row.index(max(row)) for row in raw["tutor_logits"]]
        assert found.tutors.student_layers == raw["student_layers"]
        assert found.tutors.teacher_layers == raw["teacher_layers"]
        assert found.tutors.teacher.model_dump() == raw["provenance"]["teacher"]
    else:
        assert found.tutors is None
    assert found.provenance.inputs == {"search.json": sha256_file(source / "search.json")}
    assert found.provenance.data is not None
    assert found.provenance.data.model_dump() == raw["provenance"]["data"]
    assert (found.provenance.seed, found.provenance.recipe) == (3, raw["provenance"]["recipe"])


@pytest.mark.pipeline
def test_no_sampling(searched: dict[str, Path]) -> None:
    one, two = (derive(searched["rnas-cl"]) for _ in range(2))
    assert (one.architecture, one.tutors) == (two.architecture, two.tutors)


@pytest.mark.pipeline
def test_ties_go_to_the_first_and_so_to_the_widest(searched: dict[str, Path], tmp_path: Path) -> None:
    rows = [[0.0] * len(choices) for choices in SPACES["S3"].block_choices]
    source = changed(searched["standard"], tmp_path / "run", width_logits=rows)
    assert derive(source).architecture.widths == SPACES["S3"].largest


@pytest.mark.pipeline
def test_the_file_itself_will_do(searched: dict[str, Path], tmp_path: Path) -> None:
    path = searched["kl"] / "search.json"
    other = tmp_path / "found.json"
    other.write_bytes(path.read_bytes())
    assert derive(other).architecture == derive(path).architecture == derive(path.parent).architecture


@pytest.mark.pipeline
def test_out_writes_a_file_and_nothing_on_stdout(searched: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "d.json"
    assert done("derive", searched["rnas-cl"], "--out", out).out == ""
    first = read_document(out, DerivedDocument)
    before = files(tmp_path)
    assert "already exists; use another name or --force" in refused("derive", searched["rnas-cl"], "--out", out)
    assert files(tmp_path) == before
    outcome = done("derive", searched["icc"], "--out", out, "--force", "--json")
    assert outcome.out == out.read_text()
    assert read_document(out, DerivedDocument).paradigm == "icc" != first.paradigm


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "space": ({"space": "S4"}, "unknown search space 'S4'"),
    "another space": ({"space": "M"}, "width_choices are not those of space M"),
    "choices": ({"width_choices": [[16, 12]] * 9, "width_logits": [[0, 0]] * 9}, "width_choices are not those"),
    "kind": ({"kind": "train"}, "a 'search' document is needed; it is a 'train' document"),
    "version": ({"schema_version": 2}, "schema_version is '2', this rnascl reads 1"),
}


@pytest.mark.pipeline
@pytest.mark.parametrize("case", WRONG)
def test_a_search_that_does_not_fit(searched: dict[str, Path], tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    source = changed(searched["rnas-cl"], tmp_path / "run", **change)
    line = refused("derive", source, "--out", tmp_path / "d.json")
    assert message in line
    assert str(source / "search.json") in line
    assert not (tmp_path / "d.json").exists()


@pytest.mark.pipeline
def test_tutors_without_a_teacher(searched: dict[str, Path], tmp_path: Path) -> None:
    raw = json.loads((searched["rnas-cl"] / "search.json").read_text())
    source = changed(searched["rnas-cl"], tmp_path / "run", provenance=raw["provenance"] | {"teacher": None})
    assert "has tutor_logits but names no teacher" in refused("derive", source)


@pytest.mark.pipeline
def test_no_search_there(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "gone"):
        assert "no search.json there; name a run directory of 'rnascl search'" in refused("derive", source)


def test_a_search_is_never_replaced_by_what_is_derived_from_it(searched: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "run"
    shutil.copytree(searched["standard"], source)
    before = files(source)
    for given in (source, source / "search.json"):
        assert "is the input; name another file" in refused("derive", given, "--out", source / "search.json", "--force")
    assert files(source) == before


@pytest.mark.pipeline
@pytest.mark.parametrize("origin", ["random", "same-depth", "last-layer"])
def test_controls_change_the_tutors_alone(searched: dict[str, Path], origin: str) -> None:
    searched_map = derive(searched["rnas-cl"])
    control = parse_document(
        done("derive", searched["rnas-cl"], "--tutors", origin).out, DerivedDocument, where="stdout"
    )
    assert control.tutors is not None
    assert searched_map.tutors is not None
    assert (searched_map.tutors.origin, control.tutors.origin) == ("searched", origin)
    assert control.architecture == searched_map.architecture
    assert control.paradigm == searched_map.paradigm
    students, teachers = len(control.tutors.student_layers), len(control.tutors.teacher_layers)
    expected = {
        "random": random_tutors(students, teachers, seed=3),  # the search's own seed
        "same-depth": same_depth_tutors(students, teachers),
        "last-layer": [teachers - 1] * students,
    }
    assert control.tutors.tutor == expected[origin]


@pytest.mark.pipeline
def test_tutors_by_hand_come_from_a_file(searched: dict[str, Path], tmp_path: Path) -> None:
    found = derive(searched["icc"]).tutors
    assert found is not None
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(dict.fromkeys(reversed(found.student_layers), found.teacher_layers[0])))
    document = derive(searched["icc"], tutors=str(file))
    assert document.tutors is not None
    assert document.tutors.origin == "by-hand"
    assert document.tutors.tutor == [0] * len(found.student_layers)
    assert document.provenance.inputs["mine.json"] == sha256_file(file)


@pytest.mark.pipeline
def test_tutors_that_do_not_fit_are_refused(searched: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for text, message in (("{", "not a JSON document"), ("[1]", "gives 1 tutors"), ('{"x": 1}', "no layer 'x'")):
        file.write_text(text)
        line = refused("derive", searched["rnas-cl"], "--tutors", file)
        assert message in line
        assert str(file) in line
    assert "did you mean 'same-depth'" in refused("derive", searched["rnas-cl"], "--tutors", "same-dept")
    line = refused("derive", searched["kl"], "--tutors", "random")
    assert "has no tutors; search with --paradigm rnas-cl or icc" in line


@pytest.mark.pipeline
def test_the_origin_goes_on_into_training(searched: dict[str, Path], tmp_path: Path) -> None:
    control = done("derive", searched["icc"], "--tutors", "last-layer").out
    done("train", "-", "--epochs", 1, *FAST, "--out", tmp_path / "run", stdin=control)
    tutors = read_document(tmp_path / "run" / "derived.json", DerivedDocument).tutors
    assert tutors is not None
    assert tutors.origin == "last-layer"


def test_a_map_without_an_origin_was_searched(searched: dict[str, Path], tmp_path: Path) -> None:
    """Documents from before there were controls."""
    raw = json.loads(done("derive", searched["rnas-cl"]).out)
    del raw["tutors"]["origin"]
    (tmp_path / "old.json").write_text(json.dumps(raw))
    tutors = read_document(tmp_path / "old.json", DerivedDocument).tutors
    assert tutors is not None
    assert tutors.origin == "searched"
