"""Numbers that are none, and numbers that teach nothing: found, named, and never kept as a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rnascl_cli import load
from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.core.errors import RunError
from rnascl_cli.engine.checkpoint import first_not_finite, read_checkpoint
from rnascl_cli.engine.training_loop import set_current_step
from rnascl_cli.stages.training.sanity_checks import SanityCheck, constant, zero_layers
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.forward import TeacherOutput
from rnascl_cli.teachers.load import write_teacher
from tests.command import done, refused, rnascl
from tests.conftest import FAST

IMAGES = ("--data", "digits", "--limit-train", 40, "--limit-test", 20)
OFTEN = ("--set", "checkpoint_minutes=0.00001")
TRAINING = ("search", "train", "adv-finetune", "teacher train")


def arguments(stage: str, folder: Path, runs: dict[str, Path], *, paradigm: str = "standard") -> list[object]:
    """A small run of a training stage."""
    start: dict[str, list[object]] = {
        "search": ["search", "--space", "S3", "--paradigm", paradigm, *IMAGES],
        "train": ["train", runs["searched"], "--paradigm", paradigm],
        "adv-finetune": ["adv-finetune", runs["trained"], "--paradigm", paradigm, "--set", "robust.steps=1"],
        "teacher train": ["teacher", "train", "--arch", "r8", *IMAGES, "--set", "data.holdout=0.2"],
    }
    out = folder / "t.safetensors" if stage == "teacher train" else folder / "run"
    return [*start[stage], *FAST, "--epochs", 2, *OFTEN, "--out", out]


@pytest.fixture
def runs(searched: dict[str, Path], trained: dict[str, Path]) -> dict[str, Path]:
    """A search and a training under cross-entropy alone."""
    return {"searched": searched["standard"], "trained": trained["standard"]}


def teacher_file(path: Path, spoil: Callable[[nn.Module], None]) -> Path:
    """A ten-class r8 with something wrong with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = build_teacher("r8", num_classes=10)
    with torch.no_grad():
        spoil(module)
    write_teacher(path, module, architecture="r8", num_classes=10, about={"source": "a test"})
    return path


def kept_models(folder: Path) -> list[str]:
    """Names of artifacts that hold weights or what was searched."""
    return [path.name for path in folder.rglob("*") if path.suffix in (".safetensors", ".json") and path.is_file()]


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", TRAINING)
def test_a_loss_that_is_none(stage: str, tmp_path: Path, runs: dict[str, Path]) -> None:
    outcome = rnascl(*arguments(stage, tmp_path, runs), "--set", "optimiser.lr=1e30")
    assert (outcome.code, outcome.out) == (1, ""), outcome.err
    last = outcome.err.splitlines()[-1]
    name = stage.replace(" ", "-")
    found = re.match(
        rf"rnascl: {name}: '(\S+)' (is (nan|inf|-inf) at|has NaN or infinite values after) epoch 1, step \d", last
    )
    assert found, last
    assert "lower the learning rate or use --precision fp32" in last
    assert set(kept_models(tmp_path)) <= {"derived.json"}
    for path in tmp_path.rglob("checkpoint*.pt"):
        assert first_not_finite(read_checkpoint(path, torch.device("cpu"))["state"]) is None


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", ["search", "train", "adv-finetune"])
def test_a_teacher_that_outputs_constants(stage: str, tmp_path: Path, runs: dict[str, Path]) -> None:
    def spoil(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.zero_()

    teacher = teacher_file(tmp_path / "dead.safetensors", spoil)
    outcome = rnascl(*arguments(stage, tmp_path, runs, paradigm="kl"), "--teacher", teacher)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1].startswith(
        f"rnascl: {stage}: 'kl' at epoch 1, step 1: the teacher gives the same logits for every image of the batch"
    )
    assert set(kept_models(tmp_path)) <= {"derived.json", "dead.safetensors"}


@pytest.mark.pipeline
def test_all_zero_maps(tmp_path: Path) -> None:
    def spoil(module: nn.Module) -> None:
        module.get_submodule("layer2.0.conv2").weight.zero_()  # type: ignore[operator]

    teacher = teacher_file(tmp_path / "dead.safetensors", spoil)
    common = ("--teacher", teacher, *FAST, "--epochs", 2)
    expected = "all-zero maps on every image of the batch: layers layer2.0.conv2 of the teacher"
    search = done("search", "--space", "S3", "--paradigm", "icc", *IMAGES, *common, "--out", tmp_path / "search")
    said = " ".join(search.err.split())
    assert f"warning: search: 'attention' at epoch 1, step 1: {expected}" in said
    assert said.count("all-zero") == 1  # once, not every epoch
    document = json.loads((tmp_path / "search" / "search.json").read_text())
    dead = document["teacher_layers"].index("layer2.0.conv2")
    derived = json.loads(done("derive", tmp_path / "search").out)
    derived["tutors"]["tutor"] = [dead] * len(derived["tutors"]["tutor"])
    (tmp_path / "derived.json").write_text(json.dumps(derived))
    train = done("train", tmp_path / "derived.json", *common, "--out", tmp_path / "train")
    assert f"train: 'attention' at epoch 1, step 1: {expected}" in " ".join(train.err.split())
    assert all(tensor.isfinite().all() for tensor in load(tmp_path / "train").state_dict().values())


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", ["train", "adv-finetune", "teacher train"])
def test_a_batch_of_one_image(stage: str, tmp_path: Path, runs: dict[str, Path]) -> None:
    few = [] if stage == "train" else ["--limit-train", 12]
    done(*arguments(stage, tmp_path, runs), *few, "--batch-size", 1, "--epochs", 1)
    model = load(tmp_path / ("t.safetensors" if stage == "teacher train" else "run"))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.pipeline
