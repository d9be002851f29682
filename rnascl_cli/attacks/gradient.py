"""The projected-gradient loop of all gradient attacks, and the losses and norm balls they pass to it.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.core.device_transfer import to_device_async

LogitFunction = Callable[[Tensor], Tensor]
LossB = Callable[[Tensor], Tensor]
"""Logits ``(B, K)`` to one number per image ``(B,)``, which the attack maximizes."""


class Ball(Protocol):
    """A norm ball of perturbations around 0."""

    @property
    def eps(self) -> float:
        """Return the radius."""
        ...

    def project(self, delta_BCHW: Tensor) -> Tensor:
        """Return the nearest perturbation inside the ball, per image, as a new tensor."""
        ...

    def direction(self, gradient_BCHW: Tensor) -> Tensor:
        """Return the direction of steepest ascent, of unit norm per image."""
        ...

    def noise(self, like_BCHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return a random perturbation inside the ball."""
        ...


@dataclass(frozen=True)
class Linf:
    """All perturbations whose coordinates lie in [-eps, eps]."""

    eps: float

    def project(self, delta_BCHW: Tensor) -> Tensor:
        """Clamp each coordinate to [-eps, eps]."""
        return delta_BCHW.clamp(-self.eps, self.eps)

    def direction(self, gradient_BCHW: Tensor) -> Tensor:
        """Return the gradient's sign."""
        return gradient_BCHW.sign()

    def noise(self, like_BCHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw each coordinate uniformly from [-eps, eps]."""
        return (2 * _rand(like_BCHW, generator) - 1) * self.eps


@dataclass(frozen=True)
class L2:
    """All perturbations whose flattened Euclidean norm is at most ``eps``."""

    eps: float

    def project(self, delta_BCHW: Tensor) -> Tensor:
        """Scale a perturbation to norm eps if it is longer."""
        return delta_BCHW * (self.eps / _norms(delta_BCHW).clamp(min=1e-12)).clamp(max=1.0)

    def direction(self, gradient_BCHW: Tensor) -> Tensor:
        """Return the gradient divided by its norm; zero for a zero gradient."""
        return gradient_BCHW / _norms(gradient_BCHW).clamp(min=1e-12)

    def noise(self, like_BCHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw uniformly from the ball."""
        normal = torch.randn(like_BCHW.shape, generator=generator).to(like_BCHW)
        radius = torch.rand((len(like_BCHW), 1, 1, 1), generator=generator).to(like_BCHW)
        return normal / _norms(normal) * self.eps * radius ** (1 / like_BCHW[0].numel())


def projected_gradient(
    model: LogitFunction,
    x_BCHW: Tensor,
    *,
    loss: LossB,
    ball: Ball,
    step_size: float,
    steps: int,
    start_BCHW: Tensor,
    momentum: float | None = None,
    lowest: Tensor | float = 0.0,
    highest: Tensor | float = 1.0,
) -> Tensor:
    """Maximize ``loss`` around ``x`` inside ``ball`` and the valid range (Madry et al. 2018).

    Each step is ``x' <- clip(x + project(x' + step_size * direction(grad) - x))``. With ``momentum`` mu, the
    direction is that of ``g <- mu * g + grad / ||grad||_1`` (MI-FGSM, Dong et al. 2018, eq. 6-7).

    Args:
        model: Images to logits; the caller sets its mode and its parameters' ``requires_grad``.
        x_BCHW: Clean images.
        loss: Function of the logits to maximize; returns one number per image.
        ball: Norm and radius of the perturbation.
        step_size: In the units of ``x``.
        steps: Number of gradient steps.
        start_BCHW: First iterate: ``x`` itself, or ``x`` plus noise.
        momentum: MI-FGSM's decay; None for plain gradient steps.
        lowest: Smallest valid value, a number or broadcastable to ``x``.
        highest: Largest valid value.

    Returns:
        The perturbed images, detached, inside the ball and the valid range.
    """
    x_BCHW = x_BCHW.detach()
    adversarial = _clip(start_BCHW.detach(), lowest, highest)
    velocity = torch.zeros_like(x_BCHW) if momentum is not None else None
    for _ in range(steps):
        adversarial.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(model(adversarial)).sum(), adversarial)
        if momentum is not None and velocity is not None:
            mean_l1 = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            velocity = momentum * velocity + gradient / mean_l1
            gradient = velocity
        moved = torch.add(adversarial.detach(), ball.direction(gradient), alpha=step_size)
        adversarial = _clip(ball.project(moved.sub_(x_BCHW)).add_(x_BCHW), lowest, highest)
    return adversarial.detach()


def cross_entropy(y_B: Tensor) -> LossB:
    """Return the cross-entropy of each image's logits against its label."""
    return lambda logits_BK: F.cross_entropy(logits_BK.float(), y_B, reduction="none")


def margin(y_B: Tensor, *, kappa: float = 0.0) -> LossB:
    """Return the margin of the best wrong class, ``max_{j != y} z_j - z_y``, clamped to at most ``kappa``.

    This is the negative of f_6 of Carlini and Wagner 2017. Beyond ``kappa`` the gradient is zero, so an image is not
    changed further once it is misclassified with that confidence.
    """

    def loss(logits_BK: Tensor) -> Tensor:
        logits_BK = logits_BK.float()
        right_B = logits_BK.gather(1, y_B[:, None]).squeeze(1)
        wrong_B = logits_BK.scatter(1, y_B[:, None], -torch.inf).amax(dim=1)
        return torch.clamp(wrong_B - right_B, max=kappa)

    return loss


def _clip(x: Tensor, lowest: Tensor | float, highest: Tensor | float) -> Tensor:
    if isinstance(lowest, Tensor) or isinstance(highest, Tensor):
        return torch.maximum(torch.minimum(x, torch.as_tensor(highest).to(x)), torch.as_tensor(lowest).to(x))
    return x.clamp(lowest, highest)


def _norms(delta_BCHW: Tensor) -> Tensor:
    norms_B: Tensor = torch.linalg.vector_norm(delta_BCHW.flatten(1), dim=1)
    return norms_B.view(-1, 1, 1, 1)


def _rand(like: Tensor, generator: torch.Generator | None) -> Tensor:
    # Drawn on the generator's device (the CPU), so that a seed gives the same noise on every device.
    device = generator.device if generator is not None else like.device
    return to_device_async(torch.rand(like.shape, generator=generator, device=device), like.device).to(like.dtype)
