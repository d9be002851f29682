"""AutoAttack through pyautoattack: the same verdicts, and no side effects."""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack as Suite
from torch import nn

from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.evaluate import Outcome
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import parse_epsilon
from tests.attacks import tiny

EPS = parse_epsilon("10/255")
pytestmark = pytest.mark.unit


def directly(model: nn.Module, data: tiny.Images, *, batch_size: int, version: str, norm: str, eps: float) -> Any:
    """Run pyautoattack's own loop with the parts shortened, and return which images it broke."""
    suite: Any = Suite(model, norm=norm, eps=eps, seed=4, version=version, device="cpu")
    for part in (suite.apgd, suite.apgd_targeted):
        part.n_iter = part.n_iter_orig = 10
        part.n_iter_2, part.n_iter_min, part.size_decr = 2, 1, 1
    suite.fab.n_iter, suite.square.n_queries = 10, 60
    with torch.random.fork_rng(devices=[]):
        _, found_N = suite.run_standard_evaluation(data.images_NCHW.float() / 255, data.labels_N, batch_size=batch_size)
    return found_N != data.labels_N


def adapted(name: str, model: nn.Module, data: tiny.Images, **settings: Any) -> Outcome:
    evaluator = tiny.evaluator(model, data, seed=4, **settings)
    return evaluator.run(AutoAttack(name, iterations=10, queries=60), EPS, ~evaluator.clean())


@pytest.mark.parametrize(
    ("batch_size", "layout"), [(7, torch.contiguous_format), (64, torch.contiguous_format), (64, torch.channels_last)]
)
def test_verdicts_equal_pyautoattacks(robust: nn.Module, batch_size: int, layout: torch.memory_format) -> None:
    data = tiny.images(24, seed=7, noise=0.16)
    theirs_N = directly(robust, data, batch_size=batch_size, version="standard", norm="Linf", eps=EPS.value)
    ours = adapted("aa", robust, data, batch_size=batch_size, layout=layout)
    assert torch.equal(ours.broken_N, theirs_N)
    assert 0 < int(theirs_N.sum()) < 24  # the comparison would say little otherwise
    assert ours.out_of_ball == 0


def test_verdicts_equal_pyautoattacks_in_l2_and_rand(robust: nn.Module) -> None:
    data = tiny.images(16, seed=8)
    theirs_N = directly(robust, data, batch_size=16, version="standard", norm="L2", eps=EPS.value)
    assert torch.equal(adapted("aa", robust, data, norm="L2", layout=torch.channels_last).broken_N, theirs_N)
    theirs_N = directly(robust, data, batch_size=16, version="rand", norm="Linf", eps=EPS.value)
    assert torch.equal(adapted("aa-rand", robust, data).broken_N, theirs_N)


def test_no_side_effects(
    robust: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def tracer(frame: FrameType, event: str, argument: object) -> None:
        return None

    torch_state, python_state = torch.get_rng_state(), random.getstate()
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        adapted("aa", robust, tiny.images(6))
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("auto-attack").handlers


def test_is_standard() -> None:
    assert AutoAttack("aa").is_standard(10)
    assert AutoAttack("aa").is_standard(100)
    assert not AutoAttack("aa").is_standard(9)
    assert AutoAttack("apgd-ce").is_standard(3)
    assert not AutoAttack("fab-t").is_standard(9)
    assert not AutoAttack("aa", queries=100).is_standard(10)


def test_few_classes() -> None:
    model = tiny.network(classes=3).eval().requires_grad_(False)
    data = tiny.images(6, classes=3)
    evaluator = tiny.evaluator(model, data)
    outcome = evaluator.run(AutoAttack("aa", iterations=5, queries=5), EPS, torch.zeros(6, dtype=torch.bool))
    assert list(outcome.broken_by) == ["apgd-ce", "fab-t", "square"]
    assert any("apgd-t left out" in note for note in outcome.notes)
    assert not outcome.attack.is_standard(3)
    assert AutoAttack("aa").part_names(4) == ("apgd-ce", "apgd-t", "fab-t", "square")
    with pytest.raises(UserError, match="needs 4 classes"):
        AutoAttack("apgd-t").part_names(3)


def test_a_randomized_model_gives_a_note(robust: nn.Module) -> None:
    class Noisy(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(x)
            return logits + 0.1 * torch.randn_like(logits)

    outcome = adapted("square", Noisy(robust).eval(), tiny.images(6))
    assert any("randomized" in note and "--attack aa-rand" in note for note in outcome.notes)


def test_a_dynamic_model_gives_a_note_and_the_next_model_does_not(robust: nn.Module) -> None:
    class Purifying(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                shift = torch.zeros_like(x, requires_grad=True)
                torch.autograd.backward(((x.detach() + shift) ** 2).sum())
            logits: torch.Tensor = robust(x)
            return logits

    assert any("dynamic" in note for note in adapted("square", Purifying(), tiny.images(6)).notes)
    assert not any("dynamic" in note for note in adapted("square", robust, tiny.images(6)).notes)
