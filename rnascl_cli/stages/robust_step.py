"""Adversarial training as one object: which images, under which BatchNorm, and the terms of the loss.

Search, ``train`` and ``adv-finetune`` use the same one. The method's terms (``distill/robust_objectives.py``) stand
where eqs. (2) and (3) have the cross-entropy; the KL and attention terms to the teacher stay, on the clean images.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import Tensor, nn

from rnascl_cli.attacks.gradient import Model
from rnascl_cli.data import Share
from rnascl_cli.distill.robust_objectives import (
    Terms,
    ard_terms,
    hardened_terms,
    mart_terms,
    rslad_terms,
    trades_terms,
)
from rnascl_cli.engine.modes import evaluating, fixed_statistics, frozen
from rnascl_cli.recipes import TAUGHT_METHODS, RobustMethod, RobustSettings
from rnascl_cli.stages.perturbing import perturb, starting_offset

Statistics = Literal["running", "batch", "published"]
IN_EVAL_MODE: tuple[RobustMethod, ...] = ("trades", "mart", "rslad")  # how their authors look for x'


class RobustObjective:
    """The images a method trains on, and the terms it puts in the place of the cross-entropy.

    Args:
        settings: Of a method.
        statistics: What BatchNorm normalises by while x' is looked for; no choice moves a statistic.
            ``"running"``: eval mode. Right for a trained network: it is the one that will be attacked.
            ``"batch"``: those of the batch. Right for a supernet, whose running statistics are those of a mixture
            of all sampled widths, and of no sample: in eval mode, another function would be fooled than the one
            that the step then trains.
            ``"published"``: as the method's authors do, for training from scratch: eval mode for TRADES, MART and
            RSLAD; the batch's for PGD-AT, Fast-AT and ARD.
    """

    def __init__(self, settings: RobustSettings, *, statistics: Statistics) -> None:
        assert settings.method is not None
        self.method: RobustMethod = settings.method
        self._settings = settings
        in_eval_mode = statistics == "running" or (statistics == "published" and self.method in IN_EVAL_MODE)
        self._statistics = evaluating if in_eval_mode else fixed_statistics
        alpha, share = settings.ard_alpha, settings.rslad_share
        weights: dict[RobustMethod, dict[str, float]] = {
            "trades": {"adversarial": settings.beta},
            "mart": {"weighted_kl": settings.mart_lambda},
            "ard": {"adversarial": alpha, "ce": 1 - alpha},
            "rslad": {"adversarial": share, "clean_kl": 1 - share},
        }
        self.weights = weights.get(self.method, {})
        """Of the terms; one without a weight counts once."""

    @property
    def taught(self) -> bool:
        """Whether the targets are a teacher's logits."""
        return self.method in TAUGHT_METHODS

    @property
    def sees_clean(self) -> bool:
        """Whether a term is on the clean images."""
        return self.method not in ("pgd-at", "fast-at")

    def draw(self, x_BCHW: Tensor, *, noise: torch.Generator, share: Share) -> Tensor:
        """Draw how far from the images the method starts to look.

        Args:
            x_BCHW: Clean images.
            noise: What is drawn from.
            share: Which images of a batch these are.
        """
        return starting_offset(x_BCHW, self._settings, noise=noise, share=share)

    def perturb(
        self,
        network: nn.Module,
        x_BCHW: Tensor,
        y_B: Tensor,
        *,
        offset_BCHW: Tensor,
        teacher_BK: Tensor | None,
        unwatched: contextlib.AbstractContextManager[None],
        model: Model | None = None,
    ) -> Tensor:
        """Return the perturbed images; neither weights, gradients nor statistics of the network move.

        In float32 whatever the training's precision: TRADES starts so near x that bf16 would round the difference
        away.

        Args:
            network: In train mode; images in [0, 1] to logits.
            x_BCHW: Clean images.
            y_B: Their labels.
            offset_BCHW: What :meth:`draw` has drawn for them.
            teacher_BK: The teacher's logits of the clean images.
            unwatched: In which the network's attention maps are not taken.
            model: The network's passes, if they are run in another way than by calling it.
        """
        assert network.training
        with self._statistics(network), frozen(network.parameters()), unwatched:
            return perturb(
                model or network, x_BCHW, y_B, self._settings, offset_BCHW=offset_BCHW, teacher_BK=teacher_BK
            )

    def terms(self, clean_BK: Tensor, perturbed_BK: Tensor, y_B: Tensor, teacher_BK: Tensor | None) -> Terms:
        """Return the method's terms by name, for the network's logits of the clean and the perturbed images."""
        if self.method == "trades":
            return trades_terms(clean_BK, perturbed_BK, y_B)
        if self.method == "mart":
            return mart_terms(clean_BK, perturbed_BK, y_B)
        if not self.taught:
            return hardened_terms(perturbed_BK, y_B)
        assert teacher_BK is not None
        if self.method == "rslad":
            return rslad_terms(clean_BK, perturbed_BK, teacher_BK)
        temperature = self._settings.ard_temperature
        return ard_terms(clean_BK, perturbed_BK, y_B, teacher_BK, temperature=temperature)


def robust_objective(settings: RobustSettings | None, *, statistics: Statistics) -> RobustObjective | None:
    """Return the objective of a recipe's table; None where it names no method."""
    if settings is None or settings.method is None:
        return None
    return RobustObjective(settings, statistics=statistics)


def own_stream(noise: torch.Generator) -> torch.Generator:
    """Return a generator of its own for one step's starting points, seeded from ``noise``.

    How much of ``noise`` is used up then does not depend on the number of images, and what is drawn from it
    next, the choices of the search, is the same whatever a process's share of a batch.
    """
    seed = int(torch.randint(2**62, (), generator=noise))  # on the CPU: nothing is waited for
    return torch.Generator().manual_seed(seed)
