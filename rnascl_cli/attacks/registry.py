"""The attacks by name.

FGSM (Goodfellow et al. 2015), MI-FGSM (Dong et al. 2018), PGD (Madry et al. 2018), CW-inf (the margin loss of
Carlini and Wagner 2017, optimised by PGD), and the AutoAttack family (Croce and Hein 2020).

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.gradient import LossB, cross_entropy, margin, projected_gradient
from rnascl_cli.attacks.interface import Attack, AttackContext, AttackPart, Norm, Note
from rnascl_cli.attacks.names import PARTS, checked_names, pgd_steps
from rnascl_cli.attacks.verdicts import right


@dataclass(frozen=True)
class Options:
    """What can be set about the gradient attacks.

    Attributes:
        step_size: Of PGD and CW; None is a quarter of eps (2/255 at 8/255).
        restarts: Random starts of PGD and CW.
        mi_steps: Steps of MI-FGSM, each of eps / mi_steps.
        mi_decay: Its momentum.
        cw_steps: Steps of CW-inf.
        cw_kappa: Confidence at which CW-inf stops.
        stop_early: PGD and CW leave out an image once an iterate of it fools the model.
    """

    step_size: float | None = None
    restarts: int = 1
    mi_steps: int = 10
    mi_decay: float = 1.0
    cw_steps: int = 20
    cw_kappa: float = 0.0
    stop_early: bool = False


@dataclass(frozen=True)
class Clean:
    """No attack: the images as they are."""

    name: str = "clean"
    steps: int | None = 0
    restarts: int = 1

    def step_size_at(self, eps: float) -> float | None:
        """There is no step."""
        return None

    def is_standard(self, num_classes: int) -> bool:
        """There is nothing to depart from."""
        return True

    def rounds(self, problem: AttackContext, note: Note) -> list[AttackPart]:
        """There is nothing to run."""
        return []

    def check_model(self, problem: AttackContext, z_BCHW: Tensor, y_B: Tensor) -> list[str]:
        """There is nothing to notice."""
        return []


@dataclass(frozen=True)
class GradientAttack:
    """An attack made of :func:`projected_gradient` steps.

    Attributes:
        name: As given to ``--attack``.
        steps: Gradient steps.
        step_share: Length of a step as a share of eps, unless ``step_size`` says it.
        loss: Labels to the loss that is made large.
        step_size: Length of a step in the domain's units.
        restarts: Random starts; an image broken by one is left out of the next.
        noise: The stream that random starts are drawn from; None starts from the image itself.
        momentum: MI-FGSM's decay.
        stop_early: Leave out an image once an iterate of it fools the model, instead of judging the last iterate.
    """

    name: str
    steps: int
    step_share: float
    loss: Callable[[Tensor], LossB] = cross_entropy
    step_size: float | None = None
    restarts: int = 1
    noise: str | None = None
    momentum: float | None = None
    stop_early: bool = False

    def step_size_at(self, eps: float) -> float:
        """Return the length of a step at this eps."""
        return eps * self.step_share if self.step_size is None else self.step_size

    def is_standard(self, num_classes: int) -> bool:
        """These attacks work alike for any number of classes."""
        return True

    def rounds(self, problem: AttackContext, note: Note) -> list[AttackPart]:
        """Return one round for each restart."""
        return [
            AttackPart(f"restart {number + 1}", self.steps, partial(self._perturb, problem, number))
            for number in range(self.restarts)
        ]

    def check_model(self, problem: AttackContext, z_BCHW: Tensor, y_B: Tensor) -> list[str]:
        """Gradients are looked at once for all attacks, not here."""
        return []

    def _perturb(
        self, problem: AttackContext, restart: int, z_BCHW: Tensor, y_B: Tensor, index_B: Sequence[int]
    ) -> Tensor:
        start_BCHW = z_BCHW
        if self.noise is not None:
            start_BCHW = z_BCHW + _noise(problem, z_BCHW, self.noise, restart, index_B)
        if not self.stop_early:
            return self._climb(problem, z_BCHW, y_B, start_BCHW, self.steps)
        found_BCHW, left_b = start_BCHW.clone(), torch.arange(len(y_B), device=y_B.device)
        for steps in _doubling(self.steps):
            found_BCHW[left_b] = self._climb(problem, z_BCHW[left_b], y_B[left_b], found_BCHW[left_b], steps)
            with torch.no_grad():
                left_b = left_b[right(problem.exact(found_BCHW[left_b]), y_B[left_b])]
            if not len(left_b):
                break
        return found_BCHW

    def _climb(self, problem: AttackContext, z_BCHW: Tensor, y_B: Tensor, start_BCHW: Tensor, steps: int) -> Tensor:
        return projected_gradient(
            problem.model,
            z_BCHW,
            loss=self.loss(y_B),
            ball=problem.ball,
            step_size=self.step_size_at(problem.eps),
            steps=steps,
            start_BCHW=start_BCHW,
            momentum=self.momentum,
            lowest=problem.attack_space.lowest,
            highest=problem.attack_space.highest,
        )


def build_attacks(names: Sequence[str], *, options: Options, norm: Norm, paper_code: bool = False) -> list[Attack]:
    """Return the attacks of these names.

    Raises:
        UserError: A name is unknown or given twice, or the attack does not exist in this norm or protocol.
    """
    return [_build(name, options) for name in checked_names(names, norm=norm, paper_code=paper_code)]


def _build(name: str, options: Options) -> Attack:
    if name == "clean":
        return Clean()
    if name == "fgsm":
        return GradientAttack(name, steps=1, step_share=1.0)
    if name == "mi-fgsm":
        return GradientAttack(name, options.mi_steps, step_share=1 / options.mi_steps, momentum=options.mi_decay)
    if name in PARTS:
        return AutoAttack(name)
    if name == "cw":
        return _with_random_starts(name, options.cw_steps, options, partial(margin, kappa=options.cw_kappa))
    steps = pgd_steps(name)
    assert steps is not None  # the names are checked
    return _with_random_starts(name, steps, options, cross_entropy)


def _with_random_starts(name: str, steps: int, options: Options, loss: Callable[[Tensor], LossB]) -> GradientAttack:
    return GradientAttack(
        name,
        steps,
        step_share=0.25,
        loss=loss,
        step_size=options.step_size,
        restarts=options.restarts,
        noise=name.rstrip("0123456789"),
        stop_early=options.stop_early,
    )


def _doubling(steps: int) -> list[int]:
    """Return 1, 1, 2, 4, 8, ... with the given sum: an easy image is found out soon, a hard one seldom asked."""
    parts: list[int] = []
    while (left := steps - sum(parts)) > 0:
        parts.append(min(left, max(1, sum(parts))))
    return parts


def _noise(problem: AttackContext, z_BCHW: Tensor, stream: str, restart: int, index_B: Sequence[int]) -> Tensor:
    like_1CHW = torch.empty((1, *z_BCHW.shape[1:]))
    draws = [problem.ball.noise(like_1CHW, problem.streams(stream, restart, index)) for index in index_B]
    return torch.cat(draws).to(z_BCHW)
