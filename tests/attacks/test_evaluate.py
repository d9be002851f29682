"""The evaluator: which images are attacked, and what counts as broken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.checks import Norm
from rnascl_cli.attacks.interface import Attack, AttackContext, AttackPart, Note
from rnascl_cli.attacks.registry import doubling
from rnascl_cli.attacks.verdicts import right
from rnascl_cli.core.statistics import wilson_interval
from rnascl_cli.core.units import Epsilon, parse_epsilon, parse_epsilons
from tests.attacks import tiny

EPS = parse_epsilon("8/255")
pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Scripted(Attack):
    """An attack that perturbs as the test sets, and records the indices it was given."""

    name: str = "scripted"
    steps: int | None = 1
    perturb: Callable[[Tensor, Sequence[int]], Tensor] = lambda z_BCHW, index_B: z_BCHW
    part_count: int = 1
    seen: list[list[int]] = field(default_factory=list)

    def parts(self, context: AttackContext, note: Note) -> list[AttackPart]:
        def perturb(z_BCHW: Tensor, y_B: Tensor, index_B: Sequence[int]) -> Tensor:
            self.seen.append(list(index_B))
            return self.perturb(z_BCHW, index_B)

        return [AttackPart(f"restart {number}", 1, perturb) for number in range(self.part_count)]


def brightness(x_BCHW: Tensor) -> Tensor:
    """Two classes: dark and bright, divided at a mean of 0.5."""
    mean_B = x_BCHW.flatten(1).mean(dim=1)
    return torch.stack([0.5 - mean_B, mean_B - 0.5], dim=1)


def grey(*levels: int, labels: Sequence[int]) -> tiny.Images:
    """One uniform 3x4x4 image per gray level, with test-set indices 100, 101, ..."""
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return tiny.Images(images, torch.tensor(list(labels)), 100 + torch.arange(len(levels)))


def test_clean_mistakes_are_not_attacked_and_count_as_broken() -> None:
    data = grey(100, 120, 200, 140, labels=[0, 1, 1, 0])  # the second and the fourth are wrong when clean
    evaluator = tiny.evaluator(brightness, data)
    right_N = evaluator.clean()
    assert right_N.tolist() == [True, False, True, False]
    attack = Scripted()
    (outcome,) = evaluator.evaluate([attack], [EPS], right_N)
    assert attack.seen == [[100, 102]]
    assert outcome.broken_N.tolist() == [False, True, False, True]
    assert (outcome.attacked, outcome.accuracy) == (2, 0.5)


def test_a_second_part_gets_the_unbroken_images_in_full_batches() -> None:
    data = grey(*([100] * 10), labels=[0] * 10)

    def fool_even(z_BCHW: Tensor, index_B: Sequence[int]) -> Tensor:
        even_B = torch.tensor(index_B) % 2 == 0
        return torch.where(even_B.view(-1, 1, 1, 1), torch.full_like(z_BCHW, 0.7), z_BCHW)

    attack = Scripted(perturb=fool_even, part_count=2)
    evaluator = tiny.evaluator(brightness, data, num_classes=2, batch_size=4)
    outcome = evaluator.run(attack, Epsilon("0.5", 0.5), torch.zeros(10, dtype=torch.bool))
    assert attack.seen == [
        [100, 101, 102, 103],
        [104, 105, 106, 107],
        [108, 109],
        [101, 103, 105, 107],
        [109],
    ]
    assert outcome.broken_by == {"restart 0": 5, "restart 1": 0}


@pytest.mark.parametrize(
    "bad",
    [
        lambda z, index: z + 0.2,  # outside the ball
        lambda z, index: z * torch.nan,
        lambda z, index: z + 2.0,  # outside [0, 1]
    ],
)
def test_images_outside_the_ball_are_not_counted(bad: Callable[[Tensor, Sequence[int]], Tensor]) -> None:
    data = grey(126, 126, labels=[0, 0])
    outcome = tiny.evaluator(brightness, data, num_classes=2).run(
        Scripted(perturb=bad), Epsilon("0.1", 0.1), torch.zeros(2, dtype=torch.bool)
    )
    assert outcome.out_of_ball == 2
    assert not outcome.broken_N.any()


def test_verdicts_are_float32_whatever_the_attacks_precision() -> None:
    def model(x_BCHW: Tensor) -> Tensor:
        logits_BK = brightness(x_BCHW)
        # In the attack's precision every image looks wrong; in float32 none does.
        return -logits_BK if torch.is_autocast_enabled("cpu") else logits_BK

    data = grey(100, 100, labels=[0, 0])
    evaluator = tiny.evaluator(model, data, num_classes=2, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    attacks = tiny.attacks("fgsm", "pgd3", "cw")
    assert all(outcome.accuracy == 1.0 for outcome in evaluator.evaluate(attacks, [EPS], evaluator.clean()))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_accuracy_decreases_with_eps_and_broken_images_are_left_out(robust: nn.Module, norm: Norm) -> None:
    data = tiny.images(60, seed=3, noise=0.18)
    evaluator = tiny.evaluator(robust, data, norm=norm)
    right_N = evaluator.clean()
    epsilons = parse_epsilons("16/255,0,2/255,8/255,4/255")
    names = ["fgsm", "mi-fgsm", "pgd5", "cw"] if norm == "Linf" else ["pgd5"]
    attacks: list[Attack] = [
        *tiny.attacks(*names, norm=norm),
        AutoAttack("aa", iterations=5, queries=10),
    ]
    outcomes = evaluator.evaluate(attacks, epsilons, right_N)
    for attack in attacks:
        mine = [outcome for outcome in outcomes if outcome.attack is attack]
        assert [outcome.eps.text for outcome in mine] == ["0", "2/255", "4/255", "8/255", "16/255"]
        assert torch.equal(mine[0].broken_N, ~right_N)
        assert mine[0].attacked == 0
        for smaller, larger in pairwise(mine):
            assert not (smaller.broken_N & ~larger.broken_N).any()
            if larger.eps.value:
                assert larger.attacked == int((~smaller.broken_N).sum())
        assert mine[-1].accuracy < mine[0].accuracy


def test_a_verdict_does_not_depend_on_the_other_images(robust: nn.Module) -> None:
    data = tiny.images(60, seed=3, noise=0.18)
    some = torch.arange(0, 60, 7)
    part = tiny.Images(data.images_NCHW[some], data.labels_N[some], data.index_N[some])
    attacks = tiny.attacks("pgd7", "cw", restarts=2)
    whole, batched, alone = (
        tiny.evaluator(robust, images, batch_size=size, num_classes=10)
        for images, size in ((data, 60), (data, 11), (part, 60))
    )
    for attack in attacks:
        first, second, third = (run.run(attack, EPS, ~run.clean()) for run in (whole, batched, alone))
        assert torch.equal(first.broken_N, second.broken_N)
        assert torch.equal(first.broken_N[some], third.broken_N)


def test_attacks_use_the_accelerated_model_and_verdicts_the_original() -> None:
    data = grey(100, 100, 100, labels=[0, 0, 0])

    def alarmist(x_BCHW: Tensor) -> Tensor:
        return -brightness(x_BCHW)  # takes every image for broken

    evaluator = tiny.evaluator(brightness, data, num_classes=2, attacked_model=alarmist)
    attacks: list[Attack] = [
        *tiny.attacks("fgsm", "pgd3", "cw", stop_early=True),
        AutoAttack("square", queries=5),
    ]
    for outcome in evaluator.evaluate(attacks, [EPS], evaluator.clean()):
        assert outcome.attacked == 3
        assert outcome.accuracy == 1.0


def test_a_model_that_detaches_its_logits_has_zero_gradients(robust: nn.Module) -> None:
    def cut(x_BCHW: Tensor) -> Tensor:
        logits: Tensor = robust(x_BCHW.detach())
        return logits

    data = tiny.images(20)
    evaluator = tiny.evaluator(cut, data)
    right_N = evaluator.clean()
    gradients = evaluator.gradients(right_N)
    assert gradients.zero == gradients.images == int(right_N.sum())
    attacks: list[Attack] = [
        *tiny.attacks("fgsm", "mi-fgsm", "pgd2", "cw"),
        AutoAttack("aa", iterations=5, queries=5),
    ]
    assert all(outcome.out_of_ball == 0 for outcome in evaluator.evaluate(attacks, [EPS], right_N))


@pytest.mark.parametrize("name", ["pgd7", "cw"])
def test_stopping_early_leaves_no_more_accuracy_for_fewer_passes(plain: nn.Module, name: str) -> None:
    passes, left = [], []
    for stop_early in (False, True):
        counting = Counting(plain)
        evaluator = tiny.evaluator(plain, tiny.images(60, seed=3), attacked_model=counting)
        (attack,) = tiny.attacks(name, stop_early=stop_early)
        outcome = evaluator.run(attack, Epsilon("24/255", 24 / 255), ~evaluator.clean())
        passes.append(counting.images)
        left.append(outcome.accuracy)
        assert outcome.out_of_ball == 0
    assert left[1] <= left[0] < 0.5
    assert passes[1] < passes[0]


def test_early_stopping_checks_after_1_2_4_8_steps() -> None:
    assert [doubling(steps) for steps in (1, 2, 7, 20)] == [[1], [1, 1], [1, 1, 2, 3], [1, 1, 2, 4, 8, 4]]


class Counting:
    """The model, with a count of the images it has processed."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.images = model, 0

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        self.images += len(x_BCHW)
        logits: Tensor = self.model(x_BCHW)
        return logits


