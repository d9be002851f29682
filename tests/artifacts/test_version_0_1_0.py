"""Artifacts that rnascl 0.1.0 wrote are still read, by every stage that takes them."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest

from rnascl_cli import load
from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AttackDocument, TrainDocument
from rnascl_cli.artifacts.store import read_any_document, read_document
from rnascl_cli.artifacts.study import StudyDocument
from tests.command import done

FAST_CPU = ("--batch-size", 16, "--device", "cpu", "--precision", "fp32")
FIXTURES = Path(__file__).parent / "fixtures_0_1_0"
DOCUMENTS = sorted(
    str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("**/*.json") if path.parent.name != "study"
)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the fixtures with the weights unpacked."""
    folder = tmp_path_factory.mktemp("old") / "old"
    shutil.copytree(FIXTURES, folder)
    for packed in folder.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    shutil.copy(folder / "derived.json", folder / "runs" / "train")  # each run of train holds a copy
    return folder


def test_fixtures_name_no_machine() -> None:
    texts = [path.read_text() for path in FIXTURES.rglob("*.json*")]
    assert not [folder for folder in ("/tmp", "/home", "/root") for text in texts if folder in text]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_is_read(name: str) -> None:
    document = read_any_document(FIXTURES / name)
    written = json.loads((FIXTURES / name).read_text())
    assert document.provenance.tool_version == "0.1.0"
    read = json.loads(document.model_dump_json())
    assert {key: read[key] for key in written} == written


def test_study_document_is_read() -> None:
    text = (FIXTURES / "study" / "study.json").read_text()
    study = StudyDocument.model_validate_json(text)
    assert (study.steps_done, len(study.rows), study.arms) == (15, 5, ["standard", "rnas-cl", "random-tutors"])


def test_study_folder_is_continued(old: Path, tmp_path: Path) -> None:
    """Without the results every step is run again, so ``--minutes 0`` begins none."""
    shutil.copytree(old / "study", tmp_path / "study")
    teacher = old / "teacher.safetensors"
    done("study", "smoke", "--teacher", teacher, "--out", tmp_path / "study", "--minutes", 0)
    study = StudyDocument.model_validate_json((tmp_path / "study" / "study.json").read_text())
    assert (study.steps_done, study.steps) == (0, 15)


def test_search_gives_the_same_derived_document(old: Path) -> None:
    derived = json.loads(done("derive", old / "runs" / "search").out)
    written = json.loads((FIXTURES / "derived.json").read_text())
    for key in ("architecture", "tutors", "paradigm"):
        assert derived[key] == written[key]


def test_search_under_a_budget_is_derived(old: Path) -> None:
    derived = json.loads(done("derive", old / "runs" / "robust-search").out)
    assert derived["architecture"]["macs"] <= 5_000_000


def test_derived_document_is_trained(old: Path, tmp_path: Path) -> None:
    teacher = ("--teacher", old / "teacher.safetensors")
    limits = ("--limit-train", 40, "--limit-test", 20)
    done("train", old / "derived.json", *teacher, *limits, *FAST_CPU, "--epochs", 1, "--out", tmp_path / "train")
    document = read_document(tmp_path / "train" / "train.json", TrainDocument)
    assert document.architecture.widths == json.loads((FIXTURES / "derived.json").read_text())["architecture"]["widths"]


def test_student_is_loaded_attacked_and_finetuned(old: Path, tmp_path: Path) -> None:
    run = old / "runs" / "train"
    assert not load(str(run / "student.safetensors")).training
    written = read_document(run / "attack.json", AttackDocument)
    done("attack", run, "--attack", "fgsm", "--limit-test", 20, "--device", "cpu", "--out", tmp_path / "attack")
    attack = read_document(tmp_path / "attack" / "attack.json", AttackDocument)
    assert (attack.images, attack.model_sha256) == (written.images, written.model_sha256)
    assert attack.clean_accuracy == written.clean_accuracy
    teacher = ("--teacher", old / "teacher.safetensors")
    done("adv-finetune", run, *teacher, *FAST_CPU, "--epochs", 1, "--limit-train", 40, "--out", tmp_path / "finetuned")
    document = read_document(tmp_path / "finetuned" / "adv-finetune.json", AdvFinetuneDocument)
    assert (document.method, document.paradigm) == ("trades", "rnas-cl")


def test_teacher_is_measured_and_searched_under(old: Path, tmp_path: Path) -> None:
    teacher = old / "teacher.safetensors"
    done("attack", teacher, "--data", "digits", "--attack", "fgsm", "--limit-test", 20, "--out", tmp_path / "attack")
    options = ("--limit-train", 40, "--limit-test", 20, "--epochs", 1, *FAST_CPU)
    done("search", "--space", "S3", "--data", "digits", "--teacher", teacher, *options, "--out", tmp_path / "search")


def test_report_covers_every_run(old: Path, tmp_path: Path) -> None:
    done("report", old / "runs", "--out", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    for run in ("train", "kd", "mart"):
        assert run in text
