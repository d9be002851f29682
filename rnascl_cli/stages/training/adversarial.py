"""Adversarial training as one object: which images, under which BatchNorm, and the terms of the loss.

Search, ``train`` and ``adv-finetune`` use the same one. The method's terms (``distill/adversarial_losses.py``) stand
where eqs. (2) and (3) have the cross-entropy; the KL and attention terms to the teacher stay, on the clean images.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.attacks.gradient import Linf, LogitFunction, LossB, cross_entropy, projected_gradient
from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.data import BatchShard
from rnascl_cli.distill.adversarial_losses import (
    Terms,
    adversarial_ce_terms,
    ard_terms,
    mart_terms,
    rslad_terms,
    trades_terms,
)
from rnascl_cli.engine.modes import evaluating, fixed_statistics, frozen
from rnascl_cli.recipes import TAUGHT_METHODS, PerturbationSettings, RobustMethod, RobustSettings, TeacherTrainSettings

BatchNormStatistics = Literal["running", "batch", "published"]
IN_EVAL_MODE: tuple[RobustMethod, ...] = ("trades", "mart", "rslad")  # how their authors look for x'


class AdversarialObjective:
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

    def __init__(self, settings: RobustSettings, *, statistics: BatchNormStatistics) -> None:
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
    def uses_teacher_logits(self) -> bool:
        """Whether the targets are a teacher's logits."""
        return self.method in TAUGHT_METHODS

    @property
    def uses_clean_images(self) -> bool:
        """Whether a term is on the clean images."""
        return self.method not in ("pgd-at", "fast-at")

    def draw(self, x_BCHW: Tensor, *, noise: torch.Generator, share: BatchShard) -> Tensor:
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
        model: LogitFunction | None = None,
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
        if not self.uses_teacher_logits:
            return adversarial_ce_terms(perturbed_BK, y_B)
        assert teacher_BK is not None
        if self.method == "rslad":
            return rslad_terms(clean_BK, perturbed_BK, teacher_BK)
        temperature = self._settings.ard_temperature
        return ard_terms(clean_BK, perturbed_BK, y_B, teacher_BK, temperature=temperature)


def adversarial_objective(
    settings: RobustSettings | None, *, statistics: BatchNormStatistics
) -> AdversarialObjective | None:
    """Return the objective of a recipe's table; None where it names no method."""
    if settings is None or settings.method is None:
        return None
    return AdversarialObjective(settings, statistics=statistics)


def own_stream(noise: torch.Generator) -> torch.Generator:
    """Return a generator of its own for one step's starting points, seeded from ``noise``.

    How much of ``noise`` is used up then does not depend on the number of images, and what is drawn from it
    next, the choices of the search, is the same whatever a process's share of a batch.
    """
    seed = int(torch.randint(2**62, (), generator=noise))  # on the CPU: nothing is waited for
    return torch.Generator().manual_seed(seed)


NEAR_START_STD = 0.001  # of the Gaussian around x: at x itself, TRADES's gradient is 0
NEAR_START = ("trades", "mart", "rslad")  # which start there in their authors' code
FAST_STEP = 1.25  # times eps: the step of FGSM-RS that its authors recommend
ONE_STEP = ("fast-at", "fgsm-rs")


def starting_offset(
    x_BCHW: Tensor,
    settings: RobustSettings | TeacherTrainSettings,
    *,
    noise: torch.Generator,
    share: BatchShard | None = None,
) -> Tensor:
    """Draw how far from the images the method starts to look.

    Args:
        x_BCHW: Clean images.
        settings: Method and eps.
        noise: What is drawn from.
        share: Which images of a batch these are; None where there are no other ranks to have the rest.
    """
    share = share or BatchShard.alone(len(x_BCHW))
    if settings.method not in NEAR_START:
        return share.drawn(x_BCHW, lambda like: Linf(settings.perturbation.eps).noise(like, noise))
    start = share.drawn(x_BCHW, lambda like: NEAR_START_STD * torch.randn(like.shape, generator=noise))
    return to_device_async(start, x_BCHW.device)


def perturb(
    model: LogitFunction,
    x_BCHW: Tensor,
    y_B: Tensor,
    settings: RobustSettings | TeacherTrainSettings,
    *,
    offset_BCHW: Tensor,
    teacher_BK: Tensor | None = None,
) -> Tensor:
    """Return the perturbed images that the method trains on, inside the L-inf ball and [0, 1].

    Args:
        model: Images in [0, 1] to logits; its mode and its parameters' ``requires_grad`` are the caller's affair.
        x_BCHW: Clean images.
        y_B: Their labels.
        settings: Method, eps, step and number of steps.
        offset_BCHW: Of the starting points, see :func:`starting_offset`.
        teacher_BK: The teacher's logits of the clean images; for ``rslad``.
    """
    perturbation: PerturbationSettings = settings.perturbation
    ball = Linf(perturbation.eps)
    step_size, steps = perturbation.step_size, perturbation.steps
    loss: LossB
    if settings.method in ("trades", "rslad"):
        target_BK = teacher_BK
        if settings.method == "trades":
            with torch.no_grad():
                target_BK = model(x_BCHW)
        assert target_BK is not None, "rslad needs the teacher's logits"
        loss = kl_from(target_BK)
    else:
        loss = cross_entropy(y_B)
    if settings.method in ONE_STEP:
        step_size, steps = FAST_STEP * perturbation.eps, 1
    return projected_gradient(
        model, x_BCHW, loss=loss, ball=ball, step_size=step_size, steps=steps, start_BCHW=x_BCHW + offset_BCHW
    )


def kl_from(target_BK: Tensor) -> LossB:
    """Return KL(t || p) of each image, t the softmax of ``target`` and p that of the logits."""
    log_target_BK = F.log_softmax(target_BK.float(), dim=1)

    def loss(logits_BK: Tensor) -> Tensor:
        log_p_BK = F.log_softmax(logits_BK.float(), dim=1)
        return F.kl_div(log_p_BK, log_target_BK, reduction="none", log_target=True).sum(dim=1)

    return loss
