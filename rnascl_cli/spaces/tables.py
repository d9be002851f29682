"""Tables 7 and 8 of the paper as data, with the published cost of the derived network beside each.

The paper gives depths and filter choices. What a "convolution block" is, and where its strides lie, it does
not say; the values here are those that its published sizes bracket: an FBNetV2 inverted residual with
expansion 6 and a 3x3 depthwise convolution, a 3x3 stem of 16 channels at stride 2, stage strides 1, 2, 2 for
CIFAR. For ImageNet, stage strides 2, 2, 2, 1, 2 and a 1984-channel 1x1 head are inferred: with them and a
1000-way linear layer, space I brackets the published 3.94-4.01 M params and 242-255 M MACs; without them it
does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from rnascl_cli.core.errors import UserError, did_you_mean

STEM_CHANNELS = 16
STEM_STRIDE = 2
EXPANSION = 6
IMAGENET_HEAD_CHANNELS = 1984


@dataclass(frozen=True)
class SpaceStage:
    """A row of blocks that share their filter choices.

    Attributes:
        depth: Number of blocks.
        stride: Stride of the first block; the others have stride 1.
        choices: Output-channel choices of each block, widest first.
    """

    depth: int
    stride: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """A supernet: stages of blocks between a stem and a classifier.

    Attributes:
        name: The paper's short name.
        stages: Table 7 or 8.
        input_size: Height and width of the images it is meant for, in pixels.
        head_channels: Channels of a final 1x1 convolution; None where the space has none.
        published_params_m: Params of the paper's derived network in millions; None where not given.
        published_macs_m: Its MACs in millions, as the paper counts them (a few per cent above convs and linear).
    """

    name: str
    stages: tuple[SpaceStage, ...]
    input_size: int
    head_channels: int | None = None
    published_params_m: float | None = None
    published_macs_m: float | None = None

    @property
    def block_choices(self) -> list[tuple[int, ...]]:
        """The filter choices of every block, in order."""
        return [stage.choices for stage in self.stages for _ in range(stage.depth)]

    @property
    def block_strides(self) -> list[int]:
        """The stride of every block, in order."""
        return [stage.stride if index == 0 else 1 for stage in self.stages for index in range(stage.depth)]

    @property
    def smallest(self) -> list[int]:
        """The widths of the narrowest network."""
        return [min(choices) for choices in self.block_choices]

    @property
    def largest(self) -> list[int]:
        """The widths of the widest network."""
        return [max(choices) for choices in self.block_choices]


def _cifar(
    name: str, depths: tuple[int, int, int], choices: tuple[tuple[int, ...], ...], params: float, macs: float
) -> SearchSpace:
    stages = tuple(SpaceStage(d, s, c) for d, s, c in zip(depths, (1, 2, 2), choices, strict=True))
    return SearchSpace(name, stages, 32, published_params_m=params, published_macs_m=macs)


_SMALL = ((16, 12), (32, 28, 24, 20), (64, 60, 56, 52))
_M = ((80, 76), (160, 156, 152, 148), (128, 124, 120, 116))
_L = ((160, 156), (320, 316, 312, 308), (256, 252, 248, 244))

_IMAGENET_STAGES = (
    SpaceStage(3, 2, (28, 24, 20, 16)),
    SpaceStage(3, 2, (40, 36, 32, 28)),
    SpaceStage(3, 2, (96, 88, 80, 72, 64, 56, 48)),
    SpaceStage(4, 1, (128, 120, 108, 100, 92, 84, 76, 68)),  # Table 8 prints "128 120": a comma is missing
    SpaceStage(4, 2, (216, 208, 200, 192, 184, 176, 168, 160, 152, 144, 136, 128, 120, 108)),
)


def _imagenet(name: str, stages: int, params: float | None = None, macs: float | None = None) -> SearchSpace:
    return SearchSpace(name, _IMAGENET_STAGES[:stages], 224, IMAGENET_HEAD_CHANNELS, params, macs)


SPACES: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        _cifar("S3", (3, 3, 3), _SMALL, 0.11, 6.64),
        _cifar("S5", (5, 5, 5), _SMALL, 0.21, 11.02),
        _cifar("S7", (7, 7, 7), _SMALL, 0.32, 15.58),
        _cifar("M", (9, 7, 1), _M, 3.0, 326.0),
        _cifar("L", (9, 7, 1), _L, 11.0, 1210.0),
        _imagenet("IS", 3),
        _imagenet("IM", 4),
        _imagenet("I", 5, 3.94, 241.98),
    )
}


def space_named(name: str, *, where: str = "--space") -> SearchSpace:
    """Return the space called ``name``.

    Args:
        name: As in Tables 7 and 8.
        where: What to call the source in an error: the option, or a file.

    Raises:
        UserError: No space has that name.
    """
    if name not in SPACES:
        raise UserError(f"{where}: unknown search space '{name}'{did_you_mean(name, SPACES)}")
    return SPACES[name]
