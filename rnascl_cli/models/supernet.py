"""The supernet: FBNetV2's masked channels (section 3.3, Figure 12).

A block with filter choices f_1 > f_2 > ... runs once, at the widest. Output z_i of choice i is the widest
output with the channels from f_i on set to zero, so the weighted sum Z = sum_i g_i z_i is the widest output
times the mask m = sum_i g_i 1[channel < f_i]: N choices cost one block.

The mask itself costs next to nothing: it is folded into the affine numbers of the block's last BatchNorm, and
the hidden channels that a narrower input would not have had go out with the columns of the projection. The
skip connection, which a derived network has only where widths agree, is weighted with the probability that
they do. With one-hot g the supernet therefore *is* the derived network, which a test shows.

Shape suffixes: B images, C channels, H height, W width, D blocks, N filter choices of the block that has most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.models.blocks import ConvBN, MaskedInvertedResidual, initialise
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.spaces import SearchSpace
from rnascl_cli.spaces.tables import EXPANSION, STEM_CHANNELS, STEM_STRIDE


class Supernet(nn.Module):
    """All networks of a search space in one set of weights, those of the widest.

    Parameters have the names they have in :class:`~rnascl_cli.models.student.Student`. The Gumbel parameters
    are not among them: see :class:`~rnascl_cli.distill.architecture_parameters.Choices`.

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
        # masks[(d, i), :] = 1[channel < f_i] over the channels of block d, 0 over those of the others;
        # agree[d, i, j] = 1[input choice i and output choice j are the same width], where there may be a skip.
        depth, most = len(outputs), max(len(choices) for choices in outputs)
        masks = [torch.zeros(depth, most, max(choices)) for choices in outputs]
        agree_DNN = torch.zeros(depth, most, most)
        for index, (c_in, c_out) in enumerate(zip(inputs, outputs, strict=True)):
            masks[index][index, : len(c_out)] = (torch.arange(max(c_out)) < torch.tensor(c_out)[:, None]).float()
            if space.block_strides[index] == 1 and max(c_in) == max(c_out):
                agree_DNN[index, : len(c_in), : len(c_out)] = (
                    torch.tensor(c_in)[:, None] == torch.tensor(c_out)
                ).float()
        self.register_buffer("masks", torch.cat(masks, dim=2).flatten(0, 1), persistent=False)
        self.register_buffer("agree", agree_DNN, persistent=False)
        self.register_buffer("stem_choice", torch.eye(1, most), persistent=False)
        self._skips = [bool(table.any()) for table in agree_DNN]

    def forward(self, x_BCHW: Tensor, g_DN: Tensor) -> Tensor:
        """Map images in [0, 1] to the logits of the mixture of widths.

        Args:
            x_BCHW: Images.
            g_DN: The Gumbel weights of each block's filter choices: rows that sum to 1, 0 behind a block's last choice.

        Returns:
            Logits (B, num_classes).
        """
        x = F.hardswish(self.stem(self.normalise(x_BCHW)))
        masks, hidden_masks, skips = self._mixtures(g_DN)
        for block, *mixture in zip(self.blocks, hidden_masks, masks, skips, strict=True):
            x = block(x, *mixture)
        if self.head is not None:
            x = F.hardswish(self.head(x))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits

    def _mixtures(self, g_DN: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Return for each block its output mask (c_out, 1, 1), its hidden mask and the weight of its skip connection.

        All blocks at once: the number of operations does not depend on how many there are. Products and sums and
        not matrix products, which autocast would round to bf16.
        """
        masks = (g_DN.flatten()[:, None] * self.get_buffer("masks")).sum(dim=0).view(-1, 1, 1)
        # Hidden channel h exists in a derived network whose input has more than h // EXPANSION channels.
        hidden = masks.expand(-1, EXPANSION, 1).reshape(-1, 1, 1)
        g_in_DN = torch.cat([self.get_buffer("stem_choice"), g_DN[:-1]])
        given_input_DN = (g_in_DN.unsqueeze(2) * self.get_buffer("agree")).sum(dim=1)
        agreed_D = (given_input_DN * g_DN).sum(dim=1).unbind()
        widths = self.space.largest
        hidden_masks = torch.split(hidden, [EXPANSION * width for width in widths])
        skips = [weight if skip else None for weight, skip in zip(agreed_D, self._skips, strict=True)]
        return torch.split(masks, list(widths)), [None, *hidden_masks[:-1]], skips


class SupernetAtWidths(nn.Module):
    """The supernet under fixed width weights, as a module of images alone."""

    def __init__(self, supernet: Supernet, g_DN: Tensor) -> None:
        super().__init__()
        self.supernet, self.g_DN = supernet, g_DN

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to logits (B, num_classes)."""
        logits: Tensor = self.supernet(x_BCHW, self.g_DN)
        return logits
