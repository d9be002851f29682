"""F(A)_hw = sum_c A_chw^2, the map of a layer's output A before it is resized, with few passes over A.

Plain autograd would store squares and masked copies of every activation for the backward pass; these functions store
only what the network stores anyway.

Shape suffixes: B images, C and O channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

CACHED_NUMBERS = 2**20
"""How many numbers are converted from bf16 to float32 at a time on a CPU: 4 MB, which stay in its cache."""


def attention_energy(activation_BCHW: Tensor, channel_mask_C11: Tensor | None = None) -> Tensor:
    """Return F(A), the sum of squares over channels, shape (B, 1, H, W), in float32.

    Args:
        activation_BCHW: A layer's output A.
        channel_mask_C11: In a supernet, the mask m under which the layer works: the map is that of m * A.
    """
    if torch.compiler.is_compiling():  # the compiler fuses this into neighbouring passes and stores nothing
        masked_BCHW = activation_BCHW.float() if channel_mask_C11 is None else activation_BCHW * channel_mask_C11
        return masked_BCHW.square().sum(dim=1, keepdim=True, dtype=torch.float32)
    map_B1HW: Tensor = _Energy.apply(activation_BCHW, channel_mask_C11)
    return map_B1HW


def is_expanding_1x1(module: nn.Module) -> bool:
    """Return whether :func:`pointwise_attention_energy` gives a layer's map: a 1x1 convolution to more channels.

    False while compiling: torch.compile fuses the map of the wide output into another pass over it.
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


def pointwise_attention_energy(x_BCHW: Tensor, weight_OC11: Tensor, channel_mask_O11: Tensor | None = None) -> Tensor:
    """Return F(W x) of a 1x1 convolution from its narrow input, without reading its wide output.

    sum_o (m_o W_o x)^2 = x^T G x with G = W^T diag(m^2) W, a C x C matrix: a sixth of the numbers for an
    expansion of 6.

    Args:
        x_BCHW: The convolution's input.
        weight_OC11: Its weight.
        channel_mask_O11: As in :func:`attention_energy`.
    """
    # Maps are float32 under autocast, too.
    with torch.autocast(x_BCHW.device.type, enabled=False):
        mask_O111 = None if channel_mask_O11 is None else channel_mask_O11.unsqueeze(3)
        map_B1HW: Tensor = _PointwiseEnergy.apply(x_BCHW, weight_OC11.float(), mask_O111)
    return map_B1HW


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation_BCHW: Tensor, mask_C11: Tensor | None) -> Tensor:
        ctx.save_for_backward(activation_BCHW, mask_C11)
        if not _copied_to_float32(activation_BCHW):
            return _norm(activation_BCHW, mask_C11).square_()
        return torch.cat([_norm(x, mask_C11) for _, x in _pieces_in_float32(activation_BCHW)]).square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B1HW: Tensor) -> tuple[Tensor, Tensor | None]:
        activation_BCHW, mask_C11 = ctx.saved_tensors
        wants_mask_grad = mask_C11 is not None and ctx.needs_input_grad[1]
        twice_B1HW = grad_B1HW.mul(2)
        if not _copied_to_float32(activation_BCHW):
            grad_BCHW, grad_C11 = _gradients(activation_BCHW, mask_C11, twice_B1HW, wants_mask_grad=wants_mask_grad)
            return grad_BCHW.to(activation_BCHW.dtype), grad_C11
        grad_BCHW, grads_C11 = torch.empty_like(activation_BCHW), []
        for rows, x in _pieces_in_float32(activation_BCHW):
            grad_BCHW[rows], grad_C11 = _gradients(x, mask_C11, twice_B1HW[rows], wants_mask_grad=wants_mask_grad)
            if grad_C11 is not None:
                grads_C11.append(grad_C11)
        return grad_BCHW, torch.stack(grads_C11).sum(dim=0) if grads_C11 else None


class _PointwiseEnergy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_OC11: Tensor, mask_O111: Tensor | None) -> Tensor:
        masked_OC = (weight_OC11 if mask_O111 is None else weight_OC11 * mask_O111).flatten(1)
        gram_CC11 = (masked_OC.T @ masked_OC).view(*weight_OC11.shape[1:2] * 2, 1, 1)
        ctx.save_for_backward(x_BCHW, gram_CC11, masked_OC, weight_OC11, mask_O111)
        x_BCHW = x_BCHW.float()
        return (F.conv2d(x_BCHW, gram_CC11) * x_BCHW).sum(dim=1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B1HW: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        given_BCHW, gram_CC11, masked_OC, weight_OC11, mask_O111 = ctx.saved_tensors
        x_BCHW, twice_B1HW = given_BCHW.float(), grad_B1HW.mul(2)
        grad_x_BCHW = F.conv2d(x_BCHW, gram_CC11).mul_(twice_B1HW)
        grad_weight = grad_mask = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # d/dM of sum_n g_n |M x_n|^2 = 2 M sum_n g_n x_n x_n^T; the sum is a 1x1 convolution's weight gradient.
            outer_CC11 = conv2d_weight(x_BCHW, gram_CC11.shape, x_BCHW * twice_B1HW)  # type: ignore[no-untyped-call]
            grad_masked = (masked_OC @ outer_CC11.flatten(1)).view_as(weight_OC11)
            if ctx.needs_input_grad[1]:
                grad_weight = grad_masked if mask_O111 is None else grad_masked * mask_O111
            if ctx.needs_input_grad[2]:
                grad_mask = (grad_masked * weight_OC11).sum(dim=1, keepdim=True)
        return grad_x_BCHW.to(given_BCHW.dtype), grad_weight, grad_mask


def _norm(x_BCHW: Tensor, mask_C11: Tensor | None) -> Tensor:
    """Return the norm of m * x over channels, accumulated in float32 whatever the precision."""
    masked_BCHW = x_BCHW if mask_C11 is None else x_BCHW * mask_C11
    norm: Tensor = torch.linalg.vector_norm(masked_BCHW, dim=1, keepdim=True, dtype=torch.float32)
    return norm


def _gradients(
    x_BCHW: Tensor, mask_C11: Tensor | None, twice_B1HW: Tensor, *, wants_mask_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of sum_c (m_c x_c)^2 with respect to x and, if wanted, m, given twice that of the sum."""
    grad_BCHW, grad_C11 = x_BCHW * twice_B1HW, None
    if mask_C11 is not None:
        if wants_mask_grad:
            grad_C11 = (grad_BCHW * x_BCHW).sum(dim=(0, 2, 3)).view_as(mask_C11) * mask_C11
        grad_BCHW *= mask_C11.square()
    return grad_BCHW, grad_C11


def _copied_to_float32(x_BCHW: Tensor) -> bool:
    """Return whether reductions of ``x`` first copy it to float32, as they do for bf16 on a CPU.

    A copy of one piece at a time stays in the processor's cache.
    """
    return x_BCHW.dtype == torch.bfloat16 and x_BCHW.is_cpu


def _pieces_in_float32(x_BCHW: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the images and their float32 copies, which share one buffer."""
    size = max(CACHED_NUMBERS // x_BCHW.shape[1:].numel(), 1)
    buffer = torch.empty_like(x_BCHW[:size], dtype=torch.float32)
    for start in range(0, len(x_BCHW), size):
        rows = slice(start, start + size)
        piece = x_BCHW[rows]
        yield rows, buffer[: len(piece)].copy_(piece)
