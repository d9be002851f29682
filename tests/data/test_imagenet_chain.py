"""The ImageNet half of the paper at its own size: IS, IM and I at 224x224 under ResNet-18, -50 and WideResNet-50-2.

The images are the hundred of ../shared where it is there, and made-up ones elsewhere; teachers have random weights.
Each run takes two steps of two images: it shows that everything fits together, and says nothing about accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AttackDocument, SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.data.folder import imagenet100_classes, imagenet_classes
from rnascl_cli.spaces import SPACES
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import write_teacher
from rnascl_cli.teachers.public_checkpoints import IMAGENET
from tests.command import done, refused
from tests.photographs import write_photographs

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet100-sample" / "val"
ARCHITECTURES = {"r18": "imagenet-r18", "r50": "imagenet-r50", "wrt50": "imagenet-wrn-50-2"}
CONVS = {"r18": 20, "r50": 53, "wrt50": 53}
LAYERS = {"IS": 9 * 3 + 2, "IM": 13 * 3 + 2, "I": 17 * 3 + 2}  # three a block, the stem and the head
TINY = ["--epochs", 1, "--batch-size", 2, "--device", "cpu", "--precision", "fp32"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def imagenet100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet folder of ImageNet-100's classes, one image each to train and to test on."""
    root = tmp_path_factory.mktemp("imagenet")
    if not SAMPLE.is_dir():
        return write_photographs(root, imagenet100_classes(), train=1, test=1, shapes=[(300, 260), (230, 340)])
    for split in ("train", "val"):
        (root / split).symlink_to(SAMPLE)
    return root


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The three ImageNet teachers, untrained, for a hundred classes."""
    root = tmp_path_factory.mktemp("teachers")
    yield {name: write_random_teacher(root / f"{name}.safetensors", name, num_classes=100) for name in ARCHITECTURES}
    for path in root.iterdir():  # hundreds of megabytes
        path.unlink()


def write_random_teacher(path: Path, name: str, *, num_classes: int) -> Path:
    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = build_teacher(architecture, num_classes=num_classes, mean=IMAGENET.mean, std=IMAGENET.std)
    write_teacher(path, module, architecture=architecture, num_classes=num_classes, about={"source": "a test"})
    return path


def data(root: Path) -> list[object]:
    settings = ["data.keep=stream", "data.workers=1", "data.holdout=0.0"]
    return [
        "--data",
        f"imagenet100:{root}",
        "--limit-test",
        2,
        *(word for text in settings for word in ("--set", text)),
    ]


@pytest.mark.parametrize("teacher", ARCHITECTURES)
@pytest.mark.parametrize("space", LAYERS)
def test_search_derive_train_and_attack(
    space: str, teacher: str, imagenet100: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    train = ["--limit-train", 4, *TINY]
    done(
        "search", "--space", space, "--teacher", teachers[teacher], *data(imagenet100), *train, "--out", tmp_path / "s"
    )
    searched = read_document(tmp_path / "s" / "search.json", SearchDocument)
    assert (searched.input_size, searched.num_classes) == (224, 100)
    assert (len(searched.student_layers), len(searched.teacher_layers)) == (LAYERS[space], CONVS[teacher])
    assert any(logit != 0 for row in searched.tutor_logits for logit in row)
    assert any(logit != 0 for row in searched.width_logits for logit in row)
    assert {"ce", "kl", "attention", "n_f"} <= searched.history[0].keys()

    done("train", tmp_path / "s", *TINY, "--out", tmp_path / "t")
    trained = read_document(tmp_path / "t" / "train.json", TrainDocument)
    assert all(
        width in choices
        for width, choices in zip(trained.architecture.widths, SPACES[space].block_choices, strict=True)
    )
    assert {"ce", "kl", "attention"} <= trained.history[0].keys()
    assert trained.provenance.data == searched.provenance.data

    done("attack", tmp_path / "t", "--attack", "pgd2", "--eps", "8/255", "--device", "cpu")
    attacked = read_document(tmp_path / "t" / "attack.json", AttackDocument)
    assert (attacked.n, len(attacked.results)) == (2, 1)


@pytest.mark.parametrize(("method", "recipe"), [("trades", "imagenet100/rnas-cl-i-r18-trades"), ("fast-at", None)])
def test_adversarial_fine_tuning(
    method: str, recipe: str | None, imagenet100: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    """With a teacher of a thousand classes, as the public ones are, under a recipe of Table 3 and without one."""
    teacher = write_random_teacher(tmp_path / "r18.safetensors", "r18", num_classes=1000)
    named = ["--recipe", recipe] if recipe else ["--set", "data.augment=resized-crop-flip"]
    common = [*named, "--teacher", teacher, *data(imagenet100), "--limit-train", 4, *TINY]
    space = ["--space", "I"] if recipe else ["--space", "IS"]
    done("search", *space, "--paradigm", "icc", *common, "--out", tmp_path / "s")
    done("train", tmp_path / "s", *common, "--out", tmp_path / "t")
    steps = [] if method == "fast-at" else ["--set", "robust.steps=2"]
    done("adv-finetune", tmp_path / "t", "--method", method, *common, *steps, "--out", tmp_path / "f")
    tuned = read_document(tmp_path / "f" / "adv-finetune.json", AdvFinetuneDocument)
    assert (tuned.method, tuned.paradigm) == (method, "icc")
    assert {"adversarial", "attention"} <= tuned.history[0].keys()
    assert "kl" not in tuned.history[0]
    # The KL term would compare a hundred classes with a thousand.
    line = refused("search", *space, "--paradigm", "rnas-cl", *common, "--out", tmp_path / "kl")
    assert "1000 classes" in line


def test_imagenet_s_thousand_classes(tmp_path: Path) -> None:
    """Table 5's data: a folder of all classes, streamed."""
    root = write_photographs(tmp_path / "imagenet", imagenet_classes(), train=1, test=1, shapes=[(40, 48)])
    given = ["--data", f"imagenet:{root}", "--limit-train", 4, "--limit-test", 2, "--set", "data.keep=stream", *TINY]
    recipe = ["--recipe", "imagenet/standard-i-fast-at"]
    done("search", *recipe, *given, "--out", tmp_path / "s")
    searched = read_document(tmp_path / "s" / "search.json", SearchDocument)
    assert (searched.num_classes, searched.input_size, searched.paradigm) == (1000, 224, "standard")
    assert searched.provenance.data is not None
    assert searched.provenance.data.classes == imagenet_classes()
