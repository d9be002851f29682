"""The convolution block: FBNetV2's inverted residual (expansion 6, 3x3 depthwise, hard-swish, linear bottleneck).

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.models.batch_norm import BatchNorm2d
from rnascl_cli.models.conv import Conv2d
from rnascl_cli.spaces.tables import EXPANSION


class ConvBN(nn.Module):
    """A bias-free 'same' convolution and its BatchNorm."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = BatchNorm2d(c_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalised convolution, without activation."""
        normalised: Tensor = self.bn(self.conv(x_BCHW))
        return normalised


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; a skip connection when stride is 1 and widths agree."""

    is_block = True

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        hidden = EXPANSION * c_in
        self.expand = ConvBN(c_in, hidden)
        self.depthwise = ConvBN(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = ConvBN(hidden, c_out)
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H/stride, W/stride)."""
        hidden = F.hardswish(self.expand(x_BCHW))
        hidden = F.hardswish(self.depthwise(hidden))
        out: Tensor = self.project(hidden)
        return x_BCHW + out if self.skip else out


class MaskableConv2d(Conv2d):
    """A convolution of the supernet, whose masks are arguments of the forward pass."""

    def forward(
        self, input: Tensor, *, column_mask: Tensor | None = None, channel_mask: Tensor | None = None
    ) -> Tensor:
        """Convolve with the masked weights.

        Args:
            input: (B, C, H, W).
            column_mask: (C, 1, 1), multiplies the weights' input columns: sum_h W_oh (m_h a_h) = sum_h (W_oh m_h) a_h,
                so masking the smaller weight masks the input.
            channel_mask: (O, 1, 1), the mask of the output channels. Not applied here: the next mask in the block
                removes these channels. Forward hooks that record the attention map of the output read it
                (:mod:`rnascl_cli.models.attention_maps`).
        """
        weight = self.weight if column_mask is None else self.weight * column_mask
        convolved: Tensor = self._conv_forward(input, weight, self.bias)
        return convolved


class MaskableConvBN(nn.Module):
    """:class:`ConvBN` with masks; its parameters have the same names."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = MaskableConv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = BatchNorm2d(c_out)

    def forward(
        self,
        x_BCHW: Tensor,
        *,
        column_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        affine_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the normalised convolution, without activation; see the two layers for the masks."""
        convolved = self.conv(x_BCHW, column_mask=column_mask, channel_mask=channel_mask)
        normalised: Tensor = self.bn(convolved, affine_mask=affine_mask, channel_mask=channel_mask)
        return normalised


class MaskedInvertedResidual(nn.Module):
    """The widest :class:`InvertedResidual` of a block, under masks on its input and output channels."""

    is_block = True

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        hidden = EXPANSION * c_in
        self.expand = MaskableConvBN(c_in, hidden)
        self.depthwise = MaskableConvBN(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = MaskableConvBN(hidden, c_out)

    def forward(self, x_BCHW: Tensor, hidden_mask: Tensor | None, mask: Tensor, skip: Tensor | None) -> Tensor:
        """Run the block.

        Args:
            x_BCHW: Input, already masked by the previous block.
            hidden_mask: Mask of the hidden channels (EXPANSION * c_in, 1, 1), each input channel's EXPANSION times;
                None after the stem, whose width is fixed.
            mask: Mask of the output channels (c_out, 1, 1).
            skip: Weight of the skip connection in [0, 1], a scalar; None where there can be none.
        """
        hidden = F.hardswish(self.expand(x_BCHW, channel_mask=hidden_mask))
        hidden = F.hardswish(self.depthwise(hidden, channel_mask=hidden_mask))
        # The hidden mask goes into the columns of the projection, the output mask into its BatchNorm's affine step.
        out: Tensor = self.project(hidden, column_mask=hidden_mask, channel_mask=mask, affine_mask=mask.flatten())
        return out if skip is None else torch.addcmul(out, x_BCHW, skip.to(out.dtype))


def initialise(model: nn.Module) -> None:
    """Initialise as FBNet and MobileNetV3 do: He (fan out) for convolutions, N(0, 0.01) for the classifier."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
