"""A student may have other classes than its teacher only where the KL term is off."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import write_teacher
from tests.command import done, refused
from tests.conftest import FAST

DATA = ("--data", "digits", "--limit-train", 40, "--limit-test", 20)
KL_OFF = "kl.weight=0"


@pytest.fixture(scope="module", params=[7, 100], ids=["fewer", "more"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher for fewer or more classes than the ten digits."""
    path = tmp_path_factory.mktemp("teacher") / "t.safetensors"
    module = build_teacher("r8", num_classes=request.param)
    write_teacher(path, module, architecture="r8", num_classes=request.param, about={})
    return path


def is_refused(*arguments: object) -> None:
    line = refused(*arguments)
    assert "classes, the data has 10; choose another of them, or do without the KL term" in line
    assert "--paradigm icc, or kl.weight=0" in line


def test_search_train_and_fine_tuning(tmp_path: Path, teacher: Path) -> None:
    search = ("search", "--space", "S3", *DATA, "--teacher", teacher, "--epochs", 1, *FAST)
    for paradigm in ("rnas-cl", "kl"):
        is_refused(*search, "--paradigm", paradigm, "--out", tmp_path / "refused")
    done(*search, "--paradigm", "icc", "--out", tmp_path / "icc")
    done(*search, "--paradigm", "rnas-cl", "--set", KL_OFF, "--out", tmp_path / "search")
    entry = read_document(tmp_path / "search" / "search.json", SearchDocument).history[0]
    assert "attention" in entry
    assert "kl" not in entry

    train = ("train", tmp_path / "search", "--epochs", 1, *FAST)
    is_refused(*train, "--out", tmp_path / "refused")
    done(*train, "--set", KL_OFF, "--out", tmp_path / "train")
    assert "kl" not in read_document(tmp_path / "train" / "train.json", TrainDocument).history[0]

    finetune = ("adv-finetune", tmp_path / "train", "--epochs", 1, *FAST, "--set", "robust.steps=1")
    is_refused(*finetune, "--out", tmp_path / "refused")
    done(*finetune, "--set", KL_OFF, "--out", tmp_path / "fine")
    fine = read_document(tmp_path / "fine" / "adv-finetune.json", AdvFinetuneDocument)
    assert "attention" in fine.history[0]
    assert "kl" not in fine.history[0]
    assert not (tmp_path / "refused").exists()
