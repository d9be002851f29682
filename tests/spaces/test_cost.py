"""Integer arithmetic against the built networks, counted by others."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rnascl_cli.models.student import Student
from rnascl_cli.spaces import SPACES, Cost, SearchSpace, block_costs, network_cost
from rnascl_cli.spaces.cost import block_cost, block_places, classifier_cost, final_side, stem_cost, strided

pytestmark = pytest.mark.unit


def drawn(space: SearchSpace, seed: int) -> list[int]:
    """One width a block, at random."""
    pick = random.Random(seed)
    return [pick.choice(choices) for choices in space.block_choices]


def on_meta(space: SearchSpace, widths: Sequence[int], num_classes: int) -> Student:
    """The network without its numbers."""
    with torch.device("meta"):
        return Student(space, widths, num_classes=num_classes)


def test_block_cost_by_hand() -> None:
    # 2 -> 3 channels, 4x4 in, stride 2: hidden 12, 2x2 out.
    # expand 2*12 weights at 16 pixels, depthwise 12*9 at 4, project 12*3 at 4; BatchNorms 24 + 24 + 6.
    assert block_cost(2, 3, 4, 2) == Cost(24 + 108 + 36 + 24 + 24 + 6, 24 * 16 + 108 * 4 + 36 * 4)


def test_stem_and_classifier_by_hand() -> None:
    assert stem_cost(32) == Cost(3 * 16 * 9 + 32, 3 * 16 * 9 * 256)
    assert classifier_cost(64, 4, None, 10) == Cost(650, 640)
    # With a head: 64 -> 100 by 1x1 at 4x4 and its BatchNorm, then 100 -> 10.
    assert classifier_cost(64, 4, 100, 10) == Cost(6400 + 200 + 1010, 6400 * 16 + 1000)


@pytest.mark.parametrize(("side", "stride", "out"), [(32, 1, 32), (32, 2, 16), (33, 2, 17), (1, 2, 1), (7, 2, 4)])
def test_strided_side_is_that_of_a_padded_convolution(side: int, stride: int, out: int) -> None:
    conv = nn.Conv2d(1, 1, 3, stride, padding=1, device="meta")
    assert strided(side, stride) == out == conv(torch.empty(1, 1, side, side, device="meta")).shape[-1]


def test_places_of_the_blocks() -> None:
    assert [place.side_in for place in block_places(SPACES["S3"], 32)] == [16, 16, 16, 16, 8, 8, 8, 4, 4]
    assert final_side(SPACES["S3"], 32) == 4
    assert final_side(SPACES["I"], 224) == 7


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_params_are_those_of_the_built_network(name: str, seed: int) -> None:
    space = SPACES[name]
    widths = drawn(space, seed)
    student = on_meta(space, widths, 17)
    built = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert network_cost(space, widths, num_classes=17).params == built


@pytest.mark.parametrize("name", SPACES)
def test_macs_are_half_the_flops_torch_counts(name: str) -> None:
    space = SPACES[name]
    for seed, size in ((0, space.input_size), (1, 40)):
        widths = drawn(space, seed)
        student = on_meta(space, widths, 17)
        with FlopCounterMode(display=False) as counter:
            student(torch.empty(1, 3, size, size, device="meta"))
        assert network_cost(space, widths, num_classes=17, input_size=size).macs * 2 == counter.get_total_flops()


@pytest.mark.parametrize(("name", "size"), [("S3", 32), ("S5", 32), ("S7", 32), ("M", 16), ("L", 8), ("IS", 64)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_macs_are_those_fvcore_counts(name: str, size: int) -> None:
    counting = pytest.importorskip("fvcore.nn")
    space = SPACES[name]
    widths = drawn(space, 3)
    student = Student(space, widths, num_classes=10).eval()
    analysis = counting.FlopCountAnalysis(student, torch.zeros(1, 3, size, size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    found = analysis.by_operator()
    assert network_cost(space, widths, num_classes=10, input_size=size).macs == found["conv"] + found["linear"]


def test_fvcore_counts_space_i_the_same() -> None:
    space = SPACES["I"]
    counting = pytest.importorskip("fvcore.nn")
    student = Student(space, space.smallest, num_classes=1000).eval()
    analysis = counting.FlopCountAnalysis(student, torch.zeros(1, 3, 64, 64))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    found = analysis.by_operator()
    expected = network_cost(space, space.smallest, num_classes=1000, input_size=64).macs
    assert expected == found["conv"] + found["linear"]


@pytest.mark.parametrize("name", SPACES)
def test_block_costs_add_up_to_the_network(name: str) -> None:
    space = SPACES[name]
    tables = block_costs(space)
    widths = drawn(space, 4)
    total, row = stem_cost(space.input_size), 0
    for table, choices, width in zip(tables, space.block_choices, widths, strict=True):
        column = choices.index(width)
        total, row = total + table[row][column], column
    total += classifier_cost(widths[-1], final_side(space, space.input_size), space.head_channels, 10)
    assert total == network_cost(space, widths, num_classes=10)
    assert [(len(table), len(table[0])) for table in tables] == [
        (rows, len(choices))
        for rows, choices in zip([1, *map(len, space.block_choices[:-1])], space.block_choices, strict=True)
    ]


@pytest.mark.parametrize("name", SPACES)
def test_cost_grows_with_each_width(name: str) -> None:
    space = SPACES[name]
    widths = list(space.smallest)
    before = network_cost(space, widths, num_classes=10)
    for block in range(len(widths)):
        widths[block] = space.largest[block]
        after = network_cost(space, widths, num_classes=10)
        assert after.params > before.params
        assert after.macs > before.macs
        before = after


def test_wrong_number_of_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="space S3 has 9 blocks, 2 widths given"):
        network_cost(SPACES["S3"], [16, 16], num_classes=10)
    with pytest.raises(ValueError, match="space S3 has 9 blocks, 8 widths given"):
        Student(SPACES["S3"], [16] * 8, num_classes=10)


def test_cost_adds_only_to_cost() -> None:
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
    pair: tuple[int, int] = (3, 4)
    with pytest.raises(TypeError):
        Cost(1, 2) + pair


def test_macs_scale_with_the_area_of_the_convolutions() -> None:
    space = SPACES["S3"]
    small, large = (network_cost(space, space.largest, num_classes=10, input_size=size) for size in (32, 64))
    assert small.params == large.params
    assert large.macs - 640 == math.prod((4, small.macs - 640))
