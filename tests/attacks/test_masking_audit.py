"""Signs of gradient masking, and the audit: a masked model fails, an honest one passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.artifacts.documents import AuditCheck
from rnascl_cli.attacks import audit
from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.evaluate import Gradients, Outcome
from rnascl_cli.attacks.gradient_masking import masking_signs
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.core.units import parse_epsilon
from tests.attacks import tiny
from tests.attacks.tiny import Interrupting

FINE = Gradients(images=100, zero=0, not_finite=0)
pytestmark = pytest.mark.unit


def outcome(name: str, broken: int, *, n: int = 100, eps: str = "8/255", **details: object) -> Outcome:
    attack = AutoAttack(name) if name in ("aa", "square") else tiny.attacks(name)[0]
    return Outcome(attack, parse_epsilon(eps), torch.arange(n) < broken, **details)  # type: ignore[arg-type]


def test_honest_results_give_no_sign() -> None:
    results = [outcome("fgsm", 40), outcome("pgd20", 45), outcome("cw", 46), outcome("aa", 48), outcome("square", 30)]
    assert masking_signs(results, FINE) == []


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([outcome("fgsm", 50), outcome("pgd20", 40)], "failed check 'many steps are no worse than one'"),
        ([outcome("pgd20", 60), outcome("aa", 95)], "35.0 points apart: a sign of gradient masking"),
        ([outcome("pgd20", 40), outcome("square", 50)], "at eps 8/255 Square leaves 50.0 %, pgd20 60.0 %"),
        ([outcome("aa", 50, broken_by={"apgd-ce": 10, "square": 9})], "broke 9 images"),
        ([outcome("pgd20", 40, eps="4/255"), outcome("pgd20", 40)], "no decrease from eps 4/255 to 8/255"),
        ([outcome("aa", 10, out_of_ball=3)], "3 perturbed images left the ball"),
        ([outcome("aa", 10, notes=("it seems to be randomized",))], "aa at eps 8/255: it seems to be randomized"),
    ],
)
def test_messages_of_signs(results: Sequence[Outcome], words: str) -> None:
    (sign,) = masking_signs(results, FINE)
    assert words in sign


def test_zero_and_non_finite_gradients_are_signs() -> None:
    zero, not_finite = masking_signs([], Gradients(images=50, zero=7, not_finite=2))
    assert zero.startswith("7 of 50 images have an all-zero loss gradient")
    assert not_finite.startswith("2 of 50 images have a loss gradient that is not finite")


def test_small_differences_give_no_sign() -> None:
    assert masking_signs([outcome("fgsm", 41), outcome("pgd20", 40)], FINE) == []
    assert masking_signs([outcome("pgd20", 40), outcome("aa", 50)], FINE) == []


class Scaled(nn.Module):
    """Logits times 1000: the softmax saturates and its gradient underflows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.model(x_BCHW)
        return 1000 * logits


class Rounded(Scaled):
    """Input rounded to 20 levels: the gradient of rounding is zero."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.model((x_BCHW * 20).round() / 20)
        return logits


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the iterations: enough for the small network."""
    monkeypatch.setattr(audit, "AutoAttack", lambda name, **_: AutoAttack(name, iterations=20, queries=300))


def card(model: nn.Module, *, limit: int = 40) -> dict[str, AuditCheck]:
    evaluator = tiny.evaluator(model, tiny.images(60, seed=9))
    checks = audit.audit_model(evaluator, evaluator.clean(), parse_epsilon("8/255"), [], limit=limit)
    return {check.name: check for check in checks}


@pytest.mark.usefixtures("_short")
def test_an_honest_adversarially_trained_model_passes(robust: nn.Module) -> None:
    checks = card(robust)
    assert len(checks) == 8
    assert all(check.passed for check in checks.values()), checks


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("mask", [Scaled, Rounded])
def test_a_masked_model_fails(plain: nn.Module, mask: type[Scaled]) -> None:
    checks = card(mask(plain).eval())
    failed = {name for name, check in checks.items() if not check.passed}
    assert {
        "gradients are there",
        "accuracy reaches about 0 at a large eps",
        "a black-box attack does not beat gradients",
        "AutoAttack is close to PGD",
    } <= failed
    assert "gradient masking" in checks["AutoAttack is close to PGD"].detail


@pytest.mark.usefixtures("_short")
def test_randomness_and_batch_dependence_fail(robust: nn.Module) -> None:
    class Fickle(Scaled):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.model(x_BCHW)
            return logits + torch.randn_like(logits)

    class Sociable(Scaled):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.model(x_BCHW)
            return logits - logits.mean(dim=0)

    assert not card(Fickle(robust).eval(), limit=5)["the forward pass is deterministic"].passed
    assert not card(Sociable(robust).eval(), limit=5)["an image's logits do not depend on its batch"].passed


@pytest.mark.usefixtures("_short")
def test_batch_statistics_and_detached_logits_fail(robust: nn.Module) -> None:
    class Batched(Scaled):
        """A BatchNorm that normalises with its batch's own statistics, in eval mode too."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.norm = nn.BatchNorm1d(10, track_running_stats=False)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.norm(self.model(x_BCHW))
            return logits

    class Cut(Scaled):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.model(x_BCHW.detach())
            return logits

    assert not card(Batched(robust).eval().requires_grad_(False), limit=5)[
        "an image's logits do not depend on its batch"
    ].passed
    flat = card(Cut(robust).eval(), limit=5)
    assert not flat["gradients are there"].passed
    assert not flat["accuracy reaches about 0 at a large eps"].passed


def test_an_interrupted_audit_is_resumed(robust: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "AutoAttack", lambda name, **_: AutoAttack(name, iterations=5, queries=20))
    data, eps = tiny.images(30, seed=9), parse_epsilon("8/255")
    right_N = tiny.evaluator(robust, data).clean()

    def run(model: nn.Module, journal: Journal | None) -> list[AuditCheck]:
        evaluator = tiny.evaluator(model, data, batch_size=10, journal=journal)
        return audit.audit_model(evaluator, right_N, eps, [], limit=20)

    whole = run(robust, None)
    first = Journal(tmp_path / "partial.jsonl", {})
    first.start()
    with pytest.raises(KeyboardInterrupt):
        run(Interrupting(robust, 400), first)
    second = Journal(tmp_path / "partial.jsonl", {})
    assert second.load() > 2
    counting = Interrupting(robust, 10**6)
    assert run(counting, second) == whole
    third = Journal(tmp_path / "partial.jsonl", {})
    third.load()
    again = Interrupting(robust, 10**6)
    assert run(again, third) == whole
    assert 10**6 - again.left < 60 < 10**6 - counting.left  # the looks at the model itself are all that is repeated


def test_a_model_without_correct_images_fails(robust: nn.Module) -> None:
    evaluator = tiny.evaluator(robust, tiny.images(4))
    (check,) = audit.audit_model(evaluator, torch.zeros(4).bool(), parse_epsilon("8/255"), [], limit=4)
    assert not check.passed
