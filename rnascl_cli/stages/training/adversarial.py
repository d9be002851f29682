"""Adversarial training: the images to train on, BatchNorm's statistics in the attack, and the terms of the loss.

Shared by search, ``train`` and ``adv-finetune``. The method's terms (``distill/adversarial_losses.py``) replace the
cross-entropy of eqs. (2) and (3); the KL and attention terms stay, on the clean images.

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
from rnascl_cli.recipes.adversarial import (
    ARD,
    FGSMRS,
    MART,
    RSLAD,
    TEACHER_LOGIT_METHODS,
    TRADES,
    PGDPerturbation,
    RobustSettings,
)

BatchNormStatistics = Literal["running", "batch", "published"]
NEAR_CLEAN = (TRADES, MART, RSLAD)
"""Methods whose authors attack in eval mode, from a start near the clean image."""
NEAR_CLEAN_STD = 0.001  # of the Gaussian around x: at x itself, the gradient of TRADES is 0
FAST_STEP = 1.25  # step size of Fast-AT over eps, as its authors recommend


class AdversarialObjective:
    """The adversarial images of a method, and the terms that replace the cross-entropy.

    Args:
        settings: The method and its settings.
        statistics: What BatchNorm normalizes by in the attack, which never changes running statistics.
            ``"running"``: eval mode, for a trained network, which is evaluated that way.
            ``"batch"``: those of the batch, for a supernet: its running statistics average over all sampled widths, so
            that eval mode would attack another function than the one the step trains.
            ``"published"``: as each method's authors train from scratch: eval mode for TRADES, MART and RSLAD, the
            batch's statistics for PGD-AT, Fast-AT and ARD.

    Attributes:
        weights: Weights of the terms by name; a term that is not listed has weight 1.
        uses_teacher_logits: Whether the targets are a teacher's logits.
        uses_clean_images: Whether a term is on the clean images.
    """

    def __init__(self, settings: RobustSettings, *, statistics: BatchNormStatistics) -> None:
        self._settings = settings
        in_eval_mode = statistics == "running" or (statistics == "published" and isinstance(settings, NEAR_CLEAN))
        self._statistics = evaluating if in_eval_mode else fixed_statistics
        self.weights = term_weights(settings)
        self.uses_teacher_logits = settings.method in TEACHER_LOGIT_METHODS
        self.uses_clean_images = settings.method not in ("pgd-at", "fast-at")

    def draw(self, x_BCHW: Tensor, *, noise: torch.Generator, share: BatchShard) -> Tensor:
        """Draw the offsets from the clean images at which the attack starts; see :func:`starting_offset`."""
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
        """Return the adversarial images; weights, gradients and statistics of the network do not change.

        In float32 whatever the precision of the training: TRADES starts so close to x that bf16 would round the
        difference away.

        Args:
            network: In train mode; images in [0, 1] to logits.
            x_BCHW: Clean images.
            y_B: Their labels.
            offset_BCHW: From :meth:`draw`.
            teacher_BK: The teacher's logits of the clean images.
            unwatched: Context in which no attention maps are recorded.
            model: How the network is called, if not by ``network`` itself.
        """
        assert network.training
        with self._statistics(network), frozen(network.parameters()), unwatched:
            return perturb(
                model or network, x_BCHW, y_B, self._settings, offset_BCHW=offset_BCHW, teacher_BK=teacher_BK
            )

    def terms(self, clean_BK: Tensor, adversarial_BK: Tensor, y_B: Tensor, teacher_BK: Tensor | None) -> Terms:
        """Return the method's terms by name, for the network's logits of the clean and the adversarial images."""
        settings = self._settings
        if isinstance(settings, TRADES):
            return trades_terms(clean_BK, adversarial_BK, y_B)
        if isinstance(settings, MART):
            return mart_terms(clean_BK, adversarial_BK, y_B)
        if not isinstance(settings, ARD | RSLAD):
            return adversarial_ce_terms(adversarial_BK, y_B)
        assert teacher_BK is not None
        if isinstance(settings, RSLAD):
            return rslad_terms(clean_BK, adversarial_BK, teacher_BK)
        return ard_terms(clean_BK, adversarial_BK, y_B, teacher_BK, temperature=settings.temperature)


def term_weights(settings: RobustSettings) -> dict[str, float]:
    """Return the weights of a method's terms by name; a term that is not listed has weight 1."""
    match settings:
        case TRADES(beta=beta):
            return {"adversarial": beta}
        case MART(kl_weight=weight):
            return {"weighted_kl": weight}
        case ARD(alpha=alpha):
            return {"adversarial": alpha, "ce": 1 - alpha}
        case RSLAD(adversarial_share=share):
            return {"adversarial": share, "clean_kl": 1 - share}
    return {}


