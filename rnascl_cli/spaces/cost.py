"""Params and MACs of any network of a space, by plain integer arithmetic.

One multiply-accumulate counts as one; MACs are those of convolutions and linear layers for one image; params
count every trainable number, BatchNorm's affine ones included. The same functions give the supernet's
expected cost (:mod:`rnascl_cli.distill.expected_cost`), so that the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rnascl_cli.spaces.tables import EXPANSION, STEM_CHANNELS, STEM_STRIDE, SearchSpace

IMAGE_CHANNELS = 3
KERNEL = 3


class Cost(NamedTuple):
    """Trainable numbers, and multiply-accumulates for one image."""

    params: int
    macs: int

    def __add__(self, other: object) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.params + other.params, self.macs + other.macs)


def _conv(c_in: int, c_out: int, kernel: int, side_out: int, groups: int = 1) -> Cost:
    weights = c_out * (c_in // groups) * kernel * kernel
    return Cost(weights, weights * side_out * side_out)


def _batch_norm(channels: int) -> Cost:
    return Cost(2 * channels, 0)


def strided(side: int, stride: int) -> int:
    """Return the output side of a 'same'-padded 3x3 convolution."""
    return (side + stride - 1) // stride


def block_cost(c_in: int, c_out: int, side_in: int, stride: int) -> Cost:
    """Return the cost of one inverted residual: expand 1x1, depthwise 3x3, project 1x1, each with BatchNorm."""
    hidden, side_out = EXPANSION * c_in, strided(side_in, stride)
    return (
        _conv(c_in, hidden, 1, side_in)
        + _batch_norm(hidden)
        + _conv(hidden, hidden, KERNEL, side_out, groups=hidden)
        + _batch_norm(hidden)
        + _conv(hidden, c_out, 1, side_out)
        + _batch_norm(c_out)
    )


def stem_cost(input_size: int) -> Cost:
    """Return the cost of the 3x3 stem and its BatchNorm."""
    side = strided(input_size, STEM_STRIDE)
    return _conv(IMAGE_CHANNELS, STEM_CHANNELS, KERNEL, side) + _batch_norm(STEM_CHANNELS)


def classifier_cost(c_in: int, side: int, head_channels: int | None, num_classes: int) -> Cost:
    """Return the cost of the optional 1x1 head with BatchNorm, and of the linear layer with bias."""
    head = Cost(0, 0)
    if head_channels is not None:
        head = _conv(c_in, head_channels, 1, side) + _batch_norm(head_channels)
        c_in = head_channels
    return head + Cost(c_in * num_classes + num_classes, c_in * num_classes)


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands: the input side it sees and its stride."""

    side_in: int
    stride: int


def block_places(space: SearchSpace, input_size: int) -> list[BlockPlace]:
    """Return the place of every block for square images of ``input_size`` pixels."""
    side, places = strided(input_size, STEM_STRIDE), []
    for stride in space.block_strides:
        places.append(BlockPlace(side, stride))
        side = strided(side, stride)
    return places


def final_side(space: SearchSpace, input_size: int) -> int:
    """Return the side of the last block's output."""
    last = block_places(space, input_size)[-1]
    return strided(last.side_in, last.stride)


def network_cost(space: SearchSpace, widths: Sequence[int], *, num_classes: int, input_size: int | None = None) -> Cost:
    """Return the params and MACs of the network of ``space`` with these block widths.

    Args:
        space: The search space.
        widths: Output channels of each block; any positive integers, one a block.
        num_classes: Outputs of the linear layer.
        input_size: Height and width of the images in pixels; the space's own by default.

    Raises:
        ValueError: Not one width a block.
    """
    size = space.input_size if input_size is None else input_size
    places = block_places(space, size)
    if len(widths) != len(places):
        raise ValueError(f"space {space.name} has {len(places)} blocks, {len(widths)} widths given")
    total, c_in = stem_cost(size), STEM_CHANNELS
    for width, place in zip(widths, places, strict=True):
        total += block_cost(c_in, width, place.side_in, place.stride)
        c_in = width
    return total + classifier_cost(c_in, final_side(space, size), space.head_channels, num_classes)


def block_costs(space: SearchSpace, input_size: int | None = None) -> list[list[list[Cost]]]:
    """Return the cost of every block for every pair of input and output choices.

    Returns:
        For each block a table ``[input choice][output choice]``; the first block's input is the stem.
    """
    size = space.input_size if input_size is None else input_size
    tables = []
    inputs: tuple[int, ...] = (STEM_CHANNELS,)
    for choices, place in zip(space.block_choices, block_places(space, size), strict=True):
        tables.append([[block_cost(i, o, place.side_in, place.stride) for o in choices] for i in inputs])
        inputs = choices
    return tables
