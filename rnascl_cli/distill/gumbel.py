"""Gumbel-Softmax (Jang et al. 2017, section 3.2): differentiable choices of widths and tutors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["gumbel", "normal"]


def sample_noise(shape: torch.Size | tuple[int, ...], *, generator: torch.Generator, kind: Noise = "gumbel") -> Tensor:
    """Draw the noise epsilon of Gumbel-Softmax on the CPU.

    Args:
        shape: Its shape.
        generator: Where the randomness comes from.
        kind: ``"gumbel"``: Gumbel(0, 1), -log(-log U). ``"normal"``: N(0, 1), as the paper writes it.
    """
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    uniform = torch.rand(shape, generator=generator).clamp(min=torch.finfo(torch.float32).tiny, max=1 - 2**-24)
    return -torch.log(-torch.log(uniform))


def gumbel_softmax(logits: Tensor, *, temperature: float | Tensor, noise: Tensor) -> Tensor:
    """Return g_i = exp((v_i + eps_i) / tau) / sum_j exp((v_j + eps_j) / tau) over the last dimension."""
    return torch.softmax((logits + noise) / temperature, dim=-1)


def temperature_at(
    epoch: int, *, epochs: int, start: float = 5.0, decay: float = 0.045, decay_epochs: int | None = 100
) -> float:
    """Return tau = start * e^(-decay * epoch), walked at the pace of the search's length.

    Args:
        epoch: From 0.
        epochs: How many the search has.
        start: tau of epoch 0 (5.0 in section 4.1).
        decay: Exponent an epoch (0.045).
        decay_epochs: The number of epochs that ``decay`` was meant for (100): a search of another length walks
            the same curve. None: no scaling, whatever the length.
    """
    pace = 1.0 if decay_epochs is None else decay_epochs / epochs
    return start * math.exp(-decay * epoch * pace)


def mean_entropy(probabilities: list[Tensor]) -> float:
    """Return the mean entropy of the rows, each over the log of its length: 1 undecided, 0 decided."""
    # To the CPU at once: a GPU would be waited for at every row.
    rows = [row for block in probabilities for row in block.cpu().reshape(-1, block.shape[-1]) if len(row) > 1]
    if not rows:
        return 0.0
    shares = [float(torch.special.entr(row.double()).sum()) / math.log(len(row)) for row in rows]
    return min(sum(shares) / len(shares), 1.0)  # equal chances, rounded, would give a little more


def mean_largest(weights: list[Tensor]) -> float:
    """Return the mean over the rows of each row's largest weight: 1 over its length undecided, 1 decided."""
    tops: list[float] = [top for block in weights for top in block.reshape(-1, block.shape[-1]).amax(dim=1).tolist()]
    return sum(tops) / len(tops)
