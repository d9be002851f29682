"""Helpers: small spaces, a supernet with every number at random, and the slim student cut out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnascl_cli.models.student import Student
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.spaces import SPACES, SearchSpace, SpaceStage

TINY = SearchSpace("tiny", (SpaceStage(2, 1, (16, 12)), SpaceStage(2, 2, (24, 20, 16))), 16)
# An ImageNet-like one: a head, a stage of stride 1 whose widths overlap those of the stage before.
HEADED = SearchSpace("headed", (SpaceStage(2, 2, (20, 16, 12)), SpaceStage(2, 1, (24, 20, 16))), 32, head_channels=40)
CASES = {
    "S3-mixed": (SPACES["S3"], [12, 16, 16, 32, 20, 28, 64, 52, 52]),
    "S3-smallest": (SPACES["S3"], SPACES["S3"].smallest),
    "S3-largest": (SPACES["S3"], SPACES["S3"].largest),
    "IS": (SPACES["IS"], [28, 20, 20, 36, 36, 28, 96, 48, 48]),
    "headed": (HEADED, [16, 12, 20, 20]),
}


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as a matrix (D, N), 0 behind the shorter ones."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def one_hot(space: SearchSpace, widths: Sequence[int]) -> Tensor:
    """Gumbel weights (D, N) that decide on ``widths``."""
    return padded(
        [
            torch.tensor([float(choice == width) for choice in choices])
            for choices, width in zip(space.block_choices, widths, strict=True)
        ]
    )


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm affine numbers and statistics of its own, so that none is 0 or 1 by chance."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=stream) * 0.5 + 0.3)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=stream) + 0.5)
    return model


def random_supernet(space: SearchSpace, seed: int = 0, num_classes: int = 5) -> Supernet:
    """A supernet whose every number is drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(space, num_classes=num_classes, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
        nn.init.normal_(supernet.classifier.weight)
        nn.init.normal_(supernet.classifier.bias)
    shaken(supernet, seed)
    return supernet


def cut_out(supernet: Supernet, widths: Sequence[int]) -> Student:
    """The physically slim network: the first channels of every tensor."""
    student = Student(
        supernet.space,
        widths,
        num_classes=supernet.classifier.out_features,
        mean=supernet.normalise.mean.flatten().tolist(),
        std=supernet.normalise.std.flatten().tolist(),
    )
    wide = supernet.state_dict()
    assert set(wide) == set(student.state_dict())
    student.load_state_dict(
        {
            name: wide[name][tuple(slice(size) for size in tensor.shape)].clone()
            for name, tensor in student.state_dict().items()
        }
    )
    return student


def images(space: SearchSpace, count: int = 3, seed: int = 0, side: int | None = None) -> Tensor:
    """Images in [0, 1]."""
    side = side or min(space.input_size, 32)
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
