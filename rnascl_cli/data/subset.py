"""Class-balanced, seeded choices of images.

Shape suffix: N images.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_subset(labels_N: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Choose ``size`` images, as evenly over the classes as their sizes allow.

    The images are shuffled within their class and taken class by class in turn, so a larger subset of the
    same seed contains every smaller one.

    Returns:
        Ascending positions, int64; all of them where there are no more than ``size``.
    """
    if size >= len(labels_N):
        return torch.arange(len(labels_N))
    rank_N = _rank_within_class(labels_N, generator)
    # Which classes get the odd image is drawn too.
    turn_K = torch.randperm(int(labels_N.max()) + 1, generator=generator)
    order_N = torch.argsort(rank_N * len(turn_K) + turn_K[labels_N])
    return order_N[:size].sort().values


def holdout_mask(labels_N: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Mark the images to set aside: ``share`` of each class, and at least one where the class has two.

    Args:
        labels_N: Class numbers.
        share: In [0, 0.5]; 0 marks none.
        generator: What the choice is drawn from.

    Returns:
        A boolean mask over the images. No class is marked whole.
    """
    rank_N = _rank_within_class(labels_N, generator)
    if share == 0 or not len(labels_N):
        return torch.zeros(len(labels_N), dtype=torch.bool)
    count_K = torch.bincount(labels_N)
    quota_K = torch.minimum((count_K * share).round().long().clamp(min=1), count_K - 1)
    return rank_N < quota_K[labels_N]


def _rank_within_class(labels_N: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle each class, and return every image's place in its class's shuffle."""
    shuffled_N = torch.randperm(len(labels_N), generator=generator)
    by_class_N = shuffled_N[torch.argsort(labels_N[shuffled_N], stable=True)]
    count_K = torch.bincount(labels_N) if len(labels_N) else torch.zeros(1, dtype=torch.int64)
    first_K = count_K.cumsum(0) - count_K
    rank_N = torch.empty_like(labels_N)
    rank_N[by_class_N] = torch.arange(len(labels_N)) - first_K.repeat_interleave(count_K)
    return rank_N
