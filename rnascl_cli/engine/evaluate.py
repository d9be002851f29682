"""Clean accuracy of a model."""

from __future__ import annotations

import torch
from torch import nn

from rnascl_cli import ranks
from rnascl_cli.data import ImageSet, ordered_batches
from rnascl_cli.engine.compute import Compute
from rnascl_cli.engine.modes import evaluating


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet, *, compute: Compute, batch_size: int = 500) -> float:
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
        for x_BCHW, y_B in ordered_batches(images, batch_size=batch_size, device=compute.device, dealt=True):
            right += (model(x_BCHW).argmax(dim=1) == y_B).sum()
    return int(ranks.add_over_ranks(right)) / len(images)
