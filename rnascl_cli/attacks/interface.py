"""What an attack is given, and what it returns.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnascl_cli.attacks.checks import Norm
from rnascl_cli.attacks.gradient import L2, Ball, Linf, LogitFunction
from rnascl_cli.attacks.protocol import AttackSpace

NoiseStreams = Callable[[str, int, int], torch.Generator]
"""(purpose, restart, test-set index of the image) to a CPU generator.

One generator per image, so that a verdict does not depend on the other images of the batch.
"""
Note = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class AttackContext:
    """The model under attack at one eps.

    Attributes:
        model: Coordinates ``z`` of the attack space to logits, in the precision chosen for attacks.
        exact: The same in float32.
        plain: The same in float32, by the original module instead of its accelerated version.
        attack_space: Where the perturbation is added.
        norm: Of the ball.
        eps: Radius of the ball, in units of the attack space.
        num_classes: Number of logits.
        seed: For attacks that draw from torch's global stream.
        streams: For attacks that draw per image.
        device: Where the images are.
    """

    model: LogitFunction
    exact: LogitFunction
    plain: LogitFunction
    attack_space: AttackSpace
    norm: Norm
    eps: float
    num_classes: int
    seed: int
    streams: NoiseStreams
    device: torch.device

    @property
    def ball(self) -> Ball:
        """The allowed perturbations."""
        return Linf(self.eps) if self.norm == "Linf" else L2(self.eps)


@dataclass(frozen=True)
class AttackPart:
    """One pass of an attack over the images not broken yet: a restart, or a part of AutoAttack.

    Attributes:
        name: E.g. ``"restart 2"`` or ``"apgd-t"``.
        passes: Approximate forward passes per image; for the progress bar only.
        perturb: ``(z_BCHW, y_B, index_B)`` to perturbed ``z_BCHW``, where ``index_B`` are test-set indices.
    """

    name: str
    passes: int
    perturb: Callable[[Tensor, Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Attack:
    """An attack that is ready for any model and eps. The base class is ``clean``, which perturbs nothing.

    Attributes:
        name: As given to ``--attack``.
        steps: Gradient steps; None if the attack adapts their number.
        restarts: Random starts per image.
    """

    name: str
    steps: int | None = 0
    restarts: int = 1

    def step_size_at(self, eps: float) -> float | None:
        """Return the step size at this eps; None if the attack chooses its own."""
        return None

    def is_standard(self, num_classes: int) -> bool:
        """Return whether the attack runs in its published setting for this many classes."""
        return True

    def parts(self, context: AttackContext, note: Note) -> list[AttackPart]:
        """Return the parts to run, in order.

        Args:
            context: The model under attack.
            note: Receives warnings about the model, one sentence each.
        """
        return []

    def check_model(self, context: AttackContext, z_BCHW: Tensor, y_B: Tensor) -> list[str]:
        """Return warnings about the model from the first batch, before the attack starts."""
        return []
