"""ResNets for CIFAR-sized images, with RobustBench's tensor names (He et al. 2016).

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures.inplace import relu, relu_of_sum


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    is_block = True
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output after its last ReLU."""
        out = relu(self.bn1(self.conv1(x_BCHW)))
        out = self.bn2(self.conv2(out))
        return relu_of_sum(out, self.shortcut(x_BCHW))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution that widens by 4, and a shortcut."""

    is_block = True
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output after its last ReLU."""
        out = relu(self.bn1(self.conv1(x_BCHW)))
        out = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return relu_of_sum(out, self.shortcut(x_BCHW))


class CifarResNet(nn.Module):
    """A ResNet whose 3x3 stem keeps the resolution; four stages, strides 1, 2, 2, 2.

    Args:
        block: Block type.
        depths: Number of blocks in each of the four stages.
        width: Channels of the stem and of the first stage's 3x3 convolutions; doubled at each later stage.
        num_classes: Number of logits.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], *, width: int = 64, num_classes: int
    ) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(4)]
        inputs = [width] + [previous * block.expansion for previous in widths[:-1]]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(block, inputs[stage], widths[stage], depths[stage], stride=1 if stage == 0 else 2)
            for stage in range(4)
        )
        self.linear = nn.Linear(widths[-1] * block.expansion, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to logits (B, K)."""
        out = relu(self.bn1(self.conv1(self.normalise(x_BCHW))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits_BK: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits_BK


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, depth: int, *, stride: int
) -> nn.Sequential:
    blocks: list[nn.Module] = [block(inputs, width, stride)]
    blocks += [block(width * block.expansion, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
