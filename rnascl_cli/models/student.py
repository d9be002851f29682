"""The derived student: stem, inverted residuals, optional 1x1 head, global average pool, linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.models.blocks import ConvBN, InvertedResidual, initialise
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.spaces import SearchSpace
from rnascl_cli.spaces.tables import STEM_CHANNELS, STEM_STRIDE


class Student(nn.Module):
    """A network of a search space with one width a block.

    Args:
        space: The search space (Table 7 or 8).
        widths: Output channels of each block.
        num_classes: Number of logits.
        mean: Channel means of the pixels, taken off inside the model.
        std: Channel standard deviations of the pixels.

    Raises:
        ValueError: Not one width a block.
    """

    def __init__(
        self,
        space: SearchSpace,
        widths: Sequence[int],
        *,
        num_classes: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        strides = space.block_strides
        if len(widths) != len(strides):
            raise ValueError(f"space {space.name} has {len(strides)} blocks, {len(widths)} widths given")
        self.normalise = Normalise(mean, std)
        self.stem = ConvBN(3, STEM_CHANNELS, kernel=3, stride=STEM_STRIDE)
        inputs = [STEM_CHANNELS, *widths[:-1]]
        self.blocks = nn.ModuleList(
            InvertedResidual(c_in, c_out, stride=stride)
            for c_in, c_out, stride in zip(inputs, widths, strides, strict=True)
        )
        features = widths[-1]
        self.head: ConvBN | None = None
        if space.head_channels is not None:
            self.head = ConvBN(features, space.head_channels)
            features = space.head_channels
        self.classifier = nn.Linear(features, num_classes)
        initialise(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to logits (B, num_classes)."""
        x = F.hardswish(self.stem(self.normalise(x_BCHW)))
        for block in self.blocks:
            x = block(x)
        if self.head is not None:
            x = F.hardswish(self.head(x))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
