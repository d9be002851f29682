"""FGSM, PGD and MI-FGSM equal torchattacks' image by image, from the same start."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from tests.attacks import tiny

EPS, STEP = 8 / 255, 2 / 255
pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def torchattacks() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchattacks", reason="torchattacks is not installed; it is only compared with")


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    data = tiny.images(64, seed=5)
    return data.images_NCHW.float() / 255, data.labels_N


def ours(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], **settings: Any) -> torch.Tensor:
    x_BCHW, y_B = batch
    given = {"start_BCHW": x_BCHW, **settings}
    return projected_gradient(model, x_BCHW, loss=cross_entropy(y_B), ball=Linf(EPS), **given)


def test_fgsm(torchattacks: Any, robust: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    theirs = torchattacks.FGSM(robust, eps=EPS)(*batch)
    assert torch.allclose(ours(robust, batch, step_size=EPS, steps=1), theirs, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 10])
def test_pgd_without_and_with_the_same_noise(
    torchattacks: Any, robust: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], steps: int
) -> None:
    theirs = torchattacks.PGD(robust, eps=EPS, alpha=STEP, steps=steps, random_start=False)(*batch)
    assert torch.allclose(ours(robust, batch, step_size=STEP, steps=steps), theirs, atol=1e-6)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = torchattacks.PGD(robust, eps=EPS, alpha=STEP, steps=steps, random_start=True)(*batch)
        torch.manual_seed(3)
        noise = torch.empty_like(batch[0]).uniform_(-EPS, EPS)
    mine = ours(robust, batch, step_size=STEP, steps=steps, start_BCHW=batch[0] + noise)
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.equal(robust(mine).argmax(1), robust(theirs).argmax(1))


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mi_fgsm(torchattacks: Any, robust: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], decay: float) -> None:
    theirs = torchattacks.MIFGSM(robust, eps=EPS, alpha=EPS / 10, steps=10, decay=decay)(*batch)
    mine = ours(robust, batch, step_size=EPS / 10, steps=10, momentum=decay)
    assert torch.allclose(mine, theirs, atol=1e-6)
