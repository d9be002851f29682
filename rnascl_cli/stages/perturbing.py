"""The images that adversarial training trains on, for students, supernets and teachers alike.

- ``trades``: the point of the ball where KL(p(x) || p(x')) is largest (Zhang et al. 2019);
- ``rslad``: the point where KL(q(x) || p(x')) is largest, q the teacher (Zi et al. 2021);
- ``pgd-at``, ``ard``: PGD on the cross-entropy from a random point of the ball (Madry et al. 2018);
- ``mart``: the same from beside the image (the public code of Wang et al. 2020);
- ``fast-at``, for teachers by its authors' name ``fgsm-rs``: the same with one step of 1.25 eps (Wong et al. 2020).

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.attacks.gradient import Linf, LossB, Model, cross_entropy, projected_gradient
from rnascl_cli.data import Share
from rnascl_cli.recipes import PerturbationSettings, RobustSettings, TeacherTrainSettings
from rnascl_cli.transfer import sent

NEAR_START_STD = 0.001  # of the Gaussian around x: at x itself, TRADES's gradient is 0
NEAR_START = ("trades", "mart", "rslad")  # which start there in their authors' code
FAST_STEP = 1.25  # times eps: the step of FGSM-RS that its authors recommend
ONE_STEP = ("fast-at", "fgsm-rs")


def starting_offset(
    x_BCHW: Tensor,
    settings: RobustSettings | TeacherTrainSettings,
    *,
    noise: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Draw how far from the images the method starts to look.

    Args:
        x_BCHW: Clean images.
        settings: Method and eps.
        noise: What is drawn from.
        share: Which images of a batch these are; None where there are no other ranks to have the rest.
    """
    share = share or Share.alone(len(x_BCHW))
    if settings.method not in NEAR_START:
        return share.drawn(x_BCHW, lambda like: Linf(settings.perturbation.eps).noise(like, noise))
    start = share.drawn(x_BCHW, lambda like: NEAR_START_STD * torch.randn(like.shape, generator=noise))
    return sent(start, x_BCHW.device)


def perturb(
    model: Model,
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
