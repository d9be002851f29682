"""Small images and models on which attacks take milliseconds.

Shape suffixes: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.attacks.checks import Norm
from rnascl_cli.attacks.evaluate import Evaluator
from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.attacks.registry import AttackOptions, build_attacks
from rnascl_cli.core.random_streams import generator

CLASSES, SIDE = 10, 8


@dataclass(frozen=True, eq=False)
class Images:
    """Images for the evaluator."""

    images_NCHW: Tensor
    labels_N: Tensor
    index_N: Tensor

    def pixels(self, rows: Tensor | slice) -> Tensor:
        """The images at the given rows."""
        return self.images_NCHW[rows]


def images(n: int, *, classes: int = CLASSES, seed: int = 0, noise: float = 0.12) -> Images:
    """Make ``n`` noisy copies of one smooth random pattern per class."""
    fixed = torch.Generator().manual_seed(17)
    coarse = torch.rand((classes, 3, 4, 4), generator=fixed) * 0.4 + 0.3
    patterns = F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    drawn = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(n) % classes
    x_NCHW = patterns[labels_N] + noise * torch.randn((n, 3, SIDE, SIDE), generator=drawn)
    return Images((x_NCHW.clamp(0, 1) * 255).round().to(torch.uint8), labels_N, torch.arange(n) * 2 + 5)


def network(*, classes: int = CLASSES, seed: int = 0) -> nn.Sequential:
    """Return a small convolutional network with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 4, classes),
        )


def trained(*, adversarial: bool, epochs: int = 12, eps: float = 8 / 255) -> nn.Sequential:
    """Train the small network, with PGD images or with clean ones, and freeze it."""
    model = network()
    data = images(800, seed=1)
    x_NCHW, y_N = data.images_NCHW.float() / 255, data.labels_N
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(2)
    for _ in range(epochs):
        for rows in torch.randperm(len(y_N), generator=order).view(-1, 80):
            x_BCHW, y_B = x_NCHW[rows], y_N[rows]
            if adversarial:
                x_BCHW = projected_gradient(
                    model,
                    x_BCHW,
                    loss=cross_entropy(y_B),
                    ball=Linf(eps),
                    step_size=eps / 2,
                    steps=4,
                    start_BCHW=x_BCHW + Linf(eps).noise(x_BCHW, order),
                )
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x_BCHW), y_B))
            optimiser.step()
    return model.eval().requires_grad_(False)


def evaluator(model: Any, data: Images, **settings: Any) -> Evaluator:
    """Return an evaluator over the images with this package's own random streams."""
    given: dict[str, Any] = {
        "num_classes": int(data.labels_N.max()) + 1,
        "streams": lambda purpose, restart, index: generator(0, "attack", purpose, restart, index),
        "device": torch.device("cpu"),
        **settings,
    }
    return Evaluator(model=model, images=data, **given)


def attacks(*names: str, norm: Norm = "Linf", **options: Any) -> list[Attack]:
    """Return attacks by name."""
    return build_attacks(names, AttackOptions(**options), norm=norm)


class Interrupting(nn.Module):
    """The model, which raises KeyboardInterrupt after a number of forward passes."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.left = model, passes

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        logits: Tensor = self.model(x_BCHW)
        return logits
