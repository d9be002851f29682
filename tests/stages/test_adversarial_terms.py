"""Adversarial images and loss terms, computed by hand.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.artifacts.documents import Architecture, DerivedDocument, Provenance
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.files import build_student
from rnascl_cli.recipes.adversarial import METHODS as MEMBERS
from rnascl_cli.recipes.adversarial import RobustSettings
from rnascl_cli.recipes.settings import SGD, AdvFinetuneSettings, AttentionSettings, KLSettings
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.training import adversarial
from rnascl_cli.stages.training.adversarial import FAST_STEP, perturb, starting_offset
from rnascl_cli.stages.training.distillation import distilling
from rnascl_cli.stages.training.step import StudentStep
from rnascl_cli.teachers.forward import TeacherOutput
from tests.batches import as_batch
from tests.engine.toy import CPU, image_set
from tests.models.slimming import shaken

pytestmark = pytest.mark.unit

METHODS = ("trades", "pgd-at", "fast-at")


def robust_settings(method: str, **settings: Any) -> Any:
    """The settings of a method, without those that it does not have."""
    member = MEMBERS[method]
    return member(**{key: value for key, value in settings.items() if key in member.model_fields})


class Tiny(nn.Module):
    """A model with BatchNorm and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.seen: list[bool] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.seen.append(self.training)
        logits: Tensor = self.linear(F.relu(self.bn(self.conv(x_BCHW))).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def tiny() -> Tiny:
    """The model in eval mode, with strong weights."""
    torch.manual_seed(0)
    model = Tiny().eval()
    nn.init.normal_(model.linear.weight, std=3.0)
    return model


def offset(x_BCHW: Tensor, settings: RobustSettings, seed: int) -> Tensor:
    return starting_offset(x_BCHW, settings, noise=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eps", [2 / 255, 8 / 255, 0.5])
def test_adversarial_images_lie_in_the_ball_and_in_range(tiny: Tiny, method: Any, eps: float) -> None:
    settings = robust_settings(method, eps=eps, step_size=eps / 2, steps=4)
    x_BCHW, y_B = torch.rand(16, 3, 8, 8), torch.arange(16) % 3
    x_BCHW[0], x_BCHW[1] = 0.0, 1.0
    found = perturb(tiny, x_BCHW, y_B, settings, offset_BCHW=offset(x_BCHW, settings, 0))
    assert (found - x_BCHW).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    # It is worth its steps: the loss it climbs is larger there than at random points of the ball.
    with torch.no_grad():
        log_p = tiny(x_BCHW).log_softmax(1)

        def climbed(x: Tensor) -> float:
            logits = tiny(x)
            if method == "trades":
                return F.kl_div(logits.log_softmax(1), log_p, reduction="batchmean", log_target=True).item()
            return F.cross_entropy(logits, y_B).item()

        random = (x_BCHW + (2 * torch.rand_like(x_BCHW) - 1) * eps).clamp(0, 1)
        assert climbed(found) > climbed(random)


def test_fast_at_is_one_step_of_1_25_eps(tiny: Tiny) -> None:
    settings = robust_settings("fast-at", eps=0.1)
    x_BCHW, y_B = torch.rand(4, 3, 8, 8) * 0.4 + 0.3, torch.tensor([0, 1, 2, 0])
    found = perturb(tiny, x_BCHW, y_B, settings, offset_BCHW=offset(x_BCHW, settings, 5))
    start = x_BCHW + (2 * torch.rand(x_BCHW.shape, generator=torch.Generator().manual_seed(5)) - 1) * 0.1
    start.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(tiny(start), y_B, reduction="sum"), start)
    by_hand = x_BCHW + (start.detach() + 0.125 * gradient.sign() - x_BCHW).clamp(-0.1, 0.1)
    torch.testing.assert_close(found, by_hand)
    assert FAST_STEP == 1.25


@pytest.mark.parametrize("method", [*METHODS, "mart"])
def test_starting_points(tiny: Tiny, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Tensor] = []

    def noted(_model: nn.Module, x_BCHW: Tensor, *, start_BCHW: Tensor, **_rest: Any) -> Tensor:
        starts.append(start_BCHW - x_BCHW)
        return x_BCHW

    monkeypatch.setattr(adversarial, "projected_gradient", noted)
    settings = robust_settings(method, eps=0.1)
    for seed in (0, 0, 1):
        x_BCHW, y_B = torch.full((16, 3, 16, 16), 0.5), torch.zeros(16, dtype=torch.int64)
        perturb(tiny, x_BCHW, y_B, settings, offset_BCHW=offset(x_BCHW, settings, seed))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    # TRADES and MART: a Gaussian of 0.001 around x, as in their authors' code. The others: uniform over the ball.
    expected = 0.001 if method in ("trades", "mart") else 0.2 / math.sqrt(12)
    assert starts[0].std().item() == pytest.approx(expected, rel=0.03)
    assert starts[0].mean().item() == pytest.approx(0.0, abs=expected / 20)


def test_student_is_attacked_in_eval_mode_and_unchanged(
    tiny: Tiny, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, student, x_BCHW, y_B = fine_tuning("pgd-at", provenance)
    seen: list[tuple[bool, bool]] = []

    def noted(model: Any, x_BCHW: Tensor, *_: Any, **__: Any) -> Tensor:
        assert torch.equal(model(x_BCHW), student(x_BCHW))
        seen.append((student.training, any(parameter.requires_grad for parameter in student.parameters())))
        return x_BCHW

    monkeypatch.setattr(adversarial, "perturb", noted)
    step.step(as_batch(x_BCHW, y_B))
    assert seen == [(False, False)]
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def fine_tuning(method: Any, provenance: Provenance) -> tuple[StudentStep, nn.Module, Tensor, Tensor]:
    """A step without a teacher, its student, and a batch."""
    space = SPACES["S3"]
    cost = network_cost(space, space.smallest, num_classes=3)
    architecture = Architecture(
        space="S3", widths=space.smallest, num_classes=3, input_size=16, params=cost.params, macs=cost.macs
    )
    derived = DerivedDocument(provenance=provenance, paradigm="standard", architecture=architecture, tutors=None)
    student = build_student(architecture)
    nn.init.normal_(student.classifier.weight, std=0.1)
    shaken(student, 2)
    settings = AdvFinetuneSettings(robust=robust_settings(method), optimiser=SGD(lr=1e-9))
    with distilling(
        student, None, derived, paradigm="standard", attention=AttentionSettings(), kl=KLSettings(), compute=CPU
    ) as distillation:
        step = StudentStep("adv-finetune", settings, distillation, holdout=image_set(0), compute=CPU, seed=0)
    return step, student, torch.rand(6, 3, 16, 16), torch.arange(6) % 3


@pytest.mark.parametrize("method", METHODS)
def test_teacher_terms_are_on_clean_images(
    method: Any, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, student, x_BCHW, y_B = fine_tuning(method, provenance)
    monkeypatch.setattr(adversarial, "perturb", lambda *_, **__: 1 - x_BCHW)
    student.train()
    with torch.no_grad(), fixed_statistics(student):
        clean_BK = student(x_BCHW)

    teacher = TeacherOutput(torch.randn(6, 3), None)
    batch = as_batch(x_BCHW, y_B)
    monkeypatch.setattr(step.model, "kl", KLSettings(weight=0.5))
    output = step.loss(batch, teacher, 1 - x_BCHW)
    kl = F.kl_div(teacher.logits_BK.log_softmax(1), clean_BK.log_softmax(1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(output.terms["kl"], kl, rtol=1e-4, atol=1e-4)
    without = step.loss(batch, None, 1 - x_BCHW)
    torch.testing.assert_close(output.loss, without.loss + 0.5 * kl, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_terms_by_hand(method: Any, provenance: Provenance, monkeypatch: pytest.MonkeyPatch) -> None:
    step, student, x_BCHW, y_B = fine_tuning(method, provenance)
    perturbed_BCHW = 1 - x_BCHW
    student.train()
    with torch.no_grad(), fixed_statistics(student):
        p_BK, r_BK = (student(x).double().softmax(1) for x in (x_BCHW, perturbed_BCHW))
    monkeypatch.setattr(adversarial, "perturb", lambda *_, **__: perturbed_BCHW)
    found = {name: value.item() for name, value in step.step(as_batch(x_BCHW, y_B)).items()}
    clean_ce, perturbed_ce = (-sum(math.log(q[b, y_B[b]].item()) for b in range(6)) / 6 for q in (p_BK, r_BK))
    assert abs(clean_ce - perturbed_ce) > 0.01
    if method == "trades":
        kl = sum((p_BK[b] * (p_BK[b] / r_BK[b]).log()).sum().item() for b in range(6)) / 6
        assert kl > 0.01
        assert (found["ce"], found["adversarial"]) == pytest.approx((clean_ce, kl), rel=1e-4)
        assert found["loss"] == pytest.approx(clean_ce + 6.0 * kl, rel=1e-4)
    else:
        assert "ce" not in found
        assert (found["adversarial"], found["loss"]) == pytest.approx((perturbed_ce, perturbed_ce), rel=1e-4)
    right = [(q.argmax(1) == y_B).double().mean().item() for q in (p_BK, r_BK)]
    assert [found["train_accuracy"], found["train_robust_accuracy"]] == pytest.approx(right)


@pytest.mark.parametrize("method", METHODS)
def test_running_statistics_come_from_images_with_a_loss_term(
    method: Any, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under PGD-AT and Fast-AT without a teacher those of the perturbed images alone; under TRADES of both."""
    step, student, x_BCHW, y_B = fine_tuning(method, provenance)
    other = copy.deepcopy(student).train()
    with torch.no_grad():
        for images_BCHW in (x_BCHW, 1 - x_BCHW) if method == "trades" else (1 - x_BCHW,):
            other(images_BCHW)
    monkeypatch.setattr(adversarial, "perturb", lambda *_, **__: 1 - x_BCHW)
    before = {name: tensor.clone() for name, tensor in student.named_buffers()}
    step.step(as_batch(x_BCHW, y_B))
    expected = dict(other.named_buffers())
    for name, tensor in student.named_buffers():
        torch.testing.assert_close(tensor, expected[name])
    assert not torch.equal(dict(student.named_buffers())["stem.bn.running_mean"], before["stem.bn.running_mean"])
