"""Two ranks, each with its part of a batch: BatchNorm as one process with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.core import distributed
from rnascl_cli.models.batch_norm import BatchNorm2d, convert_sync_batchnorm
from tests.distributed.ranks_of import on_ranks

pytestmark = pytest.mark.pipeline


def pass_through(x_BCHW: Tensor, target_BCHW: Tensor, mask_C: Tensor | None) -> dict[str, Tensor]:
    """Forward and backward of this rank's images: those at rank, rank + size, ..."""
    own = slice(distributed.rank(), None, distributed.size())
    norm = BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    x = x_BCHW[own].clone().requires_grad_()
    out = norm(x, affine_mask=mask_C)
    ((out - target_BCHW[own]) ** 2).sum().backward()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return {
        "out": out.detach(),
        "x": x.grad,
        "weight": distributed.all_reduce_sum(norm.weight.grad),
        "bias": distributed.all_reduce_sum(norm.bias.grad),
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


@pytest.mark.parametrize("mask", [None, [1.0, 0.25, 0.5]], ids=["plain", "masked"])
def test_two_ranks_are_one_batch(tmp_path: Path, mask: list[float] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x_BCHW = 3 + 2 * torch.randn(5, 3, 4, 4, generator=generator)  # three images here, two there
    target_BCHW = torch.randn(5, 3, 4, 4, generator=generator)
    mask_C = None if mask is None else torch.tensor(mask)
    alone = pass_through(x_BCHW, target_BCHW, mask_C)
    first, second = on_ranks(pass_through, 2, tmp_path, x_BCHW, target_BCHW, mask_C)
    for name in ("weight", "bias", "mean", "var"):
        torch.testing.assert_close(first[name], alone[name], rtol=2e-4, atol=1e-5)
        torch.testing.assert_close(second[name], alone[name], rtol=2e-4, atol=1e-5)
    for name in ("out", "x"):
        torch.testing.assert_close(first[name], alone[name][0::2], rtol=2e-4, atol=1e-5)
        torch.testing.assert_close(second[name], alone[name][1::2], rtol=2e-4, atol=1e-5)


def test_only_plain_batch_norms_are_turned() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm1d(2), BatchNorm2d(2))
    before = model.state_dict()
    convert_sync_batchnorm(model)
    assert [type(module) for module in model] == [BatchNorm2d, nn.ReLU, nn.BatchNorm1d, BatchNorm2d]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_shared_formula_is_exact_on_even_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients as in float64, where a channel is one number nearly everywhere."""
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.full((16, 3, 32, 32), 0.3)
    x_BCHW[:, :, 12:20, 12:20] += torch.rand(16, 3, 8, 8, generator=generator)
    target_BCHW = torch.randn(16, 3, 32, 32, generator=generator)
    norm, exact = BatchNorm2d(3), nn.BatchNorm2d(3).double()
    exact_BCHW = x_BCHW.double().requires_grad_()
    ((exact(exact_BCHW) - target_BCHW) ** 2).sum().backward()
    monkeypatch.setattr(distributed, "share_batches", lambda: True)
    own_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last).requires_grad_()
    ((norm(own_BCHW) - target_BCHW) ** 2).sum().backward()
    assert own_BCHW.grad is not None
    assert exact_BCHW.grad is not None
    error = (own_BCHW.grad - exact_BCHW.grad).norm() / exact_BCHW.grad.norm()
    assert error < 1e-5
