"""The one projected-gradient loop; attacks differ in the loss, start, steps, momentum and ball they pass in.

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
"""Logits ``(B, K)`` to one number an image ``(B,)``, which the attack makes as large as it can."""


class Ball(Protocol):
    """A norm ball of perturbations around 0, and the steepest step inside it."""

    @property
    def eps(self) -> float:
        """Return the ball's size."""
        ...

    def project(self, delta_BCHW: Tensor) -> Tensor:
        """Return the nearest perturbation inside the ball, image by image, as a tensor of its own."""
        ...

    def direction(self, gradient_BCHW: Tensor) -> Tensor:
        """Return the unit step that raises the loss most, image by image."""
        ...

    def noise(self, like_BCHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return a random perturbation inside the ball."""
        ...


@dataclass(frozen=True)
class Linf:
    """All perturbations with no coordinate beyond ``eps``."""

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
        """Scale an image's perturbation back to norm eps where it is longer."""
        return delta_BCHW * (self.eps / _norms(delta_BCHW).clamp(min=1e-12)).clamp(max=1.0)

    def direction(self, gradient_BCHW: Tensor) -> Tensor:
        """Return the gradient over its norm; zero where the gradient is zero."""
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
    """Climb ``loss`` around ``x`` inside ``ball`` and the valid range (Madry et al. 2018).

    Each step is ``x' <- clip(x + project(x' + step_size * direction(grad) - x))``. With ``momentum`` mu, the
    direction is that of ``g <- mu * g + grad / ||grad||_1`` (MI-FGSM, Dong et al. 2018, eq. 6-7).

    Args:
        model: Images to logits; its mode and parameters' ``requires_grad`` are the caller's affair.
        x_BCHW: Clean images.
        loss: What to make large; called on logits, returns one number an image.
        ball: Norm and size of the perturbation.
        step_size: Length of a step, in the units of ``x``.
        steps: Number of gradient steps.
        start_BCHW: Where to start: ``x`` itself, or ``x`` plus noise.
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
    """Return how far the best wrong class is ahead, ``max_{j != y} z_j - z_y``, but at most ``kappa``.

    This is f_6 of Carlini and Wagner 2017 with its sign turned. Beyond ``kappa`` the gradient is zero, so an
    image stays where it first becomes wrong with that confidence.
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
    # Drawn on the generator's device (the CPU), so that a seed means the same noise everywhere.
    device = generator.device if generator is not None else like.device
    return to_device_async(torch.rand(like.shape, generator=generator, device=device), like.device).to(like.dtype)
