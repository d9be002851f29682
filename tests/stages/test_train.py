"""``train``: eq. (3) from scratch, from a pipe, a file or a run; the same seed, the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli import load
from rnascl_cli.artifacts.documents import DerivedDocument, TrainDocument
from rnascl_cli.artifacts.store import document_json, read_document, sha256_file
from rnascl_cli.data import load_data
from rnascl_cli.models.files import load_student
from rnascl_cli.recipes.settings import DataSettings
from rnascl_cli.stages.search.derive import derive
from rnascl_cli.stages.training.step import StudentStep
from tests.command import done, files, refused, rnascl
from tests.conftest import FAST
from tests.stages.interruptions import interrupted
from tests.stages.test_search_chain import TERMS, numbers

pytestmark = pytest.mark.pipeline

DIGITS = ("--data", "digits", "--limit-train", 40, "--limit-test", 20, "--set", "train.paradigm=standard")
PARADIGMS = ("rnas-cl", "icc", "kl", "standard")


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_what_is_left(trained: dict[str, Path], searched: dict[str, Path], paradigm: str) -> None:
    run = trained[paradigm]
    assert set(files(run)) == {"derived.json", "train.json", "student.safetensors", "metrics.jsonl", "checkpoint.pt"}
    document = read_document(run / "train.json", TrainDocument)
    derived = read_document(run / "derived.json", DerivedDocument)
    assert derived.architecture == derive(searched[paradigm]).architecture == document.architecture
    assert document.paradigm == paradigm
    assert document.epochs == len(document.history) == 2
    assert document.student_sha256 == sha256_file(run / "student.safetensors")
    inputs = document.provenance.inputs
    assert inputs["derived.json"] == sha256_file(run / "derived.json")
    assert inputs["search.json"] == sha256_file(searched[paradigm] / "search.json")
    # Data, teacher and seed come from the search.
    assert document.provenance.data == derived.provenance.data
    assert document.provenance.seed == 3
    if paradigm == "standard":
        assert document.provenance.teacher is None
    else:
        assert document.provenance.teacher is not None
        assert derived.provenance.teacher is not None
        assert document.provenance.teacher.sha256 == derived.provenance.teacher.sha256
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == document.history
    for entry in document.history:
        assert TERMS[paradigm] | {"loss", "ce", "train_accuracy", "lr"} <= set(entry)
        assert not ({"kl", "attention"} - TERMS[paradigm]) & set(entry)
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in TERMS[paradigm] | {"ce"}), rel=1e-5)


def test_the_student_has_the_accuracy_that_is_said(trained: dict[str, Path]) -> None:
    run = trained["rnas-cl"]
    document = read_document(run / "train.json", TrainDocument)
    data = load_data(DataSettings(spec="digits", limit_train=40, limit_test=20), seed=3)
    model = load(run)
    with torch.no_grad():
        logits = model(data.test.images_NCHW.float() / 255)
    right = (logits.argmax(dim=1) == data.test.labels_N).double().mean().item()
    assert document.clean_accuracy == pytest.approx(right)
    student, architecture = load_student(run / "student.safetensors")
    assert architecture == document.architecture
    assert student.normalise.constants() == {
        "mean": [pytest.approx(value) for value in data.mean],
        "std": [pytest.approx(value) for value in data.std],
    }


def test_from_a_pipe(trained: dict[str, Path], searched: dict[str, Path], tmp_path: Path) -> None:
    piped = done("derive", searched["rnas-cl"]).out
    outcome = done("train", "-", "--epochs", 2, *FAST, "--out", tmp_path / "run", stdin=piped)
    assert outcome.out == f"{tmp_path / 'run'}\n"
    # The same seed gives the same student, to the byte.
    one, two = (path / "student.safetensors" for path in (trained["rnas-cl"], tmp_path / "run"))
    assert one.read_bytes() == two.read_bytes()
    first, again = (
        read_document(path / "train.json", TrainDocument) for path in (trained["rnas-cl"], tmp_path / "run")
    )
    assert numbers(first.history) == numbers(again.history)


def test_another_seed_gives_another_student(
    trained: dict[str, Path], searched: dict[str, Path], tmp_path: Path
) -> None:
    done("train", searched["standard"], "--epochs", 2, "--seed", 4, *FAST, "--out", tmp_path / "run")
    one, two = (path / "student.safetensors" for path in (trained["standard"], tmp_path / "run"))
    assert one.read_bytes() != two.read_bytes()


def test_from_a_file_or_an_earlier_training(trained: dict[str, Path], tmp_path: Path) -> None:
    source = trained["standard"]
    (tmp_path / "d.json").write_bytes((source / "derived.json").read_bytes())
    for index, named in enumerate((source, source / "derived.json", tmp_path / "d.json")):
        outcome = done("train", named, "--epochs", 1, *FAST, "--json", "--out", tmp_path / str(index))
        assert outcome.out == (tmp_path / str(index) / "train.json").read_text()


def test_another_paradigm_when_told(searched: dict[str, Path], tmp_path: Path) -> None:
    done("train", searched["rnas-cl"], "--paradigm", "standard", "--epochs", 1, *FAST, "--out", tmp_path / "run")
    document = read_document(tmp_path / "run" / "train.json", TrainDocument)
    assert document.paradigm == "standard"
    assert document.provenance.teacher is None
    assert not {"kl", "attention"} & set(document.history[0])


def test_ctrl_c_and_resume(trained: dict[str, Path], searched: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments: list[object] = ["train", searched["rnas-cl"], "--epochs", 2, *FAST, "--out", out]
    with interrupted(StudentStep, before_call=3):  # in the middle of the second epoch
        assert rnascl(*arguments).code == 130
    assert set(files(out)) == {"derived.json", "metrics.jsonl", "checkpoint.pt"}
    done(*arguments, "--resume")
    whole = trained["rnas-cl"]
    assert (out / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    first, again = (read_document(path / "train.json", TrainDocument) for path in (whole, out))
    assert numbers(first.history) == numbers(again.history)
    assert first.clean_accuracy == again.clean_accuracy


def test_resuming_another_network_is_refused_and_touches_nothing(
    trained: dict[str, Path], searched: dict[str, Path]
) -> None:
    out = trained["rnas-cl"]
    before = files(out)
    line = refused("train", searched["icc"], "--epochs", 2, *FAST, "--resume", "--out", out)
    assert "belongs to another recipe, data set or teacher" in line
    assert files(out) == before


@pytest.mark.parametrize("option", ["--force", "--resume"])
def test_a_run_cannot_be_its_own_source(searched: dict[str, Path], tmp_path: Path, option: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(searched["standard"], source)
    before = files(source)
    # A search has a checkpoint too, but not one of a training; forced, the search would be deleted.
    assert refused("train", source, "--epochs", 1, *FAST, option, "--out", source)
    assert files(source) == before


def test_a_teacher_of_another_hash(searched: dict[str, Path], other_teacher: Path, tmp_path: Path) -> None:
    line = refused("train", searched["rnas-cl"], "--teacher", other_teacher, "--out", tmp_path / "run")
    assert f"--teacher {other_teacher}: sha256" in line
    assert "is not that of the tutor map's teacher" in line
    assert "give the teacher of the search" in line
    assert not (tmp_path / "run").exists()


def test_layers_of_another_kind(searched: dict[str, Path], tmp_path: Path) -> None:
    line = refused("train", searched["rnas-cl"], "--set", "attention.source=norm", "--out", tmp_path / "run")
    assert "its norm layers are not those of the tutor map; set attention.source as in the search" in line
    assert not (tmp_path / "run").exists()


def test_no_tutor_map_where_one_is_needed(searched: dict[str, Path], tiny_teacher: Path, tmp_path: Path) -> None:
    for source, teacher in ((searched["kl"], []), (searched["standard"], ["--teacher", tiny_teacher])):
        line = refused("train", source, *teacher, "--paradigm", "rnas-cl", "--out", tmp_path / "run")
        assert "needs a tutor map, and this network was searched as" in line
    assert "needs a teacher; name one or use --paradigm standard" in refused(
        "train", searched["standard"], "--paradigm", "kl", "--out", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def edited(searched: dict[str, Path], path: Path, **tutors: Any) -> Path:
    """A derived document whose tutor map was changed by hand."""
    raw = json.loads(document_json(derive(searched["rnas-cl"])))
    raw["tutors"] |= tutors
    path.write_text(json.dumps(raw))
    return path


def test_student_layers_that_the_network_lacks(searched: dict[str, Path], tmp_path: Path) -> None:
    raw = json.loads(document_json(derive(searched["rnas-cl"])))
    layers = [*raw["tutors"]["student_layers"][:-1], "blocks.99.expand.conv"]
    path = edited(searched, tmp_path / "d.json", student_layers=layers)
    line = refused("train", path, "--epochs", 1, *FAST, "--out", tmp_path / "run")
    assert "student_layers" in line
    assert not (tmp_path / "run").exists()


def test_data_of_other_classes_or_sizes(searched: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    line = refused("train", searched["standard"], "--data", f"folder:{tiny_folder}", "--out", tmp_path / "run")
    assert "has 3 classes, the network 10; give the data of the search" in line
    assert not (tmp_path / "run").exists()


def test_images_that_have_changed_are_noticed(searched: dict[str, Path], tmp_path: Path) -> None:
    document = derive(searched["standard"])
    assert "have changed" not in done("train", searched["standard"], "--epochs", 1, *FAST, "--out", tmp_path / "a").err
    assert document.provenance.data is not None
    other = document.provenance.data.model_copy(update={"fingerprint": "0" * 64})
    changed = document.model_copy(update={"provenance": document.provenance.model_copy(update={"data": other})})
    path = tmp_path / "derived.json"
    path.write_text(document_json(changed))
    outcome = done("train", path, "--epochs", 1, *FAST, "--out", tmp_path / "b")
    assert "the images have changed since the artifact given was made" in outcome.err


def test_the_space_is_that_of_the_network(trained: dict[str, Path], searched: dict[str, Path], tmp_path: Path) -> None:
    document = read_document(trained["standard"] / "train.json", TrainDocument)
    assert document.provenance.recipe["space"] == "S3"
    line = refused(
        "train", searched["standard"], "--recipe", "cifar10/rnas-cl-s5-wrt34", *DIGITS, "--out", tmp_path / "x"
    )
    assert "is S5, the network is of space S3" in line
    assert not (tmp_path / "x").exists()


def test_another_run_is_never_deleted(searched: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "run"
    shutil.copytree(searched["standard"], source)
    done("derive", source, "--out", source / "derived.json")
    before = files(source)
    text = (source / "derived.json").read_text()
    assert "holds search.json" in refused("train", source / "derived.json", "--out", source, "--force")
    assert "holds search.json" in refused("train", "-", "--out", source, "--force", stdin=text)
    assert files(source) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_run_is_left_as_it_is(searched: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("train", searched["standard"], "--epochs", 1, *FAST, "--out", out)
    done(*arguments)
    before = contents(out)
    outcome = done(*arguments, "--resume")
    assert "already finished; left unchanged" in outcome.err
    assert contents(out) == before
    longer = ("train", searched["standard"], "--epochs", 2, *FAST, "--out", out)
    assert "belongs to another recipe" in refused(*longer, "--resume")
    assert contents(out) == before