def adversarial_objective(
    settings: RobustSettings | None, *, statistics: BatchNormStatistics
) -> AdversarialObjective | None:
    """Return the objective of adversarial training; None for training on clean images."""
    return None if settings is None else AdversarialObjective(settings, statistics=statistics)


def own_stream(noise: torch.Generator) -> torch.Generator:
    """Return a separate generator for one step's starting points, seeded from ``noise``.

    ``noise`` then advances by the same amount whatever a process's share of the batch, and so does what is drawn
    from it next, the Gumbel noise of the search.
    """
    seed = int(torch.randint(2**62, (), generator=noise))  # on the CPU: no synchronization
    return torch.Generator().manual_seed(seed)


def starting_offset(
    x_BCHW: Tensor,
    settings: RobustSettings | FGSMRS,
    *,
    noise: torch.Generator,
    share: BatchShard | None = None,
) -> Tensor:
    """Draw the offsets at which the attack starts: near the clean images, or uniform in the L-inf ball.

    Args:
        x_BCHW: Clean images.
        settings: Method and eps.
        noise: Random generator.
        share: Which images of a batch these are; None for all of them.
    """
    share = share or BatchShard.alone(len(x_BCHW))
    if not isinstance(settings, NEAR_CLEAN):
        return share.drawn(x_BCHW, lambda like: Linf(settings.eps).noise(like, noise))
    start = share.drawn(x_BCHW, lambda like: NEAR_CLEAN_STD * torch.randn(like.shape, generator=noise))
    return to_device_async(start, x_BCHW.device)


def perturb(
    model: LogitFunction,
    x_BCHW: Tensor,
    y_B: Tensor,
    settings: RobustSettings | FGSMRS,
    *,
    offset_BCHW: Tensor,
    teacher_BK: Tensor | None = None,
) -> Tensor:
    """Return the adversarial images of a method, inside the L-inf ball and [0, 1].

    Args:
        model: Images in [0, 1] to logits; the caller sets its mode and its parameters' ``requires_grad``.
        x_BCHW: Clean images.
        y_B: Their labels.
        settings: Method, eps, step size and number of steps.
        offset_BCHW: From :func:`starting_offset`.
        teacher_BK: The teacher's logits of the clean images, for RSLAD.
    """
    loss: LossB
    if isinstance(settings, TRADES | RSLAD):
        target_BK = teacher_BK
        if isinstance(settings, TRADES):
            with torch.no_grad():
                target_BK = model(x_BCHW)
        assert target_BK is not None, "rslad needs the teacher's logits"
        loss = kl_from(target_BK)
    else:
        loss = cross_entropy(y_B)
    step_size, steps = FAST_STEP * settings.eps, 1
    if isinstance(settings, PGDPerturbation):
        step_size, steps = settings.step_size, settings.steps
    ball = Linf(settings.eps)
    return projected_gradient(
        model, x_BCHW, loss=loss, ball=ball, step_size=step_size, steps=steps, start_BCHW=x_BCHW + offset_BCHW
    )


def kl_from(target_BK: Tensor) -> LossB:
    """Return the loss KL(t || p) of each image, where t is the softmax of ``target_BK`` and p that of the logits."""
    log_target_BK = F.log_softmax(target_BK.float(), dim=1)

    def loss(logits_BK: Tensor) -> Tensor:
        log_p_BK = F.log_softmax(logits_BK.float(), dim=1)
        return F.kl_div(log_p_BK, log_target_BK, reduction="none", log_target=True).sum(dim=1)

    return loss
