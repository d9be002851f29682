"""``rnascl attack`` on other classifiers than this package's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rnascl_cli.cli.app import run
from rnascl_cli.loading import LoadedModel
from tests.attacks.commands import attacked, refused

pytestmark = pytest.mark.unit


class Any32(nn.Module):
    """A classifier with a plain BatchNorm, without normalization layer, that checks its input size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Linear(8 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (32, 32), "wrong height"
        logits: torch.Tensor = self.linear(self.norm(self.conv(x)).flatten(1))
        return logits


def test_any_module_can_be_attacked(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rnascl_cli.stages.attack import target

    model = LoadedModel(Any32().eval(), student, "d" * 64, "teacher", 10)
    monkeypatch.setattr(target, "resolve_model", lambda name: model)
    arguments = ["attack", "timm:any", "--data", "digits", "--limit-test", "12"]
    assert run([*arguments, "--attack", "fgsm,mi-fgsm,pgd2,cw", "--out", str(tmp_path / "out")]) == 0
    assert attacked(tmp_path / "out").model == "timm:any"
    capsys.readouterr()
    line = refused(
        [*arguments[1:], "--attack", "fgsm", "--protocol", "paper-code", "--out", str(tmp_path / "other")], capsys
    )
    assert "no normalisation layer" in line


def test_a_model_that_does_not_take_the_images_is_refused(
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rnascl_cli.stages.attack import target

    module = nn.Sequential(nn.Flatten(), nn.Linear(7, 10)).eval()
    model = LoadedModel(module, student, "d" * 64, "teacher", 10)
    monkeypatch.setattr(target, "resolve_model", lambda name: model)
    arguments = ["other", "--data", "digits", "--out", str(tmp_path / "out")]
    assert "does not take images of 32x32 pixels" in refused(arguments, capsys)
