"""The terms of adversarial training: golden values worked by hand, and gradients against finite differences.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.distill.adversarial_losses import (
    adversarial_ce_terms,
    ard_terms,
    bce_loss,
    mart_terms,
    rslad_terms,
    trades_terms,
)

pytestmark = pytest.mark.unit

LOG2 = math.log(2)
Y_B = torch.tensor([0, 2])
# Two images: of the first, p(x) = (1/2, 1/4, 1/4) and p(x') = (1/4, 1/2, 1/4); of the second, both are the same.
CLEAN_BK = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]).log()
PERTURBED_BK = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]]).log()
# Two classes: q = (3/4, 1/4).
TEACHER_12 = torch.tensor([[3.0, 1.0]]).log()
KL_Q_HALF = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # KL(q || (1/2, 1/2))


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def test_pgd_at_is_the_cross_entropy_of_the_perturbed_images() -> None:
    # -log 1/4 and -log 1/2.
    assert values(adversarial_ce_terms(PERTURBED_BK, Y_B)) == pytest.approx({"adversarial": 1.5 * LOG2})


def test_trades() -> None:
    # CE: log 2 and log 2. KL(p || p') = 1/2 log 2 + 1/4 log 1/2, and 0.
    expected = {"ce": LOG2, "adversarial": LOG2 / 8}
    assert values(trades_terms(CLEAN_BK, PERTURBED_BK, Y_B)) == pytest.approx(expected)


def test_mart() -> None:
    # BCE of the first: -log 1/4 - log(1 - 1/2); of the second: -log 1/2 - log(1 - 3/10).
    boosted = (2 * LOG2 + LOG2 + LOG2 - math.log(0.7)) / 2
    # KL of the first, 1/4 log 2, times 1 - p_y(x) = 1/2; of the second 0.
    expected = {"adversarial": boosted, "weighted_kl": LOG2 / 16}
    assert values(mart_terms(CLEAN_BK, PERTURBED_BK, Y_B)) == pytest.approx(expected)


def test_marts_weight_is_of_the_clean_image() -> None:
    sure_BK = torch.tensor([[0.98, 0.01, 0.01]]).log()
    first = mart_terms(sure_BK, PERTURBED_BK[:1], Y_B[:1])["weighted_kl"].item()
    kl = 0.98 * math.log(0.98 / 0.25) + 0.01 * math.log(0.01 / 0.5) + 0.01 * math.log(0.01 / 0.25)
    assert first == pytest.approx(0.02 * kl, rel=1e-4)


def test_mart_is_its_authors_formula(generator: torch.Generator) -> None:
    clean_BK, perturbed_BK = (torch.randn(8, 10, generator=generator) for _ in range(2))
    y_B = torch.arange(8)
    p_BK, r_BK = clean_BK.softmax(1), perturbed_BK.softmax(1)
    two_B2 = r_BK.argsort(dim=1)[:, -2:]
    rival_B = torch.where(two_B2[:, -1] == y_B, two_B2[:, -2], two_B2[:, -1])
    boosted = F.cross_entropy(perturbed_BK, y_B) + F.nll_loss((1.0001 - r_BK + 1e-12).log(), rival_B)
    weighted = ((p_BK * (p_BK / r_BK).log()).sum(1) * (1 - p_BK[torch.arange(8), y_B])).mean()
    found = mart_terms(clean_BK, perturbed_BK, y_B)
    torch.testing.assert_close(found["adversarial"], boosted, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found["weighted_kl"], weighted)


def test_the_bce_loss_bears_extreme_logits() -> None:
    logits_BK = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    loss = bce_loss(logits_BK, torch.tensor([0]))
    loss.backward()  # type: ignore[no-untyped-call]
    # -log p_0 = 400, and 1 - p_1 = p_0 + p_2 = e^-200.
    assert loss.item() == pytest.approx(600.0)
    assert logits_BK.grad is not None
    assert logits_BK.grad.isfinite().all()


def test_ard() -> None:
    # T = 2 turns (2 log 3, 0) into q = (3/4, 1/4); the student says (1/2, 1/2) of x', and (3/4, 1/4) of x.
    found = ard_terms(TEACHER_12, torch.zeros(1, 2), torch.tensor([1]), 2 * TEACHER_12, temperature=2.0)
    assert values(found) == pytest.approx({"adversarial": 4 * KL_Q_HALF, "ce": math.log(4)}, rel=1e-6)


def test_rslad_is_from_the_teacher_and_has_no_hard_label() -> None:
    # q = (3/4, 1/4); p(x') = (1/2, 1/2); p(x) = (1/4, 3/4), and KL(q || p) is not KL(p || q) in either.
    clean_12 = torch.tensor([[1.0, 3.0]]).log()
    expected = {"adversarial": KL_Q_HALF, "clean_kl": 0.75 * math.log(3) + 0.25 * math.log(1 / 3)}
    assert values(rslad_terms(clean_12, torch.zeros(1, 2), TEACHER_12)) == pytest.approx(expected, rel=1e-6)


def softmaxes(*logits: Tensor) -> list[Tensor]:
    return [each.double().softmax(1) for each in logits]


def kl(p_BK: Tensor, r_BK: Tensor) -> Tensor:
    return (p_BK * (p_BK / r_BK).log()).sum(1)


Found = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
ByHand = Callable[[Tensor, Tensor, Tensor], Tensor]
LABELS = torch.tensor([0, 2, 1])
ROWS = torch.arange(3)


def mart_by_hand(clean: Tensor, perturbed: Tensor, _teacher: Tensor) -> Tensor:
    p, r = softmaxes(clean, perturbed)
    others = r.clone()
    others[ROWS, LABELS] = 0
    boosted = -r[ROWS, LABELS].log() - (1 - others.max(1).values).log()
    return (boosted + kl(p, r) * (1 - p[ROWS, LABELS])).mean()


def ard_by_hand(clean: Tensor, perturbed: Tensor, teacher: Tensor) -> Tensor:
    q, r = softmaxes(teacher / 30, perturbed / 30)
    (p,) = softmaxes(clean)
    return (900 * kl(q, r) - p[ROWS, LABELS].log()).mean()


def rslad_by_hand(clean: Tensor, perturbed: Tensor, teacher: Tensor) -> Tensor:
    q, p, r = softmaxes(teacher, clean, perturbed)
    return (kl(q, r) + kl(q, p)).mean()


def trades_by_hand(clean: Tensor, perturbed: Tensor, _teacher: Tensor) -> Tensor:
    p, r = softmaxes(clean, perturbed)
    return (kl(p, r) - p[ROWS, LABELS].log()).mean()


CASES: dict[str, tuple[Found, ByHand]] = {
    "trades": (lambda clean, perturbed, _: trades_terms(clean, perturbed, LABELS), trades_by_hand),
    "mart": (lambda clean, perturbed, _: mart_terms(clean, perturbed, LABELS), mart_by_hand),
    "ard": (lambda clean, perturbed, teacher: ard_terms(clean, perturbed, LABELS, teacher), ard_by_hand),
    "rslad": (rslad_terms, rslad_by_hand),
}


@pytest.mark.parametrize("method", CASES)
def test_gradients_against_finite_differences(method: str, generator: torch.Generator) -> None:
    found, by_hand = CASES[method]
    clean, perturbed, teacher = (torch.randn(3, 4, generator=generator) for _ in range(3))
    leaves = [logits.clone().requires_grad_(True) for logits in (clean, perturbed)]
    terms = found(leaves[0], leaves[1], teacher)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(by_hand(clean, perturbed, teacher).item(), rel=1e-4)
    total.backward()  # type: ignore[no-untyped-call]
    for side, leaf in enumerate(leaves):
        assert leaf.grad is not None
        for row in range(3):
            for column in range(4):
                nudge = torch.zeros(3, 4, dtype=torch.float64)
                nudge[row, column] = 1e-5

                def at(shift: Tensor, side: int = side) -> float:
                    moved = [clean.double(), perturbed.double()]
                    moved[side] = moved[side] + shift
                    return by_hand(moved[0], moved[1], teacher.double()).item()

                slope = (at(nudge) - at(-nudge)) / 2e-5
                assert leaf.grad[row, column].item() == pytest.approx(slope, abs=2e-4 if method == "ard" else 2e-5)
