"""The supernet: FBNetV2's masked channels (section 3.3, Figure 12).

A block with filter choices f_1 > f_2 > ... runs once, at the widest. Output z_i of choice i is the widest
output with the channels from f_i on set to zero, so the weighted sum Z = sum_i g_i z_i is the widest output
times the mask m = sum_i g_i 1[channel < f_i]: N choices cost one block.

The mask itself costs next to nothing: it is folded into the affine numbers of the block's last BatchNorm, and
the hidden channels that a narrower input would not have had go out with the columns of the projection. The
skip connection, which a derived network has only where widths agree, is weighted with the probability that
they do. With one-hot g the supernet therefore *is* the derived network, which a test shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.models.blocks import ConvBN, MaskedInvertedResidual, initialise
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.spaces import SearchSpace
from rnascl_cli.spaces.tables import STEM_CHANNELS, STEM_STRIDE


class Supernet(nn.Module):
    """All networks of a search space in one set of weights, those of the widest.

    Parameters have the names they have in :class:`~rnascl_cli.models.student.Student`. The Gumbel parameters
    are not among them: see :class:`~rnascl_cli.distill.choices.Choices`.

    Args:
        space: The search space.
        num_classes: Number of logits.
        mean: Channel means of the pixels, taken off inside the model.
        std: Channel standard deviations of the pixels.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        num_classes: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.space = space
        outputs = space.block_choices
        inputs = [(STEM_CHANNELS,), *outputs[:-1]]
        self.normalise = Normalise(mean, std)
        self.stem = ConvBN(3, STEM_CHANNELS, kernel=3, stride=STEM_STRIDE)
        self.blocks = nn.ModuleList(
            MaskedInvertedResidual(max(c_in), max(c_out), stride=stride)
            for c_in, c_out, stride in zip(inputs, outputs, space.block_strides, strict=True)
        )
        features = max(outputs[-1])
        self.head: ConvBN | None = None
        if space.head_channels is not None:
            self.head = ConvBN(features, space.head_channels)
            features = space.head_channels
        self.classifier = nn.Linear(features, num_classes)
        initialise(self)
        for index, (c_in, c_out) in enumerate(zip(inputs, outputs, strict=True)):
            # masks[i, c] = 1[c < f_i]; agree[i, j] = 1[input choice i and output choice j are the same width]
            masks = (torch.arange(max(c_out))[None, :] < torch.tensor(c_out)[:, None]).float()
            agree = (torch.tensor(c_in)[:, None] == torch.tensor(c_out)[None, :]).float()
            self.register_buffer(f"masks_{index}", masks, persistent=False)
            self.register_buffer(f"agree_{index}", agree, persistent=False)

    def forward(self, x_BCHW: Tensor, width_weights: Sequence[Tensor]) -> Tensor:
        """Map images in [0, 1] to the logits of the mixture of widths.

        Args:
            x_BCHW: Images.
            width_weights: For each block the Gumbel weights g of its filter choices, summing to 1.

        Returns:
            Logits (B, num_classes).
        """
        x = F.hardswish(self.stem(self.normalise(x_BCHW)))
        g_in, mask_in = torch.ones(1, device=x_BCHW.device), None
        for index, (block, stride, g_out) in enumerate(
            zip(self.blocks, self.space.block_strides, width_weights, strict=True)
        ):
            mask_out = g_out @ self.get_buffer(f"masks_{index}")
            agree = self.get_buffer(f"agree_{index}")
            can_skip = stride == 1 and x.shape[1] == len(mask_out)
            x = block(x, mask_in, mask_out, g_in @ agree @ g_out if can_skip else None)
            g_in, mask_in = g_out, mask_out
        if self.head is not None:
            x = F.hardswish(self.head(x))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