def test_restarts_break_more(robust: nn.Module) -> None:
    data = tiny.images(60, seed=3, noise=0.18)
    evaluator = tiny.evaluator(robust, data)
    none_N = ~evaluator.clean()
    once, often = (evaluator.run(tiny.attacks("pgd2", restarts=count)[0], EPS, none_N) for count in (1, 4))
    assert not (once.broken_N & ~often.broken_N).any()
    assert list(often.broken_by) == ["restart 1", "restart 2", "restart 3", "restart 4"]


def test_progress_ends_at_its_total(robust: nn.Module) -> None:
    shown: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def watch(label: str, total: int) -> Iterator[Callable[[int], None]]:
        steps: list[int] = []
        yield steps.append
        shown.append((label, total, sum(steps)))

    evaluator = tiny.evaluator(robust, tiny.images(20), watch=watch, batch_size=8)
    attacks = tiny.attacks("pgd3", "square", restarts=2)
    evaluator.evaluate(attacks, [parse_epsilon("32/255")], torch.ones(20, dtype=torch.bool))
    assert [(label, total == done) for label, total, done in shown] == [("pgd3 32/255", True), ("square 32/255", True)]


def test_logits_that_are_not_finite_are_wrong() -> None:
    logits_BK = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [torch.inf, 0.0], [0.0, 1.0]])
    assert right(logits_BK, torch.tensor([0, 0, 0, 0])).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("count", "n", "expected"),
    [
        # by hand: z^2 = 3.8415; centre (p + z^2/2n)/(1 + z^2/n), half width z/(1 + z^2/n) sqrt(pq/n + z^2/4n^2)
        (50, 100, (0.4038, 0.5962)),
        (8, 10, (0.4902, 0.9433)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
    ],
)
def test_wilson_interval(count: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(count / n, n) == pytest.approx(expected, abs=1e-4)
