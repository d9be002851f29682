"""The terms of eqs. (2) and (3), by hand.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.distill.losses import Direction, cross_entropy, kl_divergence, trades_kl, weighted_sum

pytestmark = pytest.mark.unit

# p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2) and, in the second image, p = q.
STUDENT_BK = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]).log()
TEACHER_BK = torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.3, 0.5]]).log()
# KL(p, q) = 1/2 log 2 + 0 + 1/4 log 1/2 = 1/4 log 2; the same turned round; halved by the mean over two images.
GOLDEN = math.log(2) / 8


def test_cross_entropy_by_hand() -> None:
    y_B = torch.tensor([0, 2])
    assert cross_entropy(STUDENT_BK, y_B).item() == pytest.approx((math.log(2) + math.log(2)) / 2)
    assert cross_entropy(STUDENT_BK, torch.tensor([1, 0])).item() == pytest.approx((math.log(4) + math.log(5)) / 2)


@pytest.mark.parametrize("direction", ["student-teacher", "teacher-student"])
def test_kl_golden_where_both_directions_agree(direction: Direction) -> None:
    assert kl_divergence(STUDENT_BK, TEACHER_BK, direction=direction).item() == pytest.approx(GOLDEN)


@pytest.mark.parametrize(
    ("direction", "golden"),
    [
        # p = (3/4, 1/4), q = (1/2, 1/2).
        ("student-teacher", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        ("teacher-student", 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
    ],
)
def test_kl_golden_in_each_direction(direction: Direction, golden: float) -> None:
    student_BK, teacher_BK = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert kl_divergence(student_BK, teacher_BK, direction=direction).item() == pytest.approx(golden, rel=1e-6)


def test_the_default_is_the_papers_direction() -> None:
    student_BK, teacher_BK = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    default = kl_divergence(student_BK, teacher_BK)
    assert default == kl_divergence(student_BK, teacher_BK, direction="student-teacher")
    assert default != kl_divergence(student_BK, teacher_BK, direction="teacher-student")


def test_kl_temperature_divides_logits_and_multiplies_the_result() -> None:
    # T = 2 turns (2 log 3, 0) into (log 3, 0), so p = (3/4, 1/4); times T^2 = 4.
    student_BK, teacher_BK = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    golden = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence(student_BK, teacher_BK, temperature=2.0).item() == pytest.approx(golden, rel=1e-6)


@pytest.mark.parametrize("direction", ["student-teacher", "teacher-student"])
def test_kl_agrees_with_torch(direction: Direction, generator: torch.Generator) -> None:
    student_BK, teacher_BK = (torch.randn(5, 7, generator=generator) * 3 for _ in range(2))
    first, second = (student_BK, teacher_BK) if direction == "student-teacher" else (teacher_BK, student_BK)
    theirs = F.kl_div(second.log_softmax(1), first.softmax(1), reduction="batchmean")
    torch.testing.assert_close(kl_divergence(student_BK, teacher_BK, direction=direction), theirs)


def test_kl_bears_extreme_logits() -> None:
    student_BK = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = kl_divergence(student_BK, torch.tensor([[-200.0, 200.0, 0.0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(400.0)
    assert student_BK.grad is not None
    assert student_BK.grad.isfinite().all()


@pytest.mark.parametrize("direction", ["student-teacher", "teacher-student"])
def test_kl_gradient_against_finite_differences(direction: Direction, generator: torch.Generator) -> None:
    student_BK, teacher_BK = (torch.randn(2, 3, generator=generator) for _ in range(2))
    leaf = student_BK.clone().requires_grad_(True)
    kl_divergence(leaf, teacher_BK, direction=direction).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None

    def by_hand(logits_BK: Tensor) -> float:
        p, q = logits_BK.double().softmax(1), teacher_BK.double().softmax(1)
        first, second = (p, q) if direction == "student-teacher" else (q, p)
        return float((first * (first / second).log()).sum() / len(first))

    for row in range(2):
        for column in range(3):
            nudge = torch.zeros(2, 3, dtype=torch.float64)
            nudge[row, column] = 1e-5
            slope = (by_hand(student_BK + nudge) - by_hand(student_BK - nudge)) / 2e-5
            assert leaf.grad[row, column].item() == pytest.approx(slope, abs=1e-5)


def test_trades_kl_is_from_clean_to_perturbed() -> None:
    # p(x) = (3/4, 1/4), p(x') = (1/2, 1/2).
    natural_BK, adversarial_BK = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    golden = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert trades_kl(natural_BK, adversarial_BK).item() == pytest.approx(golden, rel=1e-6)


def test_trades_kl_is_its_authors_formula(generator: torch.Generator) -> None:
    natural_BK, adversarial_BK = (torch.randn(6, 10, generator=generator) for _ in range(2))
    authors = torch.nn.KLDivLoss(reduction="sum")(adversarial_BK.log_softmax(1), natural_BK.softmax(1)) / 6
    torch.testing.assert_close(trades_kl(natural_BK, adversarial_BK), authors)


def test_trades_kl_takes_gradients_on_both_sides(generator: torch.Generator) -> None:
    natural_BK, adversarial_BK = (torch.randn(3, 4, generator=generator, requires_grad=True) for _ in range(2))
    trades_kl(natural_BK, adversarial_BK).backward()  # type: ignore[no-untyped-call]
    for side in (natural_BK, adversarial_BK):
        assert side.grad is not None
        assert side.grad.abs().sum() > 0


def test_add_up_by_hand() -> None:
    terms = {"ce": torch.tensor(2.0), "kl": torch.tensor(3.0), "attention": torch.tensor(5.0)}
    assert weighted_sum(terms, {}).item() == 10.0
    assert weighted_sum(terms, {"kl": 0.0, "attention": 10.0}).item() == 52.0
    # A weight without its term changes nothing.
    assert weighted_sum({"ce": torch.tensor(2.0)}, {"kl": 9.0, "attention": 9.0}).item() == 2.0


def test_add_up_carries_gradients() -> None:
    ce, attention = (torch.tensor(value, requires_grad=True) for value in (2.0, 5.0))
    weighted_sum({"ce": ce, "attention": attention}, {"attention": 0.25}).backward()  # type: ignore[no-untyped-call]
    assert ce.grad is not None
    assert attention.grad is not None
    assert (ce.grad.item(), attention.grad.item()) == (1.0, 0.25)
