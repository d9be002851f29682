"""The chain with non-default options."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document
from tests.command import done

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize("source", ["norm", "block"])
def test_other_map_sources_through_the_chain(
    tmp_path: Path, tiny_teacher: Path, small: list[object], source: str
) -> None:
    options = ["--set", f"attention.source={source}", "--epochs", 1, *small]
    common = ["--space", "S3", "--data", "digits", "--teacher", tiny_teacher]
    done("search", *common, *options, "--out", tmp_path / "search")
    found = read_document(tmp_path / "search" / "search.json", SearchDocument)
    assert (len(found.student_layers), found.student_layers[0]) == {
        "norm": (28, "stem.bn"),
        "block": (9, "blocks.0"),
    }[source]
    assert found.tutor_logits
    done("train", tmp_path / "search", *options, "--out", tmp_path / "train")
    assert read_document(tmp_path / "train" / "train.json", TrainDocument).history[0]["attention"] > 0
    steps = ["--set", "robust.steps=1"]
    done("adv-finetune", tmp_path / "train", *options, *steps, "--out", tmp_path / "fine")
    assert read_document(tmp_path / "fine" / "adv-finetune.json", AdvFinetuneDocument).history[0]["attention"] > 0


def test_bf16_on_the_cpu(tmp_path: Path, tiny_teacher: Path, small: list[object]) -> None:
    common = ["--epochs", 1, *small, "--precision", "bf16"]
    done(
        "search", "--space", "S3", "--data", "digits", "--teacher", tiny_teacher, *common, "--out", tmp_path / "search"
    )
    done("train", tmp_path / "search", *common, "--out", tmp_path / "train")
    done("adv-finetune", tmp_path / "train", *common, "--set", "robust.steps=1", "--out", tmp_path / "fine")
    found = read_document(tmp_path / "search" / "search.json", SearchDocument)
    assert found.provenance.precision == "bf16"
    trained = read_document(tmp_path / "train" / "train.json", TrainDocument)
    tuned = read_document(tmp_path / "fine" / "adv-finetune.json", AdvFinetuneDocument)
    for entry in (found.history[0], trained.history[0], tuned.history[0]):
        assert all(math.isfinite(value) for value in entry.values())


OTHERS: dict[str, list[str]] = {
    "adam for the choices": ["gumbel_optimiser.name=adam", "gumbel_optimiser.lr=0.01"],
    "normal noise": ["gumbel.noise=normal"],
    "params": ["cost.measure=params", "cost.exponent=0.5", "cost.scale=0.2"],
    "Hinton's KL": ["kl.direction=teacher-student", "kl.temperature=4"],
    "maps over the batch": ["attention.norm=batch", "attention.map_size=14"],
    "no attention": ["attention.gamma=0"],
    "no scaling of the temperature": ["gumbel.decay_epochs=null"],
    "cosine": ["schedule.kind=cosine"],
    "small second part": ["weight_share=0.95"],
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_settings_of_the_search(tmp_path: Path, tiny_teacher: Path, small: list[object], case: str) -> None:
    settings = [word for text in OTHERS[case] for word in ("--set", text)]
    common = ["--space", "S3", "--data", "digits", "--teacher", tiny_teacher, "--epochs", 1, *small]
    done("search", *common, *settings, "--out", tmp_path / "run")
    found = read_document(tmp_path / "run" / "search.json", SearchDocument)
    assert all(math.isfinite(value) for value in found.history[0].values())
    used = found.provenance.recipe["search"]
    for text in OTHERS[case]:
        key, _, value = text.partition("=")
        inner = used
        for name in key.split("."):
            inner = inner[name]
        assert str(inner) == value or inner == float(value) if value != "null" else inner is None
    # The choices move, save those of tutors whose term weighs nothing.
    assert any(logit for row in found.width_logits for logit in row)
    moved = any(logit for row in found.tutor_logits for logit in row)
    assert moved is (case != "no attention")


def test_images_from_a_folder(tmp_path: Path, tiny_folder: Path, small: list[object]) -> None:
    common = ["--data", f"folder:{tiny_folder}", "--paradigm", "standard", "--epochs", 1, *small]
    done("search", "--space", "S3", *common, "--out", tmp_path / "search")
    done("train", tmp_path / "search", "--epochs", 1, "--out", tmp_path / "train")
    document = read_document(tmp_path / "train" / "train.json", TrainDocument)
    assert document.architecture.num_classes == 3
    assert document.provenance.data is not None
    assert document.provenance.data.classes == ["ant", "bee", "cat"]


def test_teacher_of_other_classes_without_kl(
    tmp_path: Path, tiny_folder: Path, tiny_teacher: Path, small: list[object]
) -> None:
    common = ["--data", f"folder:{tiny_folder}", "--teacher", tiny_teacher, "--paradigm", "icc", "--epochs", 1, *small]
    done("search", "--space", "S3", *common, "--out", tmp_path / "search")
    done("train", tmp_path / "search", "--epochs", 1, "--out", tmp_path / "train")
    assert "attention" in read_document(tmp_path / "train" / "train.json", TrainDocument).history[0]
