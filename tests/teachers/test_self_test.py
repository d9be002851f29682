"""The self-test at the end of an import: it is always made or loudly missed, and it finds a wrong normalisation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.data import Data, load_data
from rnascl_cli.engine.evaluate import TeacherAccuracy
from rnascl_cli.recipes.settings import DataSettings
from rnascl_cli.stages.teacher import self_test
from rnascl_cli.stages.teacher.self_test import (
    ExpectedAccuracy,
    SelfTestSettings,
    describe_difference,
    expected_accuracy,
)
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import read_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from tests.command import done

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # one of the usual ones
RIGHT = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2023,0.1994,0.2010")
WRONG = ("--mean", "0,0,0", "--std", "1,1,1")
CLEAN = 0.85  # about what it reads of the test digits
DIGITS = ("--data", "digits", "--limit-test", 64, "--device", "cpu")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that reads digits: random convolutions, statistics of the data, a linear layer by least squares."""
    data = load_data(DataSettings(spec="digits", limit_train=600, holdout=0.0), seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_teacher("r8", num_classes=10, mean=MEAN, std=STD)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all passes
    x_NCHW = data.train.images_NCHW.float() / 255
    with torch.no_grad():
        for chunk_BCHW in torch.split(x_NCHW, 200):
            module.train()(chunk_BCHW)
        kept: list[Tensor] = []
        module.linear.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))  # type: ignore[union-attr]
        for chunk_BCHW in torch.split(x_NCHW, 200):
            module.eval()(chunk_BCHW)
        features_NF = torch.cat([torch.cat(kept), torch.ones(len(x_NCHW), 1)], dim=1)
        target_NK = F.one_hot(data.train.labels_N, 10).float()
        gram_FF = features_NF.T @ features_NF + 1e-3 * torch.eye(features_NF.shape[1])
        solution_FK = torch.linalg.solve(gram_FF, features_NF.T @ target_NK)
        linear = module.linear
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(solution_FK[:-1].T)
        linear.bias.copy_(solution_FK[-1])
    path = tmp_path_factory.mktemp("reader") / "digits.pt"
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were a public checkpoint whose accuracies are known."""
    known = replace(PUBLIC["r50"], robustbench="Nobody2030Digits", architecture="r8", clean=CLEAN, autoattack=0.0)
    monkeypatch.setitem(PUBLIC, "digits", known)


def imported(reader: Path, out: Path, *options: object) -> tuple[dict[str, Any], str]:
    outcome = done(
        "teacher", "import", reader, "--out", out, "--force", "--json", *DIGITS, "--limit-test", 64, *options
    )
    return json.loads(outcome.out), " ".join(outcome.err.split())


@pytest.mark.usefixtures("published")
def test_the_right_normalisation_is_quiet(reader: Path, tmp_path: Path) -> None:
    report, said = imported(reader, tmp_path / "t.safetensors", "--public", "digits", *RIGHT)
    assert report["measured"]["n"] == 64
    assert report["measured"]["clean"] == pytest.approx(CLEAN, abs=0.09)
    assert "FAR APART" not in said
    assert "WRONG NORMALISATION" not in said
    assert "(published: 0.8500)" in said
    assert "(AutoAttack published: 0.0000)" in said


@pytest.mark.usefixtures("published")
def test_a_wrong_normalisation_is_a_loud_warning(reader: Path, tmp_path: Path) -> None:
    report, said = imported(reader, tmp_path / "t.safetensors", "--public", "digits", *WRONG)
    measured = report["measured"]["clean"]
    assert measured < 0.5
    assert f"warning: FAR APART: measured clean {measured:.3f}, published 0.850" in said
    assert "wrong normalisation is the most common cause" in said
    assert f"WRONG NORMALISATION? Clean accuracy is {measured:.3f} as imported" in said
    assert "with --mean 0.4914,0.4822,0.4465 --std 0.20" in said
    assert report["std"] == [1.0, 1.0, 1.0]  # said, and not done


def test_a_wrong_normalisation_shows_without_published_numbers_too(reader: Path, tmp_path: Path) -> None:
    _, said = imported(reader, tmp_path / "t.safetensors")  # the file has none
    assert "holds no normalisation, and none is applied" in said
    assert "WRONG NORMALISATION?" in said


def test_another_normalisation_of_our_own_file(reader: Path, tmp_path: Path) -> None:
    """What a file says was measured on the same images counts like something published."""
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    imported(reader, first, *RIGHT)
    report, said = imported(first, again, *WRONG)
    assert "FAR APART: measured clean" in said
    assert "in the file 0." in said
    assert read_teacher(str(again)).header["measured"]["clean"] == report["measured"]["clean"]


def test_without_images_a_warning_says_not_tested(reader: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    outcome = done("teacher", "import", reader, *RIGHT, "--out", out, "--json")
    assert json.loads(outcome.out)["measured"] is None
    said = " ".join(outcome.err.split())
    assert "warning: NOT TESTED: no --data is given" in said
    assert f"rnascl teacher measure {out} --data cifar10 --attack pgd20 --limit-test 256" in said


def test_without_data_the_usual_set_is_taken_from_the_cache(
    reader: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DataSettings] = []

    def loaded(settings: DataSettings, *, seed: int, training: bool) -> Data:
        asked.append(settings)
        assert not training
        return load_data(settings.model_copy(update={"spec": "digits", "limit_test": 16}), seed=seed, training=False)

    monkeypatch.setattr(self_test, "load_data", loaded)
    (own_cache / "data" / "cifar-10-batches-py").mkdir(parents=True)
    outcome = done("teacher", "import", reader, *RIGHT, "--out", tmp_path / "t.safetensors", "--json")
    assert [(item.spec, item.limit_test) for item in asked] == [("cifar10", 256)]
    assert json.loads(outcome.out)["measured"]["n"] == 16
    assert "self-test on 256 images of cifar10, as no --data is given" in outcome.err
    # CIFAR-100 is not in the cache.
    for architecture, classes in (("r8", 7), ("imagenet-r18", 1000), ("r8", 100)):
        converted: Any = SimpleNamespace(architecture=architecture, num_classes=classes)
        assert SelfTestSettings().data_for(converted) is None


MEASURED = TeacherAccuracy(clean=0.85, pgd20=0.58, eps="8/255", n=256, data="cifar10", fingerprint="f")


@pytest.mark.parametrize(
    ("clean", "robust", "far"),
    [
        (0.85, 0.55, False),
        (0.94, 0.55, False),
        (0.96, 0.55, True),
        (0.74, 0.55, True),
        (0.85, 0.67, False),
        (0.85, 0.69, True),  # PGD-20 breaks more than AutoAttack did
        (0.85, 0.39, False),
        (0.85, 0.37, True),  # PGD-20 breaks far less than AutoAttack did
        (0.85, None, False),
        (None, None, False),
    ],
)
def test_describe_difference(clean: float | None, robust: float | None, far: bool) -> None:
    found = describe_difference(MEASURED, ExpectedAccuracy(clean, robust))
    assert (found is not None) == far
    if found is not None and robust is not None:
        assert "measured clean 0.850" in found
        assert "PGD-20 0.580, AutoAttack published" in found


def test_expected_accuracy() -> None:
    data = load_data(DataSettings(spec="digits", limit_test=10), seed=0, training=False)
    published = {"clean": 0.9, "autoattack": 0.5, "eps": "4/255"}
    before = {"clean": 0.8, "pgd20": 0.4, "eps": "8/255", "fingerprint": data.fingerprint}
    assert expected_accuracy(published, before, data) == ExpectedAccuracy(0.9, 0.5, "AutoAttack", "4/255")
    assert expected_accuracy(None, before, data) == ExpectedAccuracy(0.8, 0.4, "PGD-20", "8/255", "in the file")
    assert expected_accuracy(None, {**before, "fingerprint": "other"}, data) == ExpectedAccuracy()
    assert expected_accuracy({"clean": None, "eps": "4/255"}, None, data) == ExpectedAccuracy(eps="4/255")