def test_a_batch_of_one_image_cannot_be_searched_on(tmp_path: Path, runs: dict[str, Path]) -> None:
    line = refused(*arguments("search", tmp_path, runs), "--limit-train", 1, "--set", "data.holdout=0")
    assert (
        "--batch-size: a batch of 1 is too small to give 1 or more images to each of weights and architecture" in line
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", ["train", "adv-finetune"])
def test_a_batch_of_one_tiny_image(stage: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(6):
                image = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(tmp_path / "data" / split / name / f"{number}.png")
    common = ("--batch-size", 8, "--epochs", 1, *FAST[2:])
    data = ("--data", f"folder:{tmp_path / 'data'}", "--set", "data.holdout=0")
    done("search", "--space", "S3", "--paradigm", "standard", *data, *common, "--out", tmp_path / "s")
    done("train", tmp_path / "s", *common, "--out", tmp_path / "t")
    source = tmp_path / ("s" if stage == "train" else "t")
    outcome = rnascl(stage, source, *common, "--batch-size", 1, "--out", tmp_path / "run")
    assert outcome.code == 1
    line = f"rnascl: {stage}: 'batch statistics' at epoch 1, step 1: the last feature maps of one image"
    assert outcome.err.splitlines()[-1].startswith(line)


@pytest.mark.pipeline
def test_an_eps_of_zero(tmp_path: Path, runs: dict[str, Path]) -> None:
    outcome = done(*arguments("adv-finetune", tmp_path, runs), "--set", "robust.eps=0")
    said = " ".join(outcome.err.split())
    assert "warning: adv-finetune: robust.eps is 0, so no image is perturbed; 'adversarial' is a loss on" in said
    assert all(tensor.isfinite().all() for tensor in load(tmp_path / "run").state_dict().values())
    outcome = done(*arguments("teacher train", tmp_path, runs), "--eps", 0)
    assert "warning: teacher-train: robust.eps is 0" in outcome.err
    assert all(tensor.isfinite().all() for tensor in load(tmp_path / "t.safetensors").state_dict().values())
    attack = ("attack", tmp_path / "run", "--attack", "fgsm,pgd2")
    done(*attack, "--eps", 0, "--out", tmp_path / "a")
    document = read_document(tmp_path / "a" / "attack.json", AttackDocument)
    assert "every eps is 0: no image is attacked, and each accuracy is that on clean images" in document.warnings
    assert [(row.steps, row.attacked, row.accuracy) for row in document.results] == [
        (0, 0, document.clean_accuracy)
    ] * 2
    done(*attack, "--eps", "0,8/255", "--out", tmp_path / "b")
    assert not any(
        "every eps" in text for text in read_document(tmp_path / "b" / "attack.json", AttackDocument).warnings
    )


@pytest.mark.unit
def test_constant_logits() -> None:
    assert constant(torch.full((3, 4), -2.0))
    assert constant(torch.tensor([[100.0, 1.0], [100.00001, 1.0]]))
    assert not constant(torch.tensor([[1.0, 2.0], [1.0, 2.001]]))
    assert not constant(torch.ones(1, 4))  # one image tells nothing
    assert constant(torch.zeros(2, 4))


@pytest.mark.unit
def test_layers_that_are_zero_on_every_image() -> None:
    maps_BLP = torch.zeros(2, 3, 4)
    maps_BLP[1, 1, 3] = 0.1
    assert zero_layers(maps_BLP, ["a", "b", "c"]) == ["a", "c"]


@pytest.mark.unit
def test_a_look_once_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    inspection, varied_BK = SanityCheck(), torch.eye(3)
    set_current_step("train", epoch=1, step=4)

    def look(logits_BK: torch.Tensor, *, student: float) -> str:
        inspection.run(
            TeacherOutput(logits_BK, torch.ones(3, 1, 4)),
            kl=True,
            teacher_layers=["t"],
            student_layers=["s"],
            student_BLP=torch.full((3, 1, 4), student),
        )
        return " ".join(capsys.readouterr().err.split())

    found = "train: 'attention' at epoch 2, step 5: all-zero maps on every image of the batch: layers s of the student"
    assert look(varied_BK, student=0.0) == f"warning: {found}"
    assert look(torch.ones(3, 3), student=1.0) == ""  # the epoch has had its look
    inspection.start_epoch()
    assert look(varied_BK, student=0.0) == ""  # said before
    inspection.start_epoch()
    with pytest.raises(RunError, match="train: 'kl' at epoch 2, step 5: the teacher gives the same logits"):
        look(torch.ones(3, 3), student=1.0)
