"""Check that a network takes images of a given size."""

from __future__ import annotations

import torch
from torch import nn

from rnascl_cli.core.errors import UserError


def check_input_size(module: nn.Module, what: str, *, input_size: int) -> None:
    """Run a network on one grey image, before any long computation.

    Args:
        module: In eval mode; maps images in [0, 1] to logits.
        what: What to call it in an error.
        input_size: Height and width of the image, pixels.

    Raises:
        UserError: The forward pass fails: a transformer takes one size only, and some networks need larger images.
    """
    device = next(module.parameters()).device
    try:
        with torch.no_grad():
            module(torch.full((1, 3, input_size, input_size), 0.5, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{what}: does not take images of {input_size}x{input_size} pixels ({reason})") from None
