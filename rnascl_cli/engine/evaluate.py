"""Clean accuracy of a model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.core import distributed
from rnascl_cli.core.console import info
from rnascl_cli.core.progress import progress
from rnascl_cli.core.random_streams import generator
from rnascl_cli.data import Data, ImageSet, ordered_batches
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import evaluating, frozen


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet, *, compute: DeviceConfig, batch_size: int = 500) -> float:
    """Return the share of images whose largest logit is their label's, in [0, 1].

    The model is put in eval mode for the while, and computes in float32, so that the number does not depend
    on the training precision. Several ranks share the work; each gets the number.

    Raises:
        ValueError: There are no images.
    """
    if len(images) == 0:
        raise ValueError("no images to measure accuracy on")
    right = torch.zeros((), dtype=torch.int64, device=compute.device)
    with evaluating(model):
        for x_BCHW, y_B in ordered_batches(images, batch_size=batch_size, device=compute.device, round_robin=True):
            right += (model(x_BCHW).argmax(dim=1) == y_B).sum()
    return int(distributed.all_reduce_sum(right)) / len(images)


TEST_STEPS = 20
STEP_SHARE = 0.25  # of eps: 2/255 at 8/255, the step of the evaluations
BATCH = 250


@dataclass(frozen=True)
class TeacherAccuracy:
    """Accuracies of a teacher on test images, as kept in its file's header.

    Attributes:
        clean: Share of the images classified rightly.
        pgd20: Share still right under PGD-20 with random start and steps of eps/4.
        eps: Of the attack, L-inf, pixel units, as a fraction.
        n: Number of images.
        data: The ``--data`` value.
        fingerprint: Of the images.
    """

    clean: float
    pgd20: float
    eps: str
    n: int
    data: str
    fingerprint: str


def robust_accuracy(
    module: nn.Module, images: ImageSet, *, eps: float, steps: int, compute: DeviceConfig, noise: torch.Generator
) -> float:
    """Return the share of images that are right, and stay right under PGD with random start and steps of eps/4.

    In eval mode and float32. Several ranks take batches in turn; each gets the number.
    """
    right = 0
    ball = Linf(eps)
    own = ordered_batches(images, batch_size=BATCH, device=compute.device, round_robin=True)
    with (
        evaluating(module),
        frozen(module.parameters()),
        progress(f"PGD-{steps}", len(images)) as advance,
    ):
        for number, first in enumerate(range(0, len(images), BATCH)):
            size = min(BATCH, len(images) - first)
            if number % distributed.size() != distributed.rank():
                ball.noise(torch.empty(1, 3, images.side, images.side).expand(size, -1, -1, -1), noise)  # not ours
                advance(size)
                continue
            x_BCHW, y_B = next(own)
            start_BCHW = x_BCHW + ball.noise(x_BCHW, noise)
            with torch.no_grad():
                still_B = module(x_BCHW).argmax(dim=1) == y_B
            x_R, y_R, start_R = x_BCHW[still_B], y_B[still_B], start_BCHW[still_B]
            if len(x_R):
                adversarial = projected_gradient(
                    module,
                    x_R,
                    loss=cross_entropy(y_R),
                    ball=ball,
                    step_size=STEP_SHARE * eps,
                    steps=steps,
                    start_BCHW=start_R,
                )
                with torch.no_grad():
                    right += int((module(adversarial).argmax(dim=1) == y_R).sum())
            advance(size)
    return int(distributed.all_reduce_sum(torch.tensor(right))) / len(images)


def measure(module: nn.Module, data: Data, *, eps: float, compute: DeviceConfig, seed: int) -> TeacherAccuracy:
    """Measure clean and PGD-20 accuracy on the test images."""
    module = module.to(compute.device)
    noise = generator(seed, "teacher", "pgd20")
    info(f"measuring on {len(data.test):,} test images")
    return TeacherAccuracy(
        clean=accuracy(module, data.test, compute=compute),
        pgd20=robust_accuracy(module, data.test, eps=eps, steps=TEST_STEPS, compute=compute, noise=noise),
        eps=as_fraction(eps),
        n=len(data.test),
        data=data.spec,
        fingerprint=data.fingerprint,
    )


def as_fraction(eps: float) -> str:
    """Return eps as a fraction of 255 where it is one: ``"8/255"``."""
    share = Fraction(eps * 255).limit_denominator(2)
    whole = abs(float(share) - eps * 255) < 1e-6 and share.denominator == 1
    return f"{share}/255" if whole else f"{eps:g}"
