"""The good world is good: without this, every refusal beside it would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import done
from tests.conftest import FAST

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize(
    "arguments",
    [
        ("derive", "search"),
        ("train", "search", "--epochs", 1, *FAST, "--out", "new"),
        ("adv-finetune", "train", "--method", "fast-at", "--epochs", 1, *FAST, "--out", "new"),
        ("attack", "fine", "--attack", "fgsm", "--device", "cpu", "--out", "new"),
        ("report", "train", "fine", "attack", "--out", "new"),
        ("teacher", "show", "r8.safetensors"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_everything_is_accepted(world: Path, arguments: tuple[object, ...]) -> None:
    outcome = done(*arguments)
    assert "warning:" not in outcome.err
