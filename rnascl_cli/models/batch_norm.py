"""BatchNorm whose batch is the whole one, also where several processes share it.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``; in training under torchrun, mean and variance are those of every rank's images.

    A global batch therefore gives the same step on one process and on many. Unlike ``nn.SyncBatchNorm`` it
    runs on CPUs too.
    """

    def forward(
        self, input: Tensor, *, affine_mask: Tensor | None = None, channel_mask: Tensor | None = None
    ) -> Tensor:
        """Normalise (B, C, H, W).

        Args:
            input: Activations.
            affine_mask: (C,), in a supernet: multiplies weight and bias, and so the output, channel by channel:
                m (w x + b) = (m w) x + (m b).
            channel_mask: (C, 1, 1), read by forward hooks only, as in
                :meth:`rnascl_cli.models.blocks.MaskableConv2d.forward`.
        """
        if self.momentum is None:
            plain: Tensor = super().forward(input)
            return plain
        shared = self.training and distributed.share_batches()
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if affine_mask is not None:
            weight, bias = weight * affine_mask, bias * affine_mask
        # Steps are not counted, as only a momentum of None would read it: an operator a layer, of nearly fifty.
        track = self.training and self.track_running_stats
        running = (self.running_mean, self.running_var) if track or not self.training else (None, None)
        if shared:
            return _shared_batch_norm(input, *running, weight, bias, self.momentum, self.eps)
        own = self.training or self.running_mean is None
        return F.batch_norm(input, *running, weight, bias, own, self.momentum, self.eps)


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Make every plain ``nn.BatchNorm2d`` of a model one whose batch is that of all ranks, in place; return it.

    Raises:
        UserError: There are several ranks, and the model has norms over the batch of another kind.
    """
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d
        if distributed.size() == 1 or not isinstance(module, _BatchNorm):
            continue
        if not isinstance(module, BatchNorm2d) or module.momentum is None:
            raise UserError(
                f"torchrun: layer {name} is a {type(module).__name__}, whose statistics several processes cannot take "
                "together; train this network in one process"
            )
    return model


def _shared_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    x_BCHW = input.float()
    own = x_BCHW.new_full((1,), x_BCHW.numel() // x_BCHW.shape[1])
    sums = _sum_over_ranks(torch.cat([x_BCHW.sum(dim=(0, 2, 3)), own]))  # one message for both
    count = sums[-1].detach()
    mean_C11 = sums[:-1].div(count).view(-1, 1, 1)
    centred_BCHW = x_BCHW - mean_C11
    # The mean first, then the squares around it: the difference of two large sums would cost digits.
    var_C = _sum_over_ranks(centred_BCHW.square().sum(dim=(0, 2, 3))).div(count)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C11.flatten(), momentum)
            running_var.lerp_(var_C * (count / (count - 1)), momentum)
    scale_C = (var_C + eps).rsqrt() * weight
    return (centred_BCHW * scale_C.view(-1, 1, 1) + bias.view(-1, 1, 1)).to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks, each of which feels the loss of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return distributed.all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return distributed.all_reduce_sum(slope.contiguous().clone())


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)
    return total
