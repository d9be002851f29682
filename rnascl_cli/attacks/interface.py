"""What an attack is given, and what it must be able to do.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rnascl_cli.attacks.gradient import L2, Ball, Linf, LogitFunction
from rnascl_cli.attacks.protocol import AttackSpace

Norm = Literal["Linf", "L2"]
NoiseStreams = Callable[[str, int, int], torch.Generator]
"""(what the noise is for, restart, test-set index of the image) to a CPU generator.

Each image has its own, so that its verdict does not depend on which other images are attacked beside it.
"""
Note = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class AttackContext:
    """One model, one eps: what an attack works on.

    Attributes:
        model: Coordinates ``z`` of the domain to logits, in the precision chosen for attacks.
        exact: The same in float32.
        plain: The same in float32, by the module under attack itself: no faster stand-in.
        domain: Where the perturbation lives.
        norm: Of the ball.
        eps: Its size, in the domain's units.
        num_classes: Number of logits.
        seed: For attacks that draw from torch's global stream.
        streams: For attacks that draw image by image.
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
        """The perturbations allowed."""
        return Linf(self.eps) if self.norm == "Linf" else L2(self.eps)


@dataclass(frozen=True)
class AttackPart:
    """One pass of an attack over the images not broken yet: a restart, or a part of AutoAttack.

    Attributes:
        name: E.g. ``"restart 2"`` or ``"apgd-t"``.
        passes: About how many forward passes it takes for an image; for the time left only.
        perturb: ``(z_BCHW, y_B, index_B)`` to perturbed ``z_BCHW``, where ``index_B`` are test-set indices.
    """

    name: str
    passes: int
    perturb: Callable[[Tensor, Tensor, Sequence[int]], Tensor]


class Attack(Protocol):
    """An attack by name, ready for any model and eps."""

    @property
    def name(self) -> str:
        """As given to ``--attack``."""
        ...

    @property
    def steps(self) -> int | None:
        """Gradient steps; None where there is no such number."""
        ...

    @property
    def restarts(self) -> int:
        """How many random starts an image gets."""
        ...

    def step_size_at(self, eps: float) -> float | None:
        """Return the length of a step at this eps; None where the attack chooses its own."""
        ...

    def is_standard(self, num_classes: int) -> bool:
        """Return whether the attack is in its published setting for this many classes."""
        ...

    def rounds(self, problem: AttackContext, note: Note) -> list[AttackPart]:
        """Return the passes to make, in order.

        Args:
            problem: What is attacked.
            note: Takes what the attack noticed about the model, in a sentence.
        """
        ...

    def check_model(self, problem: AttackContext, z_BCHW: Tensor, y_B: Tensor) -> list[str]:
        """Return what looks wrong about the model before the attack starts, from its first batch."""
        ...
