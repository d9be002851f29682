"""``search`` through the command line, for each of section 4.3's losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.artifacts.documents import Paradigm, SearchDocument
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.cli.run import EXIT_INTERRUPTED
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.search.step import SearchStep
from rnascl_cli.teachers.load import read_teacher
from tests.command import done, files, refused, rnascl
from tests.stages.interruptions import interrupted

pytestmark = pytest.mark.pipeline

EVERY: tuple[Paradigm, ...] = ("rnas-cl", "icc", "kl", "standard")
TERMS = {"rnas-cl": {"kl", "attention"}, "icc": {"attention"}, "kl": {"kl"}, "standard": set()}
CLOCK = ("seconds", "images_per_second", "peak_memory_bytes")


def numbers(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    return [{name: value for name, value in entry.items() if name not in CLOCK} for entry in history]


@pytest.fixture
def found(searched: dict[str, Path], paradigm: Paradigm) -> SearchDocument:
    """The paradigm's search.json."""
    return read_document(searched[paradigm] / "search.json", SearchDocument)


@pytest.mark.parametrize("paradigm", EVERY)
class TestDocument:
    """search.json, as CONTRACT.md has it."""

    def test_what_was_asked(self, found: SearchDocument, paradigm: Paradigm, tiny_teacher: Path) -> None:
        assert (found.kind, found.space, found.paradigm) == ("search", "S3", paradigm)
        assert (found.num_classes, found.input_size) == (10, 32)
        provenance = found.provenance
        assert (provenance.seed, provenance.device.split()[0], provenance.precision) == (3, "cpu", "fp32")
        assert provenance.data is not None
        assert (provenance.data.spec, provenance.data.limit_train, provenance.data.limit_test) == ("digits", 40, 20)
        assert provenance.data.train_images + provenance.data.holdout_images == 40
        assert provenance.recipe["search"]["epochs"] == 2
        assert provenance.recipe["search"]["optimiser"] == {
            "name": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 2e-4,
        }
        if paradigm == "standard":
            assert provenance.teacher is None
        else:
            assert provenance.teacher is not None
            assert provenance.teacher.sha256 == sha256_file(tiny_teacher)
            assert (provenance.teacher.architecture, provenance.teacher.path) == ("r8", str(tiny_teacher))

    def test_choices_and_logits(self, found: SearchDocument, paradigm: Paradigm) -> None:
        assert [tuple(row) for row in found.width_choices] == SPACES["S3"].block_choices
        assert all(math.isfinite(logit) for row in found.width_logits for logit in row)
        assert any(logit != 0 for row in found.width_logits for logit in row)

    def test_layers_and_tutors(self, found: SearchDocument, paradigm: Paradigm, tiny_teacher: Path) -> None:
        with torch.device("meta"):
            student = Student(SPACES["S3"], SPACES["S3"].smallest, num_classes=10)
        assert found.student_layers == list(attention_layers(student))
        if "attention" in TERMS[paradigm]:
            assert found.teacher_layers == list(attention_layers(read_teacher(str(tiny_teacher)).module))
            assert (len(found.tutor_logits), {len(row) for row in found.tutor_logits}) == (
                len(found.student_layers),
                {len(found.teacher_layers)},
            )
            assert all(any(logit != 0 for logit in row) for row in found.tutor_logits)
        else:
            assert not found.tutor_logits
            assert not found.teacher_layers

    def test_history(self, found: SearchDocument, searched: dict[str, Path], paradigm: Paradigm) -> None:
        lines = (searched[paradigm] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == found.history
        for epoch, entry in enumerate(found.history):
            assert entry["epoch"] == epoch
            contract = {"loss", "ce", "train_accuracy", "temperature", "expected_macs", "lr", *CLOCK}
            assert contract | TERMS[paradigm] <= set(entry)
            assert not ({"kl", "attention"} - TERMS[paradigm]) & set(entry)
            assert all(math.isfinite(value) for value in entry.values())
            assert 0 < entry["n_f"] <= 1
        # Two epochs walk the curve of a hundred: epoch 1 stands where epoch 50 does.
        temperatures = [entry["temperature"] for entry in found.history]
        assert temperatures == pytest.approx([5.0, 5.0 * math.exp(-0.045 * 50)])
        assert found.temperature == temperatures[-1]

    def test_expected_macs(self, found: SearchDocument, paradigm: Paradigm) -> None:
        space = SPACES["S3"]
        low, high = (network_cost(space, widths, num_classes=10).macs for widths in (space.smallest, space.largest))
        assert low < found.expected_macs < high
        assert found.expected_macs == found.history[-1]["expected_macs"]

    def test_what_is_left_in_the_folder(self, searched: dict[str, Path], paradigm: Paradigm) -> None:
        assert set(files(searched[paradigm])) == {"search.json", "metrics.jsonl", "checkpoint.pt"}


def options(tiny_teacher: Path, small: list[object], out: Path) -> list[object]:
    common = ["search", "--space", "S3", "--data", "digits", "--teacher", tiny_teacher]
    return [*common, "--epochs", 2, "--seed", 3, *small, "--out", out]


def test_stdout_is_the_run_directory(tmp_path: Path, tiny_teacher: Path, small: list[object]) -> None:
    outcome = done(*options(tiny_teacher, small, tmp_path / "run"))
    assert outcome.out == f"{tmp_path / 'run'}\n"
    assert "search epoch 1/2" in outcome.err


def test_json_is_the_artifact_and_the_seed_repeats(
    tmp_path: Path, tiny_teacher: Path, small: list[object], searched: dict[str, Path]
) -> None:
    outcome = done(*options(tiny_teacher, small, tmp_path / "run"), "--json")
    assert outcome.out == (tmp_path / "run" / "search.json").read_text()
    again, first = json.loads(outcome.out), json.loads((searched["rnas-cl"] / "search.json").read_text())
    for field in ("width_logits", "tutor_logits", "expected_macs"):
        assert again[field] == first[field]
    assert numbers(again["history"]) == numbers(first["history"])


def test_another_seed_finds_other_logits(
    tmp_path: Path, tiny_teacher: Path, small: list[object], searched: dict[str, Path]
) -> None:
    outcome = done(*options(tiny_teacher, small, tmp_path / "run"), "--seed", 4, "--epochs", 1, "--json")
    first = json.loads((searched["rnas-cl"] / "search.json").read_text())
    assert json.loads(outcome.out)["width_logits"] != first["width_logits"]


def test_ctrl_c_and_resume(
    tmp_path: Path,
    tiny_teacher: Path,
    small: list[object],
    searched: dict[str, Path],
) -> None:
    out = tmp_path / "run"
    arguments = options(tiny_teacher, small, out)
    with interrupted(SearchStep, method="start_epoch", before_call=1):
        outcome = rnascl(*arguments)
    assert outcome.code == EXIT_INTERRUPTED == 130
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert set(files(out)) == {"metrics.jsonl", "checkpoint.pt"}
    done(*arguments, "--resume")
    whole, resumed = (read_document(run / "search.json", SearchDocument) for run in (searched["rnas-cl"], out))
    assert resumed.width_logits == whole.width_logits
    assert resumed.tutor_logits == whole.tutor_logits
    assert numbers(resumed.history) == numbers(whole.history)


@pytest.mark.parametrize(
    "changed", [["--seed", 4], ["--limit-train", 30], ["--set", "attention.gamma=2"], ["--set", "data.augment=none"]]
)
def test_resume_with_other_options_is_refused(
    tmp_path: Path, tiny_teacher: Path, small: list[object], searched: dict[str, Path], changed: list[object]
) -> None:
    out = searched["rnas-cl"]
    before = files(out)
    outcome = rnascl(*options(tiny_teacher, small, out), *changed, "--resume")
    assert outcome.code == 2
    assert "belongs to another recipe, data set or teacher; give the same options" in outcome.err
    assert files(out) == before


def test_force_replaces_the_run(tmp_path: Path, tiny_teacher: Path, small: list[object]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "search.json").write_text("old")
    (out / "attack.json").write_text("of what was here before")
    (out / "notes.txt").write_text("mine")
    done(*options(tiny_teacher, small, out), "--epochs", 1, "--force")
    assert set(files(out)) == {"search.json", "metrics.jsonl", "checkpoint.pt", "notes.txt"}


def test_force_never_replaces_the_run_of_another_stage(tmp_path: Path, tiny_teacher: Path, small: list[object]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "train.json").write_text("hours of work")
    line = refused(*options(tiny_teacher, small, out), "--epochs", 1, "--force")
    assert "holds train.json, the run of another stage; name another folder" in line
    assert set(files(out)) == {"train.json"}
