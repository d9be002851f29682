"""Teacher networks against plain functional rewritings of the published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.core.errors import UserError
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.stages.teacher.registry import layer_table
from rnascl_cli.teachers.architectures import ARCHITECTURES, architecture_named, build_on_meta, build_teacher
from rnascl_cli.teachers.architectures.resnet import BasicBlock, Bottleneck, CifarResNet
from rnascl_cli.teachers.architectures.wide_resnet import WideResNet
from rnascl_cli.teachers.state_dict_conversion import expected_tensors
from tests.teachers.conftest import images

# As published: WRN-34-10 46.2 M, WRN-34-20 184.5 M, ImageNet's as in torchvision's documentation.
PARAMS = {
    "r8": 308_826,
    "r18": 11_173_962,
    "r50": 23_520_842,
    "wrn-34-10": 46_160_474,
    "wrn-34-20": 184_531_674,
    "imagenet-r18": 11_689_512,
    "imagenet-r50": 25_557_032,
    "imagenet-wrn-50-2": 68_883_240,
}
BLOCKS = {
    "r8": 4,
    "r18": 8,
    "r50": 16,
    "wrn-34-10": 15,
    "wrn-34-20": 15,
    "imagenet-r18": 8,
    "imagenet-r50": 16,
    "imagenet-wrn-50-2": 16,
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_params_blocks_and_normalisation(name: str) -> None:
    with torch.device("meta"):
        teacher = build_teacher(name, num_classes=1000 if name.startswith("imagenet") else 10)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == PARAMS[name]
    assert len(attention_layers(teacher, "block")) == BLOCKS[name]
    assert next(name for name, _ in teacher.named_children()) == "normalise"
    assert not any("normalise" in tensor for tensor in teacher.state_dict())


def bn(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias)


def shuffle_norms(model: nn.Module) -> dict[str, Tensor]:
    state = model.eval().state_dict()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return state


@torch.no_grad()
def test_wide_resnet_is_the_published_function() -> None:
    torch.manual_seed(0)
    model = WideResNet(16, 2, num_classes=7)
    state = shuffle_norms(model)
    out = F.conv2d(images(), state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for number in (0, 1):
            name = f"block{group}.layer.{number}"
            stride = 2 if number == 0 and group > 1 else 1
            active = F.relu(bn(state, f"{name}.bn1", out))
            inner = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(F.relu(bn(state, f"{name}.bn2", inner)), state[f"{name}.conv2.weight"], padding=1)
            if number == 0:
                out = F.conv2d(active, state[f"{name}.convShortcut.weight"], stride=stride)
            out = out + inner
    pooled = F.avg_pool2d(F.relu(bn(state, "bn1", out)), 8).flatten(1)
    torch.testing.assert_close(model(images()), pooled @ state["fc.weight"].T + state["fc.bias"])


@torch.no_grad()
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_resnet_is_the_published_function(block: type[BasicBlock] | type[Bottleneck]) -> None:
    torch.manual_seed(0)
    model = CifarResNet(block, (2, 1, 1, 1), width=8, num_classes=7)
    state = shuffle_norms(model)
    out = F.relu(bn(state, "bn1", F.conv2d(images(), state["conv1.weight"], padding=1)))
    for layer, number in ((1, 0), (1, 1), (2, 0), (3, 0), (4, 0)):
        name, stride = f"layer{layer}.{number}", 1 if layer == 1 else 2
        if block is BasicBlock:
            inner = F.conv2d(out, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(F.relu(bn(state, f"{name}.bn1", inner)), state[f"{name}.conv2.weight"], padding=1)
            inner = bn(state, f"{name}.bn2", inner)
        else:
            inner = F.relu(bn(state, f"{name}.bn1", F.conv2d(out, state[f"{name}.conv1.weight"])))
            inner = F.conv2d(inner, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            inner = bn(
                state, f"{name}.bn3", F.conv2d(F.relu(bn(state, f"{name}.bn2", inner)), state[f"{name}.conv3.weight"])
            )
        if f"{name}.shortcut.0.weight" in state:
            out = bn(state, f"{name}.shortcut.1", F.conv2d(out, state[f"{name}.shortcut.0.weight"], stride=stride))
        out = F.relu(out + inner)
    pooled = F.avg_pool2d(out, 4).flatten(1)
    torch.testing.assert_close(model(images()), pooled @ state["linear.weight"].T + state["linear.bias"])


def test_normalisation_is_the_first_thing() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    torch.manual_seed(0)
    plain = build_teacher("r8", num_classes=3).eval()
    inside = build_teacher("r8", num_classes=3, mean=mean, std=std).eval()
    inside.load_state_dict(plain.state_dict())
    by_hand = torch.stack([(images()[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside(images()), plain(by_hand))


def test_public_tensor_names() -> None:
    wide = expected_tensors("wrn-34-10", 10)
    assert wide["block2.layer.0.convShortcut.weight"] == (320, 160, 1, 1)
    assert wide["block1.layer.4.bn2.running_var"] == (160,)
    assert wide["fc.weight"] == (10, 640)
    assert expected_tensors("r50", 10)["layer1.0.shortcut.0.weight"] == (256, 64, 1, 1)
    assert expected_tensors("imagenet-r50", 1000)["layer4.0.downsample.1.weight"] == (2048,)


def test_aliases_and_unknown_names() -> None:
    assert architecture_named("wrt34").name == "wrn-34-20"
    assert architecture_named("wrt50").name == "imagenet-wrn-50-2"
    with pytest.raises(UserError, match=r"--arch: unknown teacher architecture 'r-18'; did you mean 'r18'"):
        build_teacher("r-18", num_classes=10)


def layers(name: str, num_classes: int) -> list[dict[str, Any]]:
    architecture = architecture_named(name)
    return layer_table(build_on_meta(architecture, num_classes=num_classes).eval(), input_size=architecture.input_size)


def test_layer_table_lists_convs_with_the_sides_of_their_maps() -> None:
    rows = layers("r18", 10)
    assert len(rows) == 20
    assert rows[0] == {"layer": "conv1", "channels": 64, "side": 32}
    assert rows[-1] == {"layer": "layer4.1.conv2", "channels": 512, "side": 4}
    assert len(layers("wrn-34-20", 10)) == 34
    assert layers("imagenet-r50", 1000)[0] == {"layer": "network.conv1", "channels": 64, "side": 112}
