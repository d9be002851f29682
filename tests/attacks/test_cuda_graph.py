"""Captured graphs, with a fake for CUDA's: fixed shapes, and output memory that each call reuses.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.cuda_graph import Captured
from rnascl_cli.attacks.gradient import LogitFunction
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.core.units import parse_epsilon
from tests.attacks import tiny

pytestmark = pytest.mark.unit


class Recorder:
    """Captures with the semantics of CUDA graphs, and records the batch sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, model: LogitFunction, sample_BCHW: Tensor) -> LogitFunction:
        assert sample_BCHW.requires_grad
        self.sizes.append(len(sample_BCHW))
        shape = sample_BCHW.shape
        logits_BK = model(sample_BCHW.detach()).clone()
        gradient_BCHW = torch.zeros_like(sample_BCHW, requires_grad=False)

        class Graph(torch.autograd.Function):
            @staticmethod
            def forward(context: Any, x_BCHW: Tensor) -> Tensor:
                assert x_BCHW.shape == shape
                context.save_for_backward(x_BCHW)
                logits_BK.copy_(model(x_BCHW))
                return logits_BK.detach()

            @staticmethod
            def backward(context: Any, *gradients: Tensor) -> Tensor:
                (x_BCHW,) = context.saved_tensors
                with torch.enable_grad():
                    z_BCHW = x_BCHW.detach().requires_grad_(True)
                    gradient_BCHW.copy_(torch.autograd.grad(model(z_BCHW), z_BCHW, gradients[0])[0])
                return gradient_BCHW.detach()

        def graph(x_BCHW: Tensor) -> Tensor:
            replayed: Tensor = Graph.apply(x_BCHW)
            return replayed

        return graph


def with_gradient(model: LogitFunction, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    z_BCHW = x_BCHW.clone().requires_grad_(True)
    logits_BK = model(z_BCHW)
    return logits_BK, torch.autograd.grad(logits_BK.square().sum(), z_BCHW)[0]


def test_logits_and_gradients_equal_the_models_and_are_not_overwritten(robust: nn.Module) -> None:
    recorder = Recorder()
    captured = Captured(robust, batch_size=40, capture=recorder)
    drawn = torch.Generator().manual_seed(0)
    batches = [torch.rand((n, 3, tiny.SIDE, tiny.SIDE), generator=drawn) for n in (40, 40, 25, 20, 3, 17, 41)]
    found = [with_gradient(captured, x_BCHW) for x_BCHW in batches]
    for x_BCHW, (logits_BK, gradient_BCHW) in zip(batches, found, strict=True):  # after all calls: none is overwritten
        expected = with_gradient(robust, x_BCHW)
        assert torch.allclose(logits_BK, expected[0], atol=1e-5)
        assert torch.allclose(gradient_BCHW, expected[1], atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(captured(x_BCHW), expected[0], atol=1e-5)
    assert sorted(recorder.sizes) == [20, 40]  # one graph a size; 41 is more than any, and none is below 16


def test_attacks_give_the_same_verdicts(robust: nn.Module) -> None:
    data = tiny.images(40, seed=3, noise=0.18)
    attacks: list[Attack] = [
        *tiny.attacks("fgsm", "pgd5", "cw", "mi-fgsm"),
        AutoAttack("aa", iterations=8, queries=20),
    ]
    for attack in attacks:
        broken = []
        for worker in (None, Captured(robust, batch_size=20, capture=Recorder())):
            evaluator = tiny.evaluator(robust, data, batch_size=20, attacked_model=worker)
            broken.append(evaluator.run(attack, parse_epsilon("8/255"), ~evaluator.clean()).broken_N)
        assert torch.equal(*broken)


def test_fallback_if_capture_fails_or_differs(robust: nn.Module) -> None:
    def fails(model: LogitFunction, sample_BCHW: Tensor) -> LogitFunction:
        raise RuntimeError("operation not permitted when stream is capturing")

    def frozen(model: LogitFunction, sample_BCHW: Tensor) -> LogitFunction:
        logits_BK = torch.zeros((len(sample_BCHW), tiny.CLASSES))
        return lambda x_BCHW: logits_BK

    x_BCHW = torch.rand((20, 3, tiny.SIDE, tiny.SIDE), generator=torch.Generator().manual_seed(0))
    for capture in (fails, frozen):
        assert torch.equal(Captured(robust, batch_size=20, capture=capture)(x_BCHW), robust(x_BCHW))


def test_an_empty_batch_is_not_captured(robust: nn.Module) -> None:
    none_BCHW = torch.zeros((0, 3, tiny.SIDE, tiny.SIDE))
    assert Captured(robust, batch_size=20, capture=Recorder())(none_BCHW).shape == (0, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_real_graphs_agree_with_the_model(robust: nn.Module) -> None:
    model = tiny.network().to("cuda").eval().requires_grad_(False)
    captured = Captured(model, batch_size=32)
    with torch.backends.cudnn.flags(allow_tf32=False):  # whose digits depend on the size of the batch
        for n in (32, 7):
            x_BCHW = torch.rand((n, 3, tiny.SIDE, tiny.SIDE), device="cuda")
            for one, other in zip(with_gradient(captured, x_BCHW), with_gradient(model, x_BCHW), strict=True):
                assert torch.allclose(one, other, atol=1e-5)
