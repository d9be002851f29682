"""Attention maps: what they are, in which order, at which size, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnascl_cli.models.attention_energy import attention_energy, is_expanding_1x1, pointwise_attention_energy
from rnascl_cli.models.attention_maps import MapSource, attention_layers, record_attention_maps, to_common_side
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import SPACES
from rnascl_cli.teachers.architectures import build_teacher
from tests.models.slimming import TINY, images

pytestmark = pytest.mark.unit


def hooks(model: nn.Module) -> int:
    """How many forward hooks hang on a model."""
    return sum(len(module._forward_hooks) for module in model.modules())


def test_energy_by_hand() -> None:
    # Two channels of 1x2 pixels: 1 + 9, 4 + 16.
    activation_BCHW = torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]])
    assert attention_energy(activation_BCHW).tolist() == [[[[10.0, 20.0]]]]
    # Under the mask (1, 1/2): 1 + 9/4, 4 + 16/4.
    torch.testing.assert_close(
        attention_energy(activation_BCHW, torch.tensor([1.0, 0.5]).view(-1, 1, 1)), torch.tensor([[[[3.25, 8.0]]]])
    )


def test_a_masked_energy_is_that_of_the_masked_activation(generator: torch.Generator) -> None:
    activation_BCHW = torch.randn(2, 5, 3, 3, generator=generator)
    mask_C11 = torch.tensor([1.0, 0.9, 0.3, 0.1, 0.0]).view(-1, 1, 1)
    torch.testing.assert_close(
        attention_energy(activation_BCHW, mask_C11), attention_energy(activation_BCHW * mask_C11)
    )


def test_the_slope_of_an_energy_is_that_of_plain_autograd(generator: torch.Generator) -> None:
    activation_BCHW = torch.randn(2, 5, 3, 3, generator=generator, requires_grad=True)
    mask_C11 = torch.tensor([1.0, 0.9, 0.3, 0.1, 0.0]).view(-1, 1, 1).requires_grad_(True)
    weights_B1HW = torch.randn(2, 1, 3, 3, generator=generator)
    plain = (activation_BCHW * mask_C11).square().sum(dim=1, keepdim=True)
    expected = torch.autograd.grad((plain * weights_B1HW).sum(), (activation_BCHW, mask_C11))
    found = torch.autograd.grad(
        (attention_energy(activation_BCHW, mask_C11) * weights_B1HW).sum(), (activation_BCHW, mask_C11)
    )
    torch.testing.assert_close(found, expected)
    unmasked = torch.autograd.grad((attention_energy(activation_BCHW) * weights_B1HW).sum(), activation_BCHW)[0]
    torch.testing.assert_close(unmasked, 2 * activation_BCHW * weights_B1HW)


def test_the_map_of_a_widening_convolution_comes_from_its_input(generator: torch.Generator) -> None:
    x_BCHW = torch.randn(2, 4, 3, 3, generator=generator, requires_grad=True)
    layer = nn.Conv2d(4, 10, 1, bias=False)
    mask_O11 = torch.linspace(0, 1, 10).view(-1, 1, 1).requires_grad_(True)
    weights_B1HW = torch.randn(2, 1, 3, 3, generator=generator)
    assert is_expanding_1x1(layer)
    for mask in (mask_O11, None):
        leaves = [x_BCHW, layer.weight] + ([] if mask is None else [mask])
        expected_B1HW = attention_energy(layer(x_BCHW), mask)
        expected = torch.autograd.grad((expected_B1HW * weights_B1HW).sum(), leaves)
        found_B1HW = pointwise_attention_energy(x_BCHW, layer.weight, mask)
        found = torch.autograd.grad((found_B1HW * weights_B1HW).sum(), leaves)
        torch.testing.assert_close(found_B1HW, expected_B1HW, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_which_convolutions_widen() -> None:
    assert not is_expanding_1x1(nn.Conv2d(4, 4, 1, bias=False))
    assert not is_expanding_1x1(nn.Conv2d(4, 10, 1))  # its output is W x + b
    assert not is_expanding_1x1(nn.Conv2d(4, 10, 1, stride=2, bias=False))
    assert not is_expanding_1x1(nn.Conv2d(4, 10, 3, padding=1, bias=False))
    assert not is_expanding_1x1(nn.Conv2d(4, 8, 1, groups=2, bias=False))
    assert not is_expanding_1x1(nn.Linear(4, 10))


def test_maps_under_autocast_are_float32() -> None:
    layer = nn.Conv2d(4, 10, 1, bias=False)
    x_BCHW = torch.rand(2, 4, 3, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = pointwise_attention_energy(x_BCHW, layer.weight)
        assert attention_energy(layer(x_BCHW)).dtype == found.dtype == torch.float32
    torch.testing.assert_close(found, attention_energy(layer(x_BCHW.float())))


@pytest.mark.parametrize("numbers", [2 * 48, 47])  # two images, two, and one; or one at a time, though it is too many
@pytest.mark.parametrize("masked", [False, True])
def test_a_bf16_energy_in_pieces_is_the_whole(
    masked: bool, numbers: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    activation_BCHW = torch.randn(5, 3, 4, 4, generator=generator).bfloat16().requires_grad_(True)
    mask_C11 = torch.tensor([1.0, 0.3, 0.0]).view(-1, 1, 1).requires_grad_(True) if masked else None
    weights_B1HW = torch.randn(5, 1, 4, 4, generator=generator)

    def map_and_slopes(activation_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        map_B1HW = attention_energy(activation_BCHW, mask_C11)
        wanted = [activation_BCHW] if mask_C11 is None else [activation_BCHW, mask_C11]
        return map_B1HW, *torch.autograd.grad((map_B1HW * weights_B1HW).sum(), wanted)

    exact = map_and_slopes(activation_BCHW.detach().float().requires_grad_(True))
    whole = map_and_slopes(activation_BCHW)
    monkeypatch.setattr("rnascl_cli.models.attention_energy.CACHED_NUMBERS", numbers)
    pieces = map_and_slopes(activation_BCHW)
    assert pieces[1].dtype == torch.bfloat16
    for found in (whole, pieces):
        torch.testing.assert_close(found[0], exact[0])
        torch.testing.assert_close(found[1], exact[1].bfloat16())  # rounded once, at the end
        torch.testing.assert_close(found[2:], exact[2:])


def test_a_dead_layer_has_finite_slopes() -> None:
    activation_BCHW = torch.zeros(1, 3, 2, 2, requires_grad=True)
    mask_C11 = torch.zeros(3, 1, 1, requires_grad=True)
    attention_energy(activation_BCHW, mask_C11).sum().backward()  # type: ignore[no-untyped-call]
    assert activation_BCHW.grad is not None
    assert mask_C11.grad is not None
    assert not activation_BCHW.grad.any()
    assert not mask_C11.grad.any()


def test_an_energy_keeps_nothing_but_the_activation() -> None:
    activation_BCHW = torch.randn(2, 5, 3, 3, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        attention_energy(activation_BCHW, torch.rand(5, 1, 1))
    large = [tensor for tensor in kept if tensor.numel() > 5]
    assert [tensor.data_ptr() for tensor in large] == [activation_BCHW.data_ptr()]


def test_energy_is_float32_whatever_the_activation() -> None:
    activation_BCHW = torch.full((1, 4096, 1, 1), 0.0625, dtype=torch.bfloat16)
    assert attention_energy(activation_BCHW).dtype == torch.float32
    assert attention_energy(activation_BCHW).item() == 16.0
    assert attention_energy(activation_BCHW, torch.ones(4096, 1, 1)).dtype == torch.float32


def test_larger_maps_are_area_averaged() -> None:
    map_BHW = torch.arange(16.0).view(1, 4, 4)
    # The corner of 0 1 4 5 has the mean 2.5.
    assert to_common_side(map_BHW, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert to_common_side(map_BHW, 1).tolist() == [[[7.5]]]


def test_smaller_maps_are_interpolated_bilinearly() -> None:
    # From 2 to 4 pixels, centres at -1/4, 1/4, 3/4 and 5/4 of the old ones, held at the edges.
    row = [0.0, 1.0, 3.0, 4.0]
    assert to_common_side(torch.tensor([[[0.0, 4.0], [0.0, 4.0]]]), 4).tolist() == [[row] * 4]


def test_maps_of_the_right_side_stay_as_they_are() -> None:
    map_BHW = torch.rand(2, 8, 8)
    assert to_common_side(map_BHW, 8) is map_BHW


@pytest.mark.parametrize(("size", "side"), [((16, 16), 32), ((4, 4), 8), ((16, 16), 8), ((7, 7), 3), ((5, 9), 7)])
def test_maps_are_resized_as_pytorch_does(size: tuple[int, int], side: int, generator: torch.Generator) -> None:
    map_BLHW = torch.rand(2, 3, *size, generator=generator)
    if min(size) < side:
        expected = nn.functional.interpolate(map_BLHW, size=(side, side), mode="bilinear", align_corners=False)
    else:
        expected = nn.functional.adaptive_avg_pool2d(map_BLHW, side)
    torch.testing.assert_close(to_common_side(map_BLHW, side), expected)


def test_constant_maps_stay_constant_at_any_size() -> None:
    for side in (3, 5, 7, 16):
        torch.testing.assert_close(to_common_side(torch.full((1, 6, 6), 2.0), side), torch.full((1, side, side), 2.0))


@pytest.mark.parametrize(
    ("space", "tap", "count"),
    [
        ("S3", "conv", 28),
        ("S3", "norm", 28),
        ("S3", "block", 9),
        ("S5", "conv", 46),
        ("S7", "conv", 64),
        ("IS", "conv", 29),
    ],
)
def test_how_many_layers_a_student_has(space: str, tap: MapSource, count: int) -> None:
    with torch.device("meta"):
        student = Student(SPACES[space], SPACES[space].smallest, num_classes=10)
    assert len(attention_layers(student, tap)) == count


def test_layers_are_named_and_in_order() -> None:
    student = Student(TINY, TINY.smallest, num_classes=3)
    assert list(attention_layers(student))[:5] == [
        "stem.conv",
        "blocks.0.expand.conv",
        "blocks.0.depthwise.conv",
        "blocks.0.project.conv",
        "blocks.1.expand.conv",
    ]
    assert list(attention_layers(student, "norm"))[:2] == ["stem.bn", "blocks.0.expand.bn"]
    assert list(attention_layers(student, "block")) == [f"blocks.{index}" for index in range(4)]


@pytest.mark.parametrize("tap", ["conv", "norm", "block"])
def test_every_teacher_has_layers_of_each_kind(tap: MapSource) -> None:
    with torch.device("meta"):
        for architecture in ("r8", "r18", "r50", "wrt34", "wrt50"):
            assert attention_layers(build_teacher(architecture, num_classes=10), tap), architecture


def test_recorded_maps_are_the_energies_in_order() -> None:
    student = Student(TINY, TINY.largest, num_classes=3).eval()
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.update({name: output.detach()}))
        for name, module in attention_layers(student).items()
    ]
    x_BCHW = images(TINY)
    with torch.no_grad():
        plain = student(x_BCHW)
        with record_attention_maps(student, side=4) as recorder:
            tapped = student(x_BCHW)
    for handle in handles:
        handle.remove()
    maps_BLP = recorder.pop()
    assert torch.equal(plain, tapped)
    assert recorder.layers == list(attention_layers(student))
    for index, name in enumerate(recorder.layers):
        by_hand = to_common_side(outputs[name].square().sum(dim=1), 4).flatten(1)
        torch.testing.assert_close(maps_BLP[:, index], by_hand)


def test_chosen_layers_come_in_the_order_given() -> None:
    student = Student(TINY, TINY.largest, num_classes=3).eval()
    x_BCHW = images(TINY)
    with torch.no_grad(), record_attention_maps(student, side=4) as every:
        student(x_BCHW)
    names = list(attention_layers(student))
    with torch.no_grad(), record_attention_maps(student, side=4, layers=[names[7], names[2]]) as two:
        student(x_BCHW)
    assert torch.equal(two.pop(), every.pop()[:, [7, 2]])


def test_maps_carry_gradients() -> None:
    student = Student(TINY, TINY.largest, num_classes=3)
    with record_attention_maps(student, side=4) as recorder:
        student(images(TINY))
        recorder.pop().sum().backward()  # type: ignore[no-untyped-call]
    assert student.stem.conv.weight.grad is not None


def test_hooks_are_gone_after_the_context() -> None:
    student = Student(TINY, TINY.largest, num_classes=3)
    with record_attention_maps(student, side=4):
        assert hooks(student) == 13
    assert hooks(student) == 0
    with pytest.raises(RuntimeError, match="on purpose"), record_attention_maps(student, side=4):
        raise RuntimeError("on purpose")
    assert hooks(student) == 0


def test_taking_forgets_and_a_missing_pass_is_said() -> None:
    student = Student(TINY, TINY.largest, num_classes=3)
    with record_attention_maps(student, side=4) as recorder:
        with pytest.raises(ValueError, match=r"no forward pass reached stem\.conv"):
            recorder.pop()
        student(images(TINY))
        recorder.pop()
        with pytest.raises(ValueError, match="no forward pass reached"):
            recorder.pop()


def test_an_unknown_layer_is_refused_before_any_hook() -> None:
    student = Student(TINY, TINY.largest, num_classes=3)
    with (
        pytest.raises(ValueError, match=r"no layer 'head\.conv' among the 13 conv layers"),
        record_attention_maps(student, side=4, layers=["stem.conv", "head.conv"]),
    ):
        pass
    assert hooks(student) == 0


def test_normalise_by_hand() -> None:
    layer = Normalise((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    found = layer(torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1))
    assert found.flatten().tolist() == [1.0, 1.0, 0.5]
    assert layer.constants() == {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.25, 2.0]}
    assert not layer.state_dict()
    with pytest.raises(ValueError, match="std must be positive"):
        Normalise((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))
