"""``adv-finetune`` through the command line: what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rnascl_cli import load
from rnascl_cli.artifacts.documents import AdvFinetuneDocument
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.data import load_data
from rnascl_cli.recipes.settings import DataSettings
from rnascl_cli.stages.training.step import StudentStep
from tests.command import done, files, refused, rnascl
from tests.conftest import FAST
from tests.stages.interruptions import interrupted
from tests.stages.test_search_chain import TERMS, numbers

pytestmark = pytest.mark.pipeline

METHODS = ("trades", "pgd-at", "fast-at")
SHORT = ("--epochs", 1, *FAST)
STEPS = ("--set", "robust.steps=2")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, trained: dict[str, Path]) -> dict[str, Path]:
    """One epoch of each method from the rnas-cl student, by method."""
    root = tmp_path_factory.mktemp("tuned")
    for method in METHODS:
        steps = () if method == "fast-at" else STEPS
        done("adv-finetune", trained["rnas-cl"], "--method", method, *SHORT, *steps, "--out", root / method)
    return {method: root / method for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left(tuned: dict[str, Path], trained: dict[str, Path], method: str) -> None:
    run, before = tuned[method], trained["rnas-cl"]
    left = {"derived.json", "adv-finetune.json", "student.safetensors", "metrics.jsonl", "checkpoint.pt"}
    assert set(files(run)) == left
    document = read_document(run / "adv-finetune.json", AdvFinetuneDocument)
    assert (document.method, document.paradigm, document.epochs) == (method, "rnas-cl", 1)
    assert document.student_sha256 == sha256_file(run / "student.safetensors")
    assert document.student_sha256 != sha256_file(before / "student.safetensors")
    inputs = {name: sha256_file(before / name) for name in ("student.safetensors", "train.json", "derived.json")}
    assert document.provenance.inputs == inputs
    assert document.provenance.seed == 3
    assert (run / "derived.json").read_bytes() == (before / "derived.json").read_bytes()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == document.history
    data = load_data(DataSettings(spec="digits", limit_train=40, limit_test=20), seed=3)
    with torch.no_grad():
        right = load(run)(data.test.images_NCHW.float() / 255).argmax(dim=1) == data.test.labels_N
    assert document.clean_accuracy == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize("method", METHODS)
def test_what_replaces_the_cross_entropy(tuned: dict[str, Path], method: str) -> None:
    (entry,) = read_document(tuned[method] / "adv-finetune.json", AdvFinetuneDocument).history
    assert {"kl", "attention", "adversarial", "train_robust_accuracy"} <= set(entry)
    stays = entry["kl"] + entry["attention"]
    if method == "trades":
        # CE(y, p(x)) + 6 KL(p(x) || p(x')) in the place of the cross-entropy.
        assert entry["loss"] == pytest.approx(entry["ce"] + 6.0 * entry["adversarial"] + stays, rel=1e-5)
    else:
        assert "ce" not in entry
        assert entry["loss"] == pytest.approx(entry["adversarial"] + stays, rel=1e-5)


@pytest.mark.parametrize("paradigm", ["icc", "kl", "standard"])
def test_the_paradigm_of_the_training_stays(trained: dict[str, Path], tmp_path: Path, paradigm: str) -> None:
    done("adv-finetune", trained[paradigm], "--method", "fast-at", *SHORT, "--out", tmp_path / "run")
    document = read_document(tmp_path / "run" / "adv-finetune.json", AdvFinetuneDocument)
    assert document.paradigm == paradigm
    assert set(document.history[0]) & {"kl", "attention"} == TERMS[paradigm]


def test_beta_is_the_weight(trained: dict[str, Path], tmp_path: Path) -> None:
    done("adv-finetune", trained["standard"], *SHORT, *STEPS, "--set", "robust.beta=0.5", "--out", tmp_path / "run")
    (entry,) = read_document(tmp_path / "run" / "adv-finetune.json", AdvFinetuneDocument).history
    assert entry["loss"] == pytest.approx(entry["ce"] + 0.5 * entry["adversarial"], rel=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_may_be_resumed(
    tuned: dict[str, Path], trained: dict[str, Path], tmp_path: Path
) -> None:
    arguments: list[object] = ["adv-finetune", trained["rnas-cl"], *SHORT, *STEPS, "--epochs", 2]
    done(*arguments, "--out", tmp_path / "whole")
    with interrupted(StudentStep, before_call=3):  # in the middle of the second epoch
        assert rnascl(*arguments, "--out", tmp_path / "run").code == 130
    done(*arguments, "--out", tmp_path / "run", "--resume")
    one, two = (read_document(tmp_path / name / "adv-finetune.json", AdvFinetuneDocument) for name in ("whole", "run"))
    assert one.student_sha256 == two.student_sha256
    assert numbers(one.history) == numbers(two.history)


def test_fine_tuning_twice(tuned: dict[str, Path], tmp_path: Path) -> None:
    done("adv-finetune", tuned["fast-at"], "--method", "pgd-at", *SHORT, *STEPS, "--out", tmp_path / "run")
    document = read_document(tmp_path / "run" / "adv-finetune.json", AdvFinetuneDocument)
    assert set(document.provenance.inputs) == {"student.safetensors", "adv-finetune.json", "derived.json"}


def test_a_teacher_of_another_hash(trained: dict[str, Path], other_teacher: Path, tmp_path: Path) -> None:
    line = refused("adv-finetune", trained["rnas-cl"], "--teacher", other_teacher, "--out", tmp_path / "run")
    assert "is not that of the tutor map's teacher" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("absent", ["student.safetensors", "derived.json", "train.json"])
def test_a_run_that_lacks_something(trained: dict[str, Path], tmp_path: Path, absent: str) -> None:
    shutil.copytree(trained["standard"], tmp_path / "source")
    (tmp_path / "source" / absent).unlink()
    line = refused("adv-finetune", tmp_path / "source", "--out", tmp_path / "run")
    assert f"has no {absent}" in line
    assert not (tmp_path / "run").exists()


def test_a_student_that_is_not_the_documents(
    trained: dict[str, Path], searched: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["standard"], tmp_path / "source")
    shutil.copy(trained["kl"] / "student.safetensors", tmp_path / "source")
    line = refused("adv-finetune", tmp_path / "source", "--out", tmp_path / "run")
    assert "is not the file that train.json was written with" in line
    for source in (searched["kl"], tmp_path / "gone"):
        assert "rnascl train" in refused("adv-finetune", source, "--out", tmp_path / "run")


@pytest.mark.parametrize("option", ["--force", "--resume"])
def test_a_run_cannot_be_its_own_source(trained: dict[str, Path], tmp_path: Path, option: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(trained["standard"], source)
    before = files(source)
    line = refused("adv-finetune", source, *SHORT, option, "--out", tmp_path / "." / "source" / ".." / "source")
    assert "holds train.json, the run of another stage; name another folder" in line
    assert files(source) == before
