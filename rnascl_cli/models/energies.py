"""F(A)_hw = sum_c A_chw^2, the map of a layer's output A before it is resized, at the least cost in passes over A.

Where plain autograd would keep squares and masked copies of every activation for the backward pass, nothing is kept
here but what the network keeps anyway.

Shape suffixes: B images, C and O channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

CACHED_NUMBERS = 2**19
"""How many float32 numbers (2 MB) are turned from bf16 at a time on a CPU, so that they stay in its cache."""


def energy(activation_BCHW: Tensor, channel_mask_C11: Tensor | None = None) -> Tensor:
    """Return F(A), the sum of squares over channels, shape (B, 1, H, W), in float32.

    Args:
        activation_BCHW: A layer's output A.
        channel_mask_C11: In a supernet, the mask m under which the layer works: the map is that of m * A.
    """
    if torch.compiler.is_compiling():  # which itself keeps nothing, and fuses this into the passes beside it
        masked_BCHW = activation_BCHW.float() if channel_mask_C11 is None else activation_BCHW * channel_mask_C11
        return masked_BCHW.square().sum(dim=1, keepdim=True, dtype=torch.float32)
    map_B1HW: Tensor = _Energy.apply(activation_BCHW, channel_mask_C11)
    return map_B1HW


def widens(module: nn.Module) -> bool:
    """Return whether :func:`widened_energy` gives a layer's map: a 1x1 convolution to more channels.

    Not where torch.compile fuses the map of the wide output into a pass over it that there is anyway.
    """
    return (
        isinstance(module, nn.Conv2d)
        and not torch.compiler.is_compiling()
        and module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
        and module.bias is None
        and module.out_channels > module.in_channels
    )


def widened_energy(x_BCHW: Tensor, weight_OC11: Tensor, channel_mask_O11: Tensor | None = None) -> Tensor:
    """Return F(W x) of a 1x1 convolution from its narrow input, without looking at its wide output.

    sum_o (m_o W_o x)^2 = x^T G x with G = W^T diag(m^2) W, a C x C matrix: a sixth of the numbers in a block that
    expands six times.

    Args:
        x_BCHW: The convolution's input.
        weight_OC11: Its weight.
        channel_mask_O11: As in :func:`energy`.
    """
    # Autocast is for the network; a map is float32.
    with torch.autocast(x_BCHW.device.type, enabled=False):
        mask_O111 = None if channel_mask_O11 is None else channel_mask_O11.unsqueeze(3)
        map_B1HW: Tensor = _WidenedEnergy.apply(x_BCHW, weight_OC11.float(), mask_O111)
    return map_B1HW


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation_BCHW: Tensor, mask_C11: Tensor | None) -> Tensor:
        ctx.save_for_backward(activation_BCHW, mask_C11)
        return _norm(activation_BCHW if mask_C11 is None else activation_BCHW * mask_C11).square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_B1HW: Tensor) -> tuple[Tensor, Tensor | None]:
        activation_BCHW, mask_C11 = ctx.saved_tensors
        slope_BCHW = activation_BCHW * slope_B1HW.mul(2)
        slope_C11 = None
        if mask_C11 is not None:
            if ctx.needs_input_grad[1]:
                slope_C11 = (slope_BCHW * activation_BCHW).sum(dim=(0, 2, 3)).view_as(mask_C11) * mask_C11
            slope_BCHW *= mask_C11.square()
        return slope_BCHW.to(activation_BCHW.dtype), slope_C11


class _WidenedEnergy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_OC11: Tensor, mask_O111: Tensor | None) -> Tensor:
        masked_OC = (weight_OC11 if mask_O111 is None else weight_OC11 * mask_O111).flatten(1)
        gram_CC11 = (masked_OC.T @ masked_OC).view(*weight_OC11.shape[1:2] * 2, 1, 1)
        ctx.save_for_backward(x_BCHW, gram_CC11, masked_OC, weight_OC11, mask_O111)
        return (F.conv2d(x_BCHW.float(), gram_CC11) * x_BCHW).sum(dim=1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_B1HW: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x_BCHW, gram_CC11, masked_OC, weight_OC11, mask_O111 = ctx.saved_tensors
        twice_B1HW = slope_B1HW.mul(2)
        slope_x_BCHW = F.conv2d(x_BCHW.float(), gram_CC11) * twice_B1HW
        slope_weight = slope_mask = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # d/dM of sum_n g_n |M x_n|^2 = 2 M sum_n g_n x_n x_n^T; the sum is a 1x1 convolution's weight gradient.
            slope_gram_x = x_BCHW * twice_B1HW
            outer_CC11 = conv2d_weight(x_BCHW.float(), gram_CC11.shape, slope_gram_x)  # type: ignore[no-untyped-call]
            slope_masked = (masked_OC @ outer_CC11.flatten(1)).view_as(weight_OC11)
            if ctx.needs_input_grad[1]:
                slope_weight = slope_masked if mask_O111 is None else slope_masked * mask_O111
            if ctx.needs_input_grad[2]:
                slope_mask = (slope_masked * weight_OC11).sum(dim=1, keepdim=True)
        return slope_x_BCHW.to(x_BCHW.dtype), slope_weight, slope_mask


def _norm(x_BCHW: Tensor) -> Tensor:
    """Return the norm over channels, accumulated in float32 whatever the precision."""
    if x_BCHW.dtype == torch.float32 or x_BCHW.is_cuda:
        norm: Tensor = torch.linalg.vector_norm(x_BCHW, dim=1, keepdim=True, dtype=torch.float32)
        return norm
    # A CPU makes a float32 copy first; a piece of it at a time need not travel to memory and back.
    pieces = torch.split(x_BCHW, max(CACHED_NUMBERS // x_BCHW[0].numel(), 1))
    return torch.cat([torch.linalg.vector_norm(piece, dim=1, keepdim=True, dtype=torch.float32) for piece in pieces])
