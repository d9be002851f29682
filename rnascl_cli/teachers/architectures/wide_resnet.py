"""Wide residual networks for CIFAR-sized images, with RobustBench's tensor names (Zagoruyko & Komodakis 2016).

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures.inplace import relu


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; a 1x1 shortcut where the width changes."""

    is_block = True

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        # The name in the public checkpoints.
        self.convShortcut = nn.Conv2d(inputs, width, 1, stride=stride, bias=False) if inputs != width else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output, before any BatchNorm or ReLU."""
        active = relu(self.bn1(x_BCHW))
        # Where the width changes, the shortcut takes the activated input too.
        short = x_BCHW if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(relu(self.bn2(self.conv1(active))))
        total: Tensor = short + out
        return total


class Group(nn.Module):
    """The blocks at one resolution."""

    def __init__(self, inputs: int, width: int, depth: int, stride: int) -> None:
        super().__init__()
        blocks = [PreActivationBlock(inputs, width, stride)]
        blocks += [PreActivationBlock(width, width, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the blocks."""
        out: Tensor = self.layer(x_BCHW)
        return out


class WideResNet(nn.Module):
    """WRN-``depth``-``widen``: three groups of (depth - 4) / 6 blocks, 16, 32 and 64 times ``widen`` channels."""

    def __init__(self, depth: int, widen: int, *, num_classes: int) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0
        blocks = (depth - 4) // 6
        self.normalise = Normalise()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Group(16, 16 * widen, blocks, 1)
        self.block2 = Group(16 * widen, 32 * widen, blocks, 2)
        self.block3 = Group(32 * widen, 64 * widen, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to logits (B, K)."""
        out = self.block3(self.block2(self.block1(self.conv1(self.normalise(x_BCHW)))))
        out = relu(self.bn1(out))
        logits_BK: Tensor = self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits_BK
