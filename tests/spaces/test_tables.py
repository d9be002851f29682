"""Tables 7 and 8 of the paper, and the published sizes, by hand."""

from __future__ import annotations

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.spaces import SPACES, network_cost, space_named

pytestmark = pytest.mark.unit

SMALL = [(16, 12), (32, 28, 24, 20), (64, 60, 56, 52)]
TABLE_7 = {
    "S3": ((3, 3, 3), SMALL),
    "S5": ((5, 5, 5), SMALL),
    "S7": ((7, 7, 7), SMALL),
    "M": ((9, 7, 1), [(80, 76), (160, 156, 152, 148), (128, 124, 120, 116)]),
    "L": ((9, 7, 1), [(160, 156), (320, 316, 312, 308), (256, 252, 248, 244)]),
}
IMAGENET = [
    (28, 24, 20, 16),
    (40, 36, 32, 28),
    (96, 88, 80, 72, 64, 56, 48),
    (128, 120, 108, 100, 92, 84, 76, 68),
    (216, 208, 200, 192, 184, 176, 168, 160, 152, 144, 136, 128, 120, 108),
]
TABLE_8 = {
    "IS": ((3, 3, 3), IMAGENET[:3]),
    "IM": ((3, 3, 3, 4), IMAGENET[:4]),
    "I": ((3, 3, 3, 4, 4), IMAGENET),
}


def test_the_spaces_are_those_of_the_paper() -> None:
    assert list(SPACES) == ["S3", "S5", "S7", "M", "L", "IS", "IM", "I"]


@pytest.mark.parametrize("name", [*TABLE_7, *TABLE_8])
def test_depths_and_choices(name: str) -> None:
    depths, choices = (TABLE_7 | TABLE_8)[name]
    space = SPACES[name]
    assert space.name == name
    assert tuple(stage.depth for stage in space.stages) == depths
    assert [stage.choices for stage in space.stages] == choices
    assert space.block_choices == [row for depth, row in zip(depths, choices, strict=True) for _ in range(depth)]
    assert len(space.block_strides) == sum(depths)


@pytest.mark.parametrize("name", TABLE_7)
def test_cifar_strides_give_16_8_4(name: str) -> None:
    space = SPACES[name]
    assert [stage.stride for stage in space.stages] == [1, 2, 2]
    assert (space.input_size, space.head_channels) == (32, None)


@pytest.mark.parametrize(("name", "stages"), [("IS", 3), ("IM", 4), ("I", 5)])
def test_imagenet_strides_and_head(name: str, stages: int) -> None:
    space = SPACES[name]
    assert [stage.stride for stage in space.stages] == [2, 2, 2, 1, 2][:stages]
    assert (space.input_size, space.head_channels) == (224, 1984)


# The ten pairs: every block at its smallest, then at its largest; params in millions, MACs in millions.
PINNED = {
    "S3": ((0.110, 4.74), (0.179, 7.87)),
    "S5": ((0.201, 7.84), (0.326, 13.37)),
    "S7": ((0.293, 10.94), (0.473, 18.86)),
    "M": ((2.618, 280.6), (3.009, 317.1)),
    "L": ((10.927, 1163.7), (11.713, 1237.0)),
}


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("which", [0, 1], ids=["smallest", "largest"])
def test_the_ten_published_pairs(name: str, which: int) -> None:
    space = SPACES[name]
    widths = (space.smallest, space.largest)[which]
    params, macs = PINNED[name][which]
    cost = network_cost(space, widths, num_classes=10)
    digits = 1 if name in ("M", "L") else 2
    assert round(cost.params / 1e6, 3) == params
    assert round(cost.macs / 1e6, digits) == macs


@pytest.mark.parametrize("name", PINNED)
def test_published_params_lie_in_the_bracket(name: str) -> None:
    space = SPACES[name]
    low, high = (network_cost(space, widths, num_classes=10) for widths in (space.smallest, space.largest))
    assert space.published_params_m is not None
    # The paper rounds to two digits; 0.11 for S3 is its smallest network, 0.110.
    assert low.params / 1e6 - 0.005 <= space.published_params_m <= high.params / 1e6 + 0.005
    assert space.published_macs_m is not None
    # Its MACs run a few per cent above convs and linear layers alone (M: 326 over 317).
    assert low.macs / 1e6 <= space.published_macs_m <= high.macs / 1e6 * 1.03


def test_space_i_brackets_the_published_imagenet_sizes() -> None:
    space = SPACES["I"]
    low, high = (network_cost(space, widths, num_classes=1000) for widths in (space.smallest, space.largest))
    assert (round(low.params / 1e6, 2), round(high.params / 1e6, 2)) == (3.07, 5.54)
    assert (round(low.macs / 1e6), round(high.macs / 1e6)) == (183, 498)
    assert low.params < 3.94e6 < 4.01e6 < high.params
    assert low.macs < 242e6 < 255e6 < high.macs


@pytest.mark.parametrize("name", SPACES)
def test_smallest_and_largest_are_choices_of_each_block(name: str) -> None:
    space = SPACES[name]
    for low, high, choices in zip(space.smallest, space.largest, space.block_choices, strict=True):
        assert (low, high) == (choices[-1], choices[0])
        assert list(choices) == sorted(set(choices), reverse=True)


def test_unknown_space_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown search space 's5'; did you mean 'S5'\? \(known: I, IM, IS, L, M"):
        space_named("s5")
