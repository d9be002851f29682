"""Settings of adversarial training: a union by ``method``, each member with the keys of its own method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rnascl_cli.core.units import PixelSize
from rnascl_cli.recipes.base import Settings

EPS = 8 / 255


class Perturbation(Settings):
    """Adversarial training on images perturbed within an L-inf ball, pixel units."""

    eps: PixelSize = EPS


class PGDPerturbation(Perturbation):
    """Images perturbed by several gradient steps."""

    step_size: PixelSize = 2 / 255
    steps: int = Field(default=10, ge=1)


class TRADES(PGDPerturbation):
    """TRADES (Zhang et al. 2019)."""

    method: Literal["trades"] = "trades"
    beta: float = Field(default=6.0, ge=0.0, description="weight of KL(p(x), p(x'))")


class MART(PGDPerturbation):
    """MART (Wang et al. 2020)."""

    method: Literal["mart"] = "mart"
    kl_weight: float = Field(default=5.0, ge=0.0, description="lambda, the weight of KL(p(x), p(x')) (1 - p_y(x))")


class PGDAT(PGDPerturbation):
    """PGD adversarial training (Madry et al. 2018)."""

    method: Literal["pgd-at"] = "pgd-at"


class FastAT(Perturbation):
    """Fast adversarial training: one step of 1.25 eps from a random start (Wong et al. 2020)."""

    method: Literal["fast-at"] = "fast-at"


class FGSMRS(Perturbation):
    """Fast adversarial training, under the name that ``teacher train`` has for it."""

    method: Literal["fgsm-rs"] = "fgsm-rs"


class ARD(PGDPerturbation):
    """Adversarially robust distillation (Goldblum et al. 2020)."""

    method: Literal["ard"] = "ard"
    alpha: float = Field(
        default=1.0, ge=0.0, le=1.0, description="share of the distillation term; the rest is the cross-entropy's"
    )
    temperature: float = Field(default=30.0, gt=0.0, description="of teacher and student")


class RSLAD(PGDPerturbation):
    """Robust soft-label adversarial distillation (Zi et al. 2021)."""

    method: Literal["rslad"] = "rslad"
    adversarial_share: float = Field(
        default=5 / 6,
        ge=0.0,
        le=1.0,
        description="share of the adversarial term; the rest is the clean term's",
    )


RobustMethod = Literal["trades", "mart", "pgd-at", "fast-at", "ard", "rslad"]
TEACHER_LOGIT_METHODS: tuple[RobustMethod, ...] = ("ard", "rslad")
"""Methods whose targets are a teacher's logits."""
RobustSettings = TRADES | MART | PGDAT | FastAT | ARD | RSLAD
METHODS: dict[str, type[Perturbation]] = {
    member.model_fields["method"].default: member for member in (TRADES, MART, PGDAT, FastAT, FGSMRS, ARD, RSLAD)
}
