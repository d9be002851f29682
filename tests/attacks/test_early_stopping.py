"""APGD that stops working on images it has broken: fewer passes, the same verdicts.

Shape suffixes: N images of the set, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from rnascl_cli.attacks.early_stopping import drop_broken
from tests.attacks import tiny

pytestmark = pytest.mark.unit


class Counting:
    """The model, with a count of the images it has processed."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.images = model, 0

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        self.images += len(x_BCHW)
        logits: Tensor = self.model(x_BCHW)
        return logits


def run(kind: Any, model: nn.Module, x_BCHW: Tensor, y_B: Tensor, *, eps: float, drop: bool, norm: str) -> Any:
    counting = Counting(model)
    part = kind(counting, n_iter=20, eps=eps, norm=norm, device=torch.device("cpu"))
    if drop:
        drop_broken(part)
    with torch.random.fork_rng(devices=[]):
        return part.perturb(x_BCHW.clone(), y_B.clone()).detach(), counting.images


@pytest.mark.parametrize("kind", [APGDAttack, APGDAttack_targeted])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 6 / 255), ("L2", 0.3)])
def test_the_same_images_are_broken_with_fewer_passes(robust: nn.Module, kind: Any, norm: str, eps: float) -> None:
    data = tiny.images(40, seed=3, noise=0.18)
    x_BCHW, y_B = data.images_NCHW.float() / 255, data.labels_N
    (whole, all_passes), (dropped, fewer) = (
        run(kind, robust, x_BCHW, y_B, eps=eps, drop=drop, norm=norm) for drop in (False, True)
    )
    broken = [robust(found).argmax(dim=1) != y_B for found in (whole, dropped)]
    assert torch.equal(*broken)
    right_B = robust(x_BCHW).argmax(dim=1) == y_B
    assert 0 < int((broken[0] & right_B).sum()) < int(right_B.sum())
    assert fewer < all_passes
    delta_BD = (dropped - x_BCHW).flatten(1)
    assert float((delta_BD.abs().amax(1) if norm == "Linf" else delta_BD.norm(dim=1)).max()) <= eps + 1e-6


def test_a_weak_model_takes_few_passes_per_image(plain: nn.Module) -> None:
    data = tiny.images(40, seed=3)
    x_BCHW, y_B = data.images_NCHW.float() / 255, data.labels_N
    found, passes = run(APGDAttack, plain, x_BCHW, y_B, eps=16 / 255, drop=True, norm="Linf")
    assert not (plain(found).argmax(dim=1) == y_B).any()
    assert passes < 6 * len(y_B)  # of 22 that pyautoattack takes


def test_a_broken_image_is_returned_as_it_was_when_it_fooled_the_model() -> None:
    seen: list[list[float]] = []

    def bright(x_BCHW: Tensor) -> Tensor:
        level_B = x_BCHW.flatten(1).mean(dim=1)
        seen.append([round(float(level), 1) for level in level_B])
        return torch.stack([0.5 - level_B, level_B - 0.5], dim=1)

    class Part:
        """Two passes, each brighter by 0.2, whose result forgets what fooled the model."""

        eot_iter = 1
        model = staticmethod(bright)

        def attack_single_run(self, x_BCHW: Tensor, y_B: Tensor, x_init: Tensor | None = None) -> tuple[Tensor, ...]:
            for step in (0.2, 0.4):
                self.model(x_BCHW + step)
            return x_BCHW, torch.ones_like(y_B, dtype=torch.bool), torch.zeros(len(y_B)), torch.zeros_like(x_BCHW)

    part = Part()
    drop_broken(part)
    levels_B = torch.tensor([0.4, 0.0, 0.2])
    x_BCHW = levels_B.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    _, unbroken_B, _, found_BCHW = part.attack_single_run(x_BCHW, torch.zeros(3, dtype=torch.long))
    assert seen == [[0.6, 0.2, 0.4], [0.4, 0.6]]  # the first is broken at once and passed no more
    assert unbroken_B.tolist() == [False, True, False]
    assert found_BCHW.flatten(1).mean(dim=1).tolist() == pytest.approx([0.6, 0.0, 0.6])
    assert part.model is bright


def test_eot_is_not_changed() -> None:
    part: Any = APGDAttack(math.sqrt, eps=0.1, eot_iter=20)
    before = part.attack_single_run
    drop_broken(part)
    assert part.attack_single_run == before
