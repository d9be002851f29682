"""The attacks by name.

FGSM (Goodfellow et al. 2015), MI-FGSM (Dong et al. 2018), PGD (Madry et al. 2018), CW-inf (the margin loss of
Carlini and Wagner 2017, optimized by PGD), and the AutoAttack family (Croce and Hein 2020).

Shape suffixes: B images, b images not broken yet, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.checks import PARTS, Norm, checked_names, pgd_steps
from rnascl_cli.attacks.gradient import LossB, cross_entropy, margin, projected_gradient
from rnascl_cli.attacks.interface import Attack, AttackContext, AttackPart, Note
from rnascl_cli.attacks.verdicts import right


@dataclass(frozen=True)
class AttackOptions:
    """Options of the gradient attacks.

    Attributes:
        step_size: Of PGD and CW, in units of the attack space; None is a quarter of eps (2/255 at 8/255).
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
class GradientAttack(Attack):
    """An attack made of :func:`projected_gradient` steps.

    Attributes:
        step_share: Step size as a fraction of eps, unless ``step_size`` is set.
        loss: Labels to the loss to maximize.
        step_size: Step size in units of the attack space.
        noise: Name of the stream for random starts; None starts from the image itself.
        momentum: Decay of MI-FGSM's momentum.
        stop_early: Leave out an image once an iterate of it fools the model, instead of judging the last iterate.
    """

    steps: int = 1
    step_share: float = 0.25
    loss: Callable[[Tensor], LossB] = cross_entropy
    step_size: float | None = None
    noise: str | None = None
    momentum: float | None = None
    stop_early: bool = False

    def step_size_at(self, eps: float) -> float:
        """Return the step size at this eps."""
        return eps * self.step_share if self.step_size is None else self.step_size

    def parts(self, context: AttackContext, note: Note) -> list[AttackPart]:
        """Return one part per restart."""
        return [
            AttackPart(f"restart {number + 1}", self.steps, partial(self._perturb, context, number))
            for number in range(self.restarts)
        ]

    def _perturb(
        self, context: AttackContext, restart: int, z_BCHW: Tensor, y_B: Tensor, index_B: Sequence[int]
    ) -> Tensor:
        start_BCHW = z_BCHW
        if self.noise is not None:
            start_BCHW = z_BCHW + _noise(context, z_BCHW, self.noise, restart, index_B)
        if not self.stop_early:
            return self._maximize(context, z_BCHW, y_B, start_BCHW, self.steps)
        found_BCHW, left_b = start_BCHW.clone(), torch.arange(len(y_B), device=y_B.device)
        for steps in doubling(self.steps):
            found_BCHW[left_b] = self._maximize(context, z_BCHW[left_b], y_B[left_b], found_BCHW[left_b], steps)
            with torch.no_grad():
                left_b = left_b[right(context.exact(found_BCHW[left_b]), y_B[left_b])]
            if not len(left_b):
                break
        return found_BCHW

    def _maximize(self, context: AttackContext, z_BCHW: Tensor, y_B: Tensor, start_BCHW: Tensor, steps: int) -> Tensor:
        return projected_gradient(
            context.model,
            z_BCHW,
            loss=self.loss(y_B),
            ball=context.ball,
            step_size=self.step_size_at(context.eps),
            steps=steps,
            start_BCHW=start_BCHW,
            momentum=self.momentum,
            lowest=context.attack_space.lowest,
            highest=context.attack_space.highest,
        )


def build_attacks(names: Sequence[str], options: AttackOptions, *, norm: Norm, protocol: str = "pixel") -> list[Attack]:
    """Return the attacks of these names.

    Raises:
        UserError: A name is unknown or given twice, or the attack does not exist in this norm or protocol.
    """
    return [_build(name, options) for name in checked_names(names, norm=norm, protocol=protocol)]


def _build(name: str, options: AttackOptions) -> Attack:
    if name == "clean":
        return Attack(name)
    if name in PARTS:
        return AutoAttack(name)
    if name == "fgsm":
        return GradientAttack(name, step_share=1.0)
    if name == "mi-fgsm":
        return GradientAttack(name, options.mi_steps, step_share=1 / options.mi_steps, momentum=options.mi_decay)
    steps = options.cw_steps if name == "cw" else pgd_steps(name)
    assert steps is not None  # the names are checked
    return GradientAttack(
        name,
        steps,
        restarts=options.restarts,
        loss=partial(margin, kappa=options.cw_kappa) if name == "cw" else cross_entropy,
        step_size=options.step_size,
        noise="cw" if name == "cw" else "pgd",
        stop_early=options.stop_early,
    )


def doubling(steps: int) -> list[int]:
    """Return 1, 1, 2, 4, 8, ... with the given sum: early stopping checks often at first, then rarely."""
    parts: list[int] = []
    while (left := steps - sum(parts)) > 0:
        parts.append(min(left, max(1, sum(parts))))
    return parts


def _noise(context: AttackContext, z_BCHW: Tensor, stream: str, restart: int, index_B: Sequence[int]) -> Tensor:
    like_1CHW = torch.empty((1, *z_BCHW.shape[1:]))
    draws = [context.ball.noise(like_1CHW, context.streams(stream, restart, index)) for index in index_B]
    return torch.cat(draws).to(z_BCHW)
