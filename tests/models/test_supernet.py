"""The supernet is the derived network at one-hot weights, and costs one block whatever its choices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counting import Operators
from rnascl_cli.models.attention_maps import MapSource, attention_layers, record_attention_maps
from rnascl_cli.models.blocks import InvertedResidual, MaskedInvertedResidual
from rnascl_cli.models.student import Student
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.spaces import SPACES, SearchSpace, SpaceStage
from tests.models.slimming import CASES, HEADED, TINY, cut_out, images, one_hot, padded, random_supernet, shaken

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("tap", ["conv", "norm", "block"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_one_hot_is_the_slim_network(case: str, training: bool, tap: MapSource) -> None:
    space, widths = CASES[case]
    supernet = random_supernet(space)
    student = cut_out(supernet, widths)
    supernet.train(training)
    student.train(training)
    x_BCHW = images(space)
    assert list(attention_layers(supernet, tap)) == list(attention_layers(student, tap))
    with torch.no_grad(), record_attention_maps(supernet, side=8, source=tap) as wide:
        wide_logits = supernet(x_BCHW, one_hot(space, widths))
    with torch.no_grad(), record_attention_maps(student, side=8, source=tap) as slim:
        slim_logits = student(x_BCHW)
    torch.testing.assert_close(wide_logits, slim_logits, rtol=2e-4, atol=2e-4)
    wide_maps, slim_maps = wide.pop(), slim.pop()
    assert wide_maps.shape == (3, len(attention_layers(student, tap)), 64)
    scale = slim_maps.amax(dim=2, keepdim=True)
    torch.testing.assert_close(wide_maps / scale, slim_maps / scale, rtol=2e-4, atol=2e-4)
    if training:  # the running statistics of the channels that both have moved alike
        moved = cut_out(supernet, widths).state_dict()
        for name, tensor in student.state_dict().items():
            torch.testing.assert_close(moved[name], tensor, rtol=2e-4, atol=2e-4)


def test_another_width_is_another_network() -> None:
    # The test above could not fail if masks did nothing.
    space, widths = CASES["S3-mixed"]
    supernet = random_supernet(space).eval()
    x_BCHW = images(space)
    other = [*widths[:-1], 56]
    gap = supernet(x_BCHW, one_hot(space, widths)) - supernet(x_BCHW, one_hot(space, other))
    assert gap.abs().max() > 1e-2


def test_gradients_at_one_hot_are_those_of_the_slim_network() -> None:
    space, widths = CASES["headed"]
    supernet = random_supernet(space).train()
    student = cut_out(supernet, widths).train()
    x_BCHW, y_B = images(space), torch.tensor([0, 1, 2])
    nn.functional.cross_entropy(supernet(x_BCHW, one_hot(space, widths)), y_B).backward()  # type: ignore[no-untyped-call]
    nn.functional.cross_entropy(student(x_BCHW), y_B).backward()  # type: ignore[no-untyped-call]
    wide = dict(supernet.named_parameters())
    for name, parameter in student.named_parameters():
        gradient = wide[name].grad
        assert gradient is not None
        assert parameter.grad is not None
        kept = tuple(slice(size) for size in parameter.shape)
        torch.testing.assert_close(gradient[kept], parameter.grad, rtol=1e-3, atol=1e-4)
        outside = gradient.clone()
        outside[kept] = 0
        assert outside.abs().max() < 1e-6, f"{name}: channels that are masked out learn"


def dispatched(model: nn.Module, *inputs: Any) -> dict[str, int]:
    counted = Operators()
    with torch.no_grad(), counted:
        model(*inputs)
    return counted.calls


def test_n_choices_cost_one_block() -> None:
    many = SearchSpace("many", (SpaceStage(3, 1, tuple(range(32, 12, -1))),), 16)
    one = SearchSpace("one", (SpaceStage(3, 1, (32,)),), 16)
    x_BCHW = images(many, side=16)
    slim = dispatched(Student(one, [32] * 3, num_classes=5), x_BCHW)
    counts = []
    for space in (one, many):
        g = padded([torch.full((len(choices),), 1 / len(choices)) for choices in space.block_choices])
        counts.append(dispatched(random_supernet(space), x_BCHW, g))
    # A stem and three convolutions a block, with 20 choices as with one, as in a plain network.
    assert [calls["aten.convolution.default"] for calls in (slim, *counts)] == [10, 10, 10]
    # The number of operations does not depend on the number of choices, but for the skip's bookkeeping.
    assert sum(counts[1].values()) == sum(counts[0].values())


def test_soft_weights_are_the_weighted_sum_of_the_choices() -> None:
    """Z = sum_i g_i z_i, with z_i the widest output whose channels from f_i on are zero."""
    choices, g = (10, 7, 4, 2), torch.tensor([0.1, 0.4, 0.2, 0.3])
    block = MaskedInvertedResidual(6, 10, stride=1)
    shaken(block, 3)
    x_BCHW = torch.randn(2, 6, 5, 5)
    masks = torch.stack([(torch.arange(10) < width).float() for width in choices])
    for training in (False, True):
        block.train(training)
        with torch.no_grad():
            widest = block(x_BCHW, None, torch.ones(10, 1, 1), None)
            by_hand = torch.zeros_like(widest)
            for weight, mask in zip(g, masks, strict=True):
                by_hand += weight * widest * mask[None, :, None, None]
            mixed = block(x_BCHW, None, (g @ masks).view(-1, 1, 1), None)
        torch.testing.assert_close(mixed, by_hand, rtol=1e-5, atol=1e-5)


def test_a_soft_input_mask_rides_on_the_hidden_channels() -> None:
    block = MaskedInvertedResidual(3, 4, stride=1).eval()
    shaken(block, 4)
    x_BCHW, mask_in = torch.randn(2, 3, 5, 5), torch.tensor([1.0, 0.7, 0.2])
    with torch.no_grad():
        hidden = nn.functional.hardswish(block.depthwise(nn.functional.hardswish(block.expand(x_BCHW))))
        masked = hidden * torch.tensor([1.0] * 6 + [0.7] * 6 + [0.2] * 6)[None, :, None, None]
        by_hand = block.project.bn(nn.functional.conv2d(masked, block.project.conv.weight))
        found = block(x_BCHW, mask_in.repeat_interleave(6).view(-1, 1, 1), torch.ones(4, 1, 1), None)
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)


def test_the_skip_is_weighted_by_the_chance_that_widths_agree() -> None:
    supernet = random_supernet(TINY).eval()
    found: list[float | None] = []
    for block in supernet.blocks:
        block.register_forward_hook(
            lambda _m, inputs, _o: found.append(None if inputs[3] is None else float(inputs[3]))
        )
    g = [
        torch.tensor([0.25, 0.75]),
        torch.tensor([0.4, 0.6]),
        torch.tensor([0.2, 0.3, 0.5]),
        torch.tensor([0.5, 0.5, 0]),
    ]
    with torch.no_grad():
        supernet(images(TINY), padded(g))
    # Stem 16 -> (16, 12): g_16. (16, 12) -> (16, 12): .25 * .4 + .75 * .6. Stride 2: none. Then .2 * .5 + .3 * .5.
    assert found[2] is None
    assert [found[0], found[1], found[3]] == pytest.approx([0.25, 0.55, 0.25])


@pytest.mark.parametrize("name", SPACES)
def test_no_space_has_a_skip_that_the_supernet_cannot_take(name: str) -> None:
    # The supernet adds the whole input, so it needs equal widest widths wherever a derived network may skip.
    space = SPACES[name]
    inputs = [(16,), *space.block_choices[:-1]]
    for c_in, c_out, stride in zip(inputs, space.block_choices, space.block_strides, strict=True):
        if stride == 1 and set(c_in) & set(c_out):
            assert max(c_in) == max(c_out)


def test_gradients_reach_every_width_weight() -> None:
    supernet = random_supernet(HEADED).eval()
    leaves = [torch.full((len(choices),), 1 / len(choices), requires_grad=True) for choices in HEADED.block_choices]
    x_BCHW = images(HEADED)
    (supernet(x_BCHW, padded(leaves)) ** 2).mean().backward()
    step = 1e-2
    for block, leaf in enumerate(leaves):
        assert leaf.grad is not None
        for choice in range(len(leaf)):
            values = []
            for sign in (1, -1):
                moved = [row.detach().clone() for row in leaves]
                moved[block][choice] += sign * step
                with torch.no_grad():
                    values.append((supernet(x_BCHW, padded(moved)).double() ** 2).mean().item())
            slope = (values[0] - values[1]) / (2 * step)
            assert leaf.grad[choice].item() == pytest.approx(slope, rel=0.05, abs=0.05)


def test_calls_do_not_remember_the_masks_of_earlier_ones() -> None:
    space, widths = CASES["S3-mixed"]
    supernet = random_supernet(space).eval()
    x_BCHW = images(space)
    with torch.no_grad():
        fresh = supernet(x_BCHW, one_hot(space, widths))
        supernet(x_BCHW, one_hot(space, space.smallest))
        assert torch.equal(supernet(x_BCHW, one_hot(space, widths)), fresh)


def test_parameters_are_those_of_the_widest_student() -> None:
    for space in (SPACES["S3"], HEADED):
        wide, student = Supernet(space, num_classes=10), Student(space, space.largest, num_classes=10)
        shapes: list[dict[str, Tensor]] = [dict(model.named_parameters()) for model in (wide, student)]
        assert {name: tensor.shape for name, tensor in shapes[0].items()} == {
            name: tensor.shape for name, tensor in shapes[1].items()
        }
        # Masks are bookkeeping, not state.
        assert set(wide.state_dict()) == set(student.state_dict())


@pytest.mark.parametrize(("stride", "c_out", "skips"), [(1, 8, True), (1, 6, False), (2, 8, False)])
def test_a_student_block_skips_only_where_it_can(stride: int, c_out: int, skips: bool) -> None:
    block = InvertedResidual(8, c_out, stride=stride).eval()
    shaken(block, 5)
    x_BCHW = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        inner = nn.functional.hardswish(block.depthwise(nn.functional.hardswish(block.expand(x_BCHW))))
        plain = block.project(inner)
        torch.testing.assert_close(block(x_BCHW), plain + x_BCHW if skips else plain)
    assert block.skip is skips
