"""An empty teacher cache for each test, and small random teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rnascl_cli.teachers.architectures import build_teacher


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("RNASCL_CACHE", str(cache))
    return cache


def random_teacher(
    architecture: str,
    *,
    num_classes: int = 10,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> nn.Module:
    """Build a teacher in eval mode whose BatchNorms have seen something, so that every tensor matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_teacher(architecture, num_classes=num_classes, mean=mean, std=std)
        shake(module)
    return module.eval()


def shake(module: nn.Module) -> None:
    """Give every BatchNorm statistics and parameters that differ from their first ones."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked = torch.tensor(7)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)


def images(side: int = 32, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
