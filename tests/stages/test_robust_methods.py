"""The six adversarial methods on students, as units and through the command line.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.core.errors import RunError
from rnascl_cli.data import BatchShard
from rnascl_cli.engine.training_loop import set_current_step
from rnascl_cli.recipes.adversarial import ARD, MART, PGDAT, RSLAD, TRADES, FastAT, RobustSettings
from rnascl_cli.stages.training.adversarial import AdversarialObjective, kl_from, term_weights
from rnascl_cli.stages.training.sanity_checks import SanityCheck
from rnascl_cli.stages.training.step import StudentStep
from rnascl_cli.teachers.forward import TeacherOutput
from tests.command import done, refused, rnascl
from tests.conftest import FAST
from tests.stages.test_adversarial_terms import Tiny, robust_settings
from tests.stages.test_search_chain import TERMS, numbers

METHODS = ("trades", "mart", "pgd-at", "fast-at", "ard", "rslad")
SHORT = ("--epochs", 1, *FAST)
STEPS = ("--set", "robust.steps=2")
OFTEN = ("--set", "checkpoint_minutes=0.00001")  # a checkpoint after every step
OWN = {
    "trades": {"ce", "adversarial"},
    "mart": {"adversarial", "weighted_kl"},
    "pgd-at": {"adversarial"},
    "fast-at": {"adversarial"},
    "ard": {"adversarial", "ce"},
    "rslad": {"adversarial", "clean_kl"},
}
WEIGHTS = {"trades": {"adversarial": 6.0}, "mart": {"weighted_kl": 5.0}, "ard": {"adversarial": 1.0, "ce": 0.0}}
WEIGHTS["rslad"] = {"adversarial": 5 / 6, "clean_kl": 1 / 6}


@pytest.fixture
def tiny() -> Tiny:
    """A model with BatchNorm in train mode, whose statistics are unlike those of any batch."""
    torch.manual_seed(0)
    model = Tiny().train()
    nn.init.normal_(model.linear.weight, std=3.0)
    assert model.bn.running_mean is not None
    nn.init.normal_(model.bn.running_mean)
    return model


@pytest.mark.unit
@pytest.mark.parametrize("statistics", ["running", "batch", "published"])
@pytest.mark.parametrize("method", METHODS)
def test_adversarial_images_of_each_method(tiny: Tiny, method: Any, statistics: Any) -> None:
    """Worked out again with the attack loop alone; nothing of the network moves."""
    settings = robust_settings(method, eps=0.1, step_size=0.03, steps=3)
    x_BCHW, y_B = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    teacher_BK = torch.randn(6, 3)
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    objective = AdversarialObjective(settings, statistics=statistics)
    found = objective.perturb(
        tiny,
        x_BCHW,
        y_B,
        offset_BCHW=objective.draw(x_BCHW, noise=torch.Generator().manual_seed(5), share=BatchShard(len(y_B))),
        teacher_BK=teacher_BK,
        unwatched=torch.enable_grad(),
    )
    in_eval_mode = {"running": True, "batch": False, "published": method in ("trades", "mart", "rslad")}[statistics]
    assert set(tiny.seen) == {not in_eval_mode}
    assert tiny.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny.parameters())
    tiny.train(not in_eval_mode)
    noise, ball = torch.Generator().manual_seed(5), Linf(0.1)
    beside = method in ("trades", "mart", "rslad")
    start = 0.001 * torch.randn(x_BCHW.shape, generator=noise) if beside else ball.noise(x_BCHW, noise)
    loss = cross_entropy(y_B)
    if method in ("trades", "rslad"):
        loss = kl_from(teacher_BK if method == "rslad" else tiny(x_BCHW).detach())
    size, steps = (0.125, 1) if method == "fast-at" else (0.03, 3)
    expected = projected_gradient(
        tiny, x_BCHW, loss=loss, ball=ball, step_size=size, steps=steps, start_BCHW=x_BCHW + start
    )
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@pytest.mark.unit
def test_rslad_maximizes_the_kl_from_the_teacher(tiny: Tiny) -> None:
    """KL(q || p(x')) is larger there than at the clean image, and than where KL(p || p') is largest."""
    x_BCHW, y_B, teacher_BK = torch.rand(16, 3, 8, 8), torch.arange(16) % 3, 3 * torch.randn(16, 3)
    tiny.eval()

    def climbed(method: Any) -> float:
        settings = robust_settings(method, eps=0.1, step_size=0.03, steps=5)
        objective = AdversarialObjective(settings, statistics="running")
        images_BCHW = objective.perturb(
            tiny.train(),
            x_BCHW,
            y_B,
            offset_BCHW=objective.draw(x_BCHW, noise=torch.Generator().manual_seed(0), share=BatchShard(len(y_B))),
            teacher_BK=teacher_BK,
            unwatched=torch.enable_grad(),
        )
        with torch.no_grad():
            return kl_from(teacher_BK)(tiny.eval()(images_BCHW)).mean().item()

    with torch.no_grad():
        clean = kl_from(teacher_BK)(tiny(x_BCHW)).mean().item()
    assert climbed("rslad") > max(clean, climbed("trades"))


@pytest.mark.unit
def test_weights_of_the_terms() -> None:
    own: list[RobustSettings] = [
        TRADES(beta=2.0),
        MART(kl_weight=3.0),
        PGDAT(),
        FastAT(),
        ARD(alpha=0.75),
        RSLAD(adversarial_share=0.5),
    ]
    found = {settings.method: term_weights(settings) for settings in own}
    assert found == {
        "trades": {"adversarial": 2.0},
        "mart": {"weighted_kl": 3.0},
        "pgd-at": {},
        "fast-at": {},
        "ard": {"adversarial": 0.75, "ce": 0.25},
        "rslad": {"adversarial": 0.5, "clean_kl": 0.5},
    }


@pytest.mark.unit
def test_temperature_of_ard() -> None:
    own = ARD(temperature=2.0)
    student_BK, teacher_BK = torch.zeros(1, 2), torch.tensor([[2 * torch.tensor(3.0).log(), 0.0]])
    terms = AdversarialObjective(own, statistics="batch").terms(student_BK, student_BK, torch.tensor([0]), teacher_BK)
    assert terms["adversarial"].item() == pytest.approx(4 * (0.75 * 0.4054651 - 0.25 * 0.6931472), rel=1e-5)


@pytest.mark.unit
def test_teacher_with_constant_logits_is_refused() -> None:
    teacher_output = TeacherOutput(torch.ones(3, 4), None)
    none: dict[str, Any] = {"teacher_layers": [], "student_layers": [], "student_BLP": None}
    set_current_step("train", epoch=0, step=0)
    SanityCheck().run(teacher_output, kl=False, **none)
    expected = r"'adversarial' at epoch 1, step 1: the teacher gives the same logits .* use another method than rslad"
    with pytest.raises(RunError, match=expected):
        SanityCheck().run(teacher_output, kl=False, method="rslad", **none)


def check(entry: dict[str, Any], method: str, paradigm: str) -> None:
    """The entry's terms are the method's and the paradigm's, and their weighted sum is the loss."""
    stay = TERMS[paradigm]
    assert set(entry) & {"ce", "adversarial", "weighted_kl", "clean_kl", "kl", "attention"} == OWN[method] | stay
    assert 0 <= entry["train_robust_accuracy"] <= 1
    weights = WEIGHTS.get(method, {})
    total = sum(weights.get(name, 1.0) * entry[name] for name in OWN[method]) + sum(entry[name] for name in stay)
    assert entry["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.pipeline
@pytest.mark.parametrize("method", ["mart", "ard", "rslad"])  # the others: test_adv_finetune.py
def test_fine_tuning(trained: dict[str, Path], tmp_path: Path, method: str) -> None:
    said = done("adv-finetune", trained["rnas-cl"], "--method", method, *SHORT, *STEPS, "--out", tmp_path / "run").err
    shown = next(line for line in said.splitlines() if "adv-finetune epoch 1/1: loss" in line)
    assert all(f", {term} " in shown for term in OWN[method])
    document = read_document(tmp_path / "run" / "adv-finetune.json", AdvFinetuneDocument)
    assert (document.method, document.paradigm, document.best_epoch) == (method, "rnas-cl", None)
    check(document.history[0], method, "rnas-cl")


@pytest.mark.pipeline
@pytest.mark.parametrize("method", METHODS)
def test_training_from_scratch(searched: dict[str, Path], tmp_path: Path, method: str) -> None:
    paradigm = "rnas-cl" if method in ("trades", "rslad") else "icc"
    steps = () if method == "fast-at" else STEPS
    done("train", searched[paradigm], "--method", method, *SHORT, *steps, "--out", tmp_path / "run")
    document = read_document(tmp_path / "run" / "train.json", TrainDocument)
    assert (document.method, document.paradigm, document.average) == (method, paradigm, None)
    check(document.history[0], method, paradigm)


@pytest.mark.pipeline
def test_distillation_methods_under_the_standard_paradigm(
    searched: dict[str, Path], tiny_teacher: Path, tmp_path: Path
) -> None:
    """The search had a teacher, which the training under the standard paradigm has not used; the methods do."""
    done("train", searched["kl"], "--paradigm", "standard", *SHORT, "--out", tmp_path / "plain")
    plain = read_document(tmp_path / "plain" / "train.json", TrainDocument)
    assert (plain.provenance.teacher, plain.method) == (None, None)
    for method in ("ard", "rslad"):
        done("adv-finetune", tmp_path / "plain", "--method", method, *SHORT, *STEPS, "--out", tmp_path / method)
        tuned = read_document(tmp_path / method / "adv-finetune.json", AdvFinetuneDocument)
        assert tuned.paradigm == "standard"
        assert tuned.provenance.teacher is not None
        assert tuned.provenance.teacher.path == str(tiny_teacher)
        check(tuned.history[0], method, "standard")


@pytest.mark.pipeline
def test_missing_or_unfit_teacher_is_refused(
    searched: dict[str, Path], trained: dict[str, Path], tiny_teacher: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    for command, source, method in (("train", searched, "rslad"), ("adv-finetune", trained, "ard")):
        arguments = (command, source["standard"], "--method", method, *SHORT, *STEPS)
        line = refused(*arguments, "--out", tmp_path / "none")
        assert f"--teacher: method '{method}' learns from a teacher's logits; name one or use another method" in line
        done(*arguments, "--teacher", tiny_teacher, "--out", tmp_path / command)
    images = ("--data", f"folder:{tiny_folder}")
    done("search", "--space", "S3", "--paradigm", "standard", *images, "--epochs", 1, *FAST, "--out", tmp_path / "s")
    taught = ("--method", "rslad", "--teacher", tiny_teacher)
    line = refused("train", tmp_path / "s", *taught, *SHORT, "--out", tmp_path / "none")
    assert "has 10 classes, the data has 3; choose another of them, or use another method than rslad" in line
    assert not (tmp_path / "none").exists()


@pytest.mark.pipeline
def test_resumed_training_gives_the_same_bytes(
    searched: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside an epoch, with everything that can be switched on: method, average and choice."""
    options = ("--method", "trades", "--average", "ema", "--select", "robust", "--set", "data.holdout=0.3")
    arguments = ["train", searched["standard"], *options, *SHORT, *STEPS, "--epochs", 2, *OFTEN]
    done(*arguments, "--out", tmp_path / "whole")
    step, steps = StudentStep.step, iter(range(1000))

    def interrupted(self: StudentStep, batch: Any) -> dict[str, Tensor]:
        if next(steps) == 3:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(StudentStep, "step", interrupted)
        assert rnascl(*arguments, "--out", tmp_path / "run").code == 130
    done(*arguments, "--out", tmp_path / "run", "--resume")
    one, two = (read_document(tmp_path / name / "train.json", TrainDocument) for name in ("whole", "run"))
    assert one.student_sha256 == two.student_sha256
    assert (one.best_epoch, one.validation) == (two.best_epoch, two.validation)
    assert numbers(one.history) == numbers(two.history)


@pytest.mark.pipeline
def test_eps_of_zero_is_warned_about(searched: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("train", searched["standard"], *SHORT, *STEPS, "--method", "pgd-at", "--set", "robust.eps=0")
    outcome = done(*arguments, "--out", tmp_path / "run")
    assert "warning: train: robust.eps is 0" in " ".join(outcome.err.split())
