"""``teacher train``: what is trained, what chooses, what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.data import Batch, ImageSet, load_data
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.evaluate import as_fraction, robust_accuracy
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.loading import resolve_model
from rnascl_cli.recipes.adversarial import TRADES
from rnascl_cli.recipes.load import resolve
from rnascl_cli.recipes.settings import DataSettings, Recipe, TeacherTrainSettings
from rnascl_cli.stages.teacher import train as stage
from rnascl_cli.stages.teacher.train import TeacherStep, train_teacher
from rnascl_cli.stages.training import model_selection
from rnascl_cli.stages.training.adversarial import perturb
from rnascl_cli.stages.training.model_selection import BestCheckpoint
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import read_teacher, write_teacher
from tests.batches import as_batch
from tests.teachers.conftest import random_teacher

CPU = DeviceConfig(torch.device("cpu"), "fp32", "fp32")


def robust(method: str, **settings: float) -> dict[str, Any]:
    """The table of a method, without the settings that it does not have."""
    fast = method == "fgsm-rs"
    return {"method": method, **{key: value for key, value in settings.items() if not fast or key == "eps"}}


def recipe(**own: object) -> Recipe:
    return resolve(
        [
            {
                "seed": 1,
                "device": "cpu",
                "precision": "fp32",
                "data": {"spec": "digits", "limit_train": 60, "limit_test": 20, "holdout": 0.2},
                "teacher_train": {"architecture": "r8", "epochs": 1, "batch_size": 24, **own},
            }
        ]
    )


@pytest.mark.parametrize("method", ["fgsm-rs", "pgd-at", "trades"])
def test_a_trained_teacher_is_a_teacher(tmp_path: Path, method: str) -> None:
    out = tmp_path / "r8.safetensors"
    trained = train_teacher(recipe(robust=robust(method, steps=2)), out, RunDirectory(tmp_path / "run"))
    teacher = read_teacher(str(out), num_classes=10)
    assert teacher.reference.sha256 == trained.sha256
    assert resolve_model(out).kind == "teacher"
    measured = teacher.header["measured"]
    assert (measured["n"], measured["eps"], measured["data"]) == (20, "8/255", "digits")
    assert measured["pgd20"] <= measured["clean"]
    assert teacher.header["training"]["data"]["holdout_images"] == 10
    data = load_data(recipe().data, seed=1)
    assert teacher.header["mean"] == pytest.approx(data.mean)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {"loss", "holdout_accuracy", "holdout_robust_accuracy", "lr"} <= set(json.loads(line))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    hashes = [
        train_teacher(recipe(), tmp_path / name / "t.safetensors", RunDirectory(tmp_path / name / "run")).sha256
        for name in ("a", "b")
    ]
    assert hashes[0] == hashes[1]


def training(**settings: Any) -> tuple[TeacherStep, nn.Module]:
    data = load_data(DataSettings(spec="digits", limit_train=40, holdout=0.2), seed=0)
    module = random_teacher("r8")
    task = TeacherStep(
        module, TeacherTrainSettings(architecture="r8", **settings), holdout=data.holdout, compute=CPU, seed=0
    )
    task.start_epoch(0, torch.Generator().manual_seed(0))
    return task, module


@pytest.mark.parametrize(("method", "rounded"), [("pgd-at", True), ("trades", False)])
def test_trades_looks_for_its_images_in_float32(
    method: str, rounded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return perturb(*args, **kwargs)

    monkeypatch.setattr(stage, "perturb", noting)
    settings = recipe(robust=robust(method, steps=1)).model_copy(update={"precision": "bf16"})
    train_teacher(settings, tmp_path / "t.safetensors", RunDirectory(tmp_path / "run"))
    assert set(seen) == {rounded}


def batch() -> tuple[Tensor, Tensor]:
    data = load_data(DataSettings(spec="digits", limit_train=30, holdout=0.0), seed=0)
    return data.train.images_NCHW / 255, data.train.labels_N


@pytest.mark.parametrize("method", ["fgsm-rs", "pgd-at"])
def test_a_step_trains_on_the_images_that_its_method_perturbs(method: str) -> None:
    task, module = training(robust=robust(method, eps=0.1, step_size=0.03, steps=3))
    x_BCHW, y_B = batch()
    twin = random_teacher("r8").train()
    ball = Linf(0.1)
    start = x_BCHW + ball.noise(x_BCHW, torch.Generator().manual_seed(0))
    step_size, steps = (0.125, 1) if method == "fgsm-rs" else (0.03, 3)
    adversarial = projected_gradient(
        twin, x_BCHW, loss=cross_entropy(y_B), ball=ball, step_size=step_size, steps=steps, start_BCHW=start
    )
    expected = F.cross_entropy(twin(adversarial), y_B)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    metrics = task.step(as_batch(x_BCHW, y_B))
    torch.testing.assert_close(metrics["loss"], expected.detach(), atol=1e-5, rtol=1e-5)
    after = module.state_dict()
    assert not torch.equal(after["conv1.weight"], before["conv1.weight"])
    # One pass in train mode has gone into the running statistics, whatever the number of attack steps.
    assert int(after["bn1.num_batches_tracked"]) == int(before["bn1.num_batches_tracked"]) + 1


def test_a_step_of_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    """CE(p(x), y) + beta KL(p(x) || p(x')) in train mode; x' is looked for in eval mode and starts near x."""
    task, module = training(robust=TRADES(eps=0.1, step_size=0.03, steps=3, beta=2.5))
    x_BCHW, y_B = batch()
    twin = random_teacher("r8").eval()
    noise = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean_BK = twin(x_BCHW).log_softmax(1)
    adversarial = projected_gradient(
        twin,
        x_BCHW,
        loss=lambda logits_BK: (clean_BK.exp() * (clean_BK - logits_BK.log_softmax(1))).sum(1),
        ball=Linf(0.1),
        step_size=0.03,
        steps=3,
        start_BCHW=x_BCHW + 0.001 * noise,
    )
    twin.train()
    log_p_BK, log_r_BK = twin(x_BCHW).log_softmax(1), twin(adversarial).log_softmax(1)
    ce = -log_p_BK.gather(1, y_B[:, None]).mean()
    kl = (log_p_BK.exp() * (log_p_BK - log_r_BK)).sum(1).mean()
    before = int(module.state_dict()["bn1.num_batches_tracked"])
    metrics = task.step(as_batch(x_BCHW, y_B))
    for name, expected in (("ce", ce), ("adversarial", kl), ("loss", ce + 2.5 * kl)):
        torch.testing.assert_close(metrics[name], expected.detach(), atol=1e-4, rtol=1e-4)
    assert kl.item() > 1e-3
    assert {"train_accuracy", "train_robust_accuracy"} <= set(metrics)
    assert module.training
    assert int(module.state_dict()["bn1.num_batches_tracked"]) == before + 2  # clean and perturbed, no half-made ones


def test_beta_zero_is_plain_training() -> None:
    task, module = training(robust=TRADES(beta=0.0, steps=1))
    x_BCHW, y_B = batch()
    twin = random_teacher("r8").train()
    metrics = task.step(as_batch(x_BCHW, y_B))
    torch.testing.assert_close(metrics["loss"], F.cross_entropy(twin(x_BCHW), y_B).detach(), atol=1e-5, rtol=1e-5)
    assert module.training


def given(path: Path, num_classes: int = 10) -> Path:
    write_teacher(
        path,
        random_teacher("r8", num_classes=num_classes, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
        architecture="r8",
        num_classes=num_classes,
        about={},
    )
    return path


def test_training_goes_on_from_a_given_teacher(tmp_path: Path) -> None:
    start = given(tmp_path / "start.safetensors")
    own = {"start_from": str(start), "architecture": None, "optimiser": {"name": "sgd", "lr": 1e-12}}
    trained = train_teacher(recipe(**own), tmp_path / "t.safetensors", RunDirectory(tmp_path / "run"))
    before, after = (read_teacher(str(path)) for path in (start, trained.path))
    assert after.architecture == "r8"
    for key in ("mean", "std"):  # its own normalisation, not that of the data
        assert after.header[key] == before.header[key]
    assert after.header["source_sha256"] == before.reference.sha256
    assert f"from r8 sha256 {before.reference.sha256[:12]}" in after.header["source"]
    assert after.header["training"]["settings"]["start_from"] == str(start)
    name = "layer1.0.conv1.weight"
    torch.testing.assert_close(after.module.state_dict()[name], before.module.state_dict()[name], atol=1e-6, rtol=0)
    # The statistics are those of the images it now sees.
    assert not torch.equal(
        after.module.state_dict()["bn1.running_mean"], before.module.state_dict()["bn1.running_mean"]
    )


def test_what_cannot_be_gone_on_from(tmp_path: Path) -> None:
    start, run = given(tmp_path / "start.safetensors"), RunDirectory(tmp_path / "run")
    out = tmp_path / "t.safetensors"
    with pytest.raises(UserError, match=r"--arch r18: --from .* is a r8; leave --arch out"):
        train_teacher(recipe(start_from=str(start), architecture="r18"), out, run)
    with pytest.raises(UserError, match=r"--from: no file and no cached teacher 'nobody'"):
        train_teacher(recipe(start_from="nobody", architecture=None), out, run)
    with pytest.raises(UserError, match=r"is the teacher to start from, and would be lost"):
        train_teacher(recipe(start_from=str(start), architecture=None), start, run)
    seven = given(tmp_path / "seven.safetensors", num_classes=7)
    with pytest.raises(UserError, match=r"--from .*seven.*: has 7 classes, --data digits has 10"):
        train_teacher(recipe(start_from=str(seven), architecture=None), out, run)
    assert not run.path.exists()


def test_another_start_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training is not resumed once the teacher that it began with has changed."""
    start, run = given(tmp_path / "start.safetensors"), RunDirectory(tmp_path / "run")
    own = recipe(start_from=str(start), architecture=None)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(own, tmp_path / "t.safetensors", run)
    write_teacher(start, random_teacher("r8"), architecture="r8", num_classes=10, about={})
    with pytest.raises(UserError, match=r"belongs to another recipe, data set or teacher"):
        train_teacher(own, tmp_path / "t.safetensors", replace(run, resume=True))


@pytest.mark.parametrize("name", ["wrn-34-10", "imagenet-r18", "timm:test_resnet"])
def test_any_architecture_can_be_trained(name: str) -> None:
    """One step of each kind of network, where a whole epoch would take minutes."""
    module = build_teacher(name, num_classes=10)
    settings = TeacherTrainSettings(architecture=name)
    data = load_data(DataSettings(spec="digits", limit_train=20, holdout=0.5), seed=0)
    task = TeacherStep(module, settings, holdout=data.holdout, compute=CPU, seed=0)
    task.start_epoch(0, torch.Generator().manual_seed(0))
    before = next(module.parameters()).detach().clone()
    metrics = task.step(as_batch(data.train.images_NCHW[:2] / 255, data.train.labels_N[:2]))
    assert metrics["loss"].isfinite()
    assert not torch.equal(next(module.parameters()), before)


def test_best_prefers_robust_then_clean_then_later() -> None:
    best, module = BestCheckpoint(), nn.Linear(1, 1)
    offers = [(0.3, 0.9), (0.5, 0.6), (0.5, 0.7), (0.5, 0.65), (0.4, 1.0), (0.5, 0.7), (0.1, 0.1)]
    for epoch, (robust, clean) in enumerate(offers):
        nn.init.constant_(module.weight, epoch)
        best.update(module, epoch, robust=robust, clean=clean)
    assert (best.epoch, best.validation) == (5, {"robust": 0.5, "clean": 0.7})
    assert best.weights["weight"].item() == 5


def test_the_best_epoch_on_held_out_images_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch is made to look best; the file must then hold its weights, not the last one's."""
    seen: list[Tensor] = []
    scores: Iterator[float] = iter([0.9, 0.2, 0.1])

    def fake(module: nn.Module, images: ImageSet, **_: object) -> float:
        if len(images) == 10:  # the held-out ones; the test images are 20
            seen.append(module.state_dict()["conv1.weight"].clone())
            return next(scores)
        return 0.0

    monkeypatch.setattr(model_selection, "robust_accuracy", fake)
    trained = train_teacher(recipe(epochs=3), tmp_path / "t.safetensors", RunDirectory(tmp_path / "run"))
    assert trained.best_epoch == 1
    saved = read_teacher(str(tmp_path / "t.safetensors")).module.state_dict()["conv1.weight"]
    assert torch.equal(saved, seen[0])
    assert not torch.equal(saved, seen[2])


def test_a_teacher_may_be_a_mean_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    step = TeacherStep.step

    def noted(self: TeacherStep, batch: Batch) -> dict[str, Tensor]:
        found = step(self, batch)
        seen.append(self.module.state_dict()["conv1.weight"].clone())
        return found

    monkeypatch.setattr(TeacherStep, "step", noted)
    own = recipe(average={"kind": "ema", "decay": 0.0})
    trained = train_teacher(own, tmp_path / "last.safetensors", RunDirectory(tmp_path / "a"))
    assert torch.equal(read_teacher(str(trained.path)).module.state_dict()["conv1.weight"], seen[-1])
    seen.clear()
    own = recipe(average={"kind": "ema"})
    trained = train_teacher(own, tmp_path / "mean.safetensors", RunDirectory(tmp_path / "b"))
    expected = seen[0]
    for count, weight in enumerate(seen[1:], 1):
        decay = count / (9 + count)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(read_teacher(str(trained.path)).module.state_dict()["conv1.weight"], expected)
    assert len(seen) == 3


def test_an_exploding_run_writes_no_teacher(tmp_path: Path) -> None:
    wild = recipe(optimiser={"name": "sgd", "lr": 1e30}, epochs=2)
    with pytest.raises(RunError, match=r"teacher-train: 'adversarial' is (nan|inf) at epoch 1, step \d"):
        train_teacher(wild, tmp_path / "t.safetensors", RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "t.safetensors").exists()


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    base = recipe()
    without = base.model_copy(update={"data": base.data.model_copy(update={"holdout": 0.0})})
    with pytest.raises(UserError, match=r"data\.holdout"):
        train_teacher(without, tmp_path / "t.safetensors", run)
    with pytest.raises(UserError, match=r"imagenet-r18: made for images of 224 pixels, --data digits has 32"):
        train_teacher(recipe(architecture="imagenet-r18"), tmp_path / "t.safetensors", run)
    assert not run.path.exists()


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above one half; its robust accuracy can be worked out by hand."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        score_B = x_BCHW.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-score_B, score_B], dim=1)


def test_robust_accuracy_by_hand() -> None:
    # Means 0.4, 0.49, 0.51, 0.7 with labels 0, 0, 0, 1: the third is wrong already, and 0.05 turns the second.
    levels = torch.tensor([102, 125, 130, 178], dtype=torch.uint8)
    images = ImageSet(levels[:, None, None, None].expand(4, 3, 8, 8), torch.tensor([0, 0, 0, 1]), torch.arange(4))

    def robust(eps: float, steps: int = 20) -> float:
        return robust_accuracy(
            Brightness(), images, eps=eps, steps=steps, compute=CPU, noise=torch.Generator().manual_seed(0)
        )

    assert robust(1e-4) == 0.75
    assert robust(0.05) == 0.5
    assert robust(0.25) == 0.0


def test_modes_and_gradients_are_as_before() -> None:
    module = random_teacher("r8").train()
    data = load_data(DataSettings(spec="digits", limit_test=10), seed=0)
    robust_accuracy(module, data.test, eps=0.1, steps=2, compute=CPU, noise=torch.Generator())
    assert all(child.training for child in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.03, "0.03"), (16 / 255, "16/255"), (0.0, "0/255")])
def test_eps_as_text(eps: float, text: str) -> None:
    assert as_fraction(eps) == text


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_teacher(recipe(epochs=2), tmp_path / "a" / "t.safetensors", RunDirectory(tmp_path / "a" / "run"))
    ended = TeacherStep.end_epoch

    def stop_in_the_second(self: TeacherStep) -> dict[str, Any]:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return ended(self)

    out, run = tmp_path / "b" / "t.safetensors", RunDirectory(tmp_path / "b" / "run")
    with monkeypatch.context() as patch:
        patch.setattr(TeacherStep, "end_epoch", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(recipe(epochs=2), out, run)
    resumed = train_teacher(recipe(epochs=2), out, replace(run, resume=True))
    assert resumed.sha256 == whole.sha256
