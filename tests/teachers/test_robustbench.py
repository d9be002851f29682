"""Checkpoints written from RobustBench's own model classes give their logits.

RobustBench pins old releases of timm, gdown and setuptools, so it is no dependency: ``make install`` adds it with
``pip install --no-deps robustbench``, and without it these tests are skipped. What they show is shown a second time,
from the published definitions written out, in ``test_architectures.py`` and ``test_checkpoints.py``, which always run.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import timm  # noqa: F401 (before anything stands in for a missing package)
import torch
from torch import Tensor, nn

from rnascl_cli.core.errors import UserError
from rnascl_cli.stages.teacher.import_checkpoint import import_teacher
from rnascl_cli.teachers.architectures import ARCHITECTURES, TeacherArchitecture
from rnascl_cli.teachers.architectures.wide_resnet import WideResNet
from rnascl_cli.teachers.load import read_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from tests.teachers.conftest import images, shake

NEEDED_BY_OTHER_MODELS = ("geotorch", "torchdiffeq")
CONSTANTS = ("mu", "sigma", "normalize.mean", "normalize.std")
SMALL = "wrn-10-2"  # RobustBench's WideResNet class at a size that costs nothing

State = dict[str, Any]


@pytest.fixture(scope="module")
def zoo() -> Iterator[Callable[[str], Any]]:
    """Import modules of RobustBench's model zoo, without the packages' own starts, which import downloads and pages."""
    found = importlib.util.find_spec("robustbench")
    if found is None or not found.submodule_search_locations:
        pytest.skip("robustbench is not installed (pip install --no-deps robustbench); it is only compared with")
    root = Path(found.submodule_search_locations[0])
    before = set(sys.modules)

    def load(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old names of timm's
            return importlib.import_module(f"robustbench.model_zoo.{name}")

    with pytest.MonkeyPatch.context() as patch:
        for name, folder in (("robustbench", root), ("robustbench.model_zoo", root / "model_zoo")):
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]
            patch.setitem(sys.modules, name, package)
        for name in NEEDED_BY_OTHER_MODELS:
            patch.setitem(sys.modules, name, mock.MagicMock())
        yield load
        for name in set(sys.modules) - before:
            if name.startswith("robustbench."):
                del sys.modules[name]


@pytest.fixture
def small_wide_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = TeacherArchitecture(SMALL, "", 32, lambda *, num_classes: WideResNet(10, 2, num_classes=num_classes))
    monkeypatch.setitem(cast(dict[str, TeacherArchitecture], ARCHITECTURES), SMALL, architecture)


def prefixed(state: State) -> State:
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        shake(model)
    return model.eval()


@torch.no_grad()
def same_logits(ours: nn.Module, theirs: nn.Module, x_BCHW: Tensor) -> None:
    logits_BK = theirs(x_BCHW)
    assert float(logits_BK.std()) > 1e-3
    torch.testing.assert_close(ours(x_BCHW), logits_BK, atol=1e-5, rtol=1e-5)


ENTRIES = [
    ("cifar10", "Sehwag2021Proxy_R18", "linf", "r18"),
    ("cifar10", "Modas2021PRIMEResNet18", "common_corruptions", "r18"),
    ("cifar100", "Modas2021PRIMEResNet18", "common_corruptions", "r18"),
    ("cifar10", "Engstrom2019Robustness", "linf", "r50"),
    ("cifar10", "Augustin2020Adversarial", "l2", "r50"),
    ("imagenet", "Salman2020Do_R18", "linf", "imagenet-r18"),
    ("imagenet", "Salman2020Do_R50", "linf", "imagenet-r50"),
    pytest.param("cifar10", "Sehwag2021Proxy", "linf", "wrn-34-10", marks=pytest.mark.slow),
    pytest.param("cifar10", "Chen2020Efficient", "linf", "wrn-34-10", marks=pytest.mark.slow),
    pytest.param("imagenet", "Salman2020Do_50_2", "linf", "imagenet-wrn-50-2", marks=pytest.mark.slow),
]


def entry(zoo: Callable[[str], Any], data: str, name: str, threat: str) -> Callable[[], nn.Module]:
    """A builder from RobustBench's own table of models."""
    make: Callable[[], nn.Module] = getattr(zoo(data), threat)[name]["model"]
    return make


@pytest.mark.parametrize(("data", "name", "threat", "architecture"), ENTRIES)
def test_models_of_the_zoo(
    zoo: Callable[[str], Any], tmp_path: Path, data: str, name: str, threat: str, architecture: str
) -> None:
    """As the class writes its own state dict: with the buffers of its normalisation, where it has one."""
    theirs = built(entry(zoo, data, name, threat))
    path = tmp_path / f"{name}.pt"
    torch.save(prefixed(dict(theirs.state_dict())), path)
    teacher = read_teacher(str(path))
    path.unlink()
    assert teacher.architecture == architecture
    same_logits(teacher.module, theirs, images(64 if data == "imagenet" else 32, 1))


@pytest.mark.parametrize("name", ["r18", "r50", "imagenet-r18", pytest.param("wrt34", marks=pytest.mark.slow)])
def test_public_files_without_constants(zoo: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    """As distributed: without the normalisation, which RobustBench keeps in its code and we in our table."""
    known = PUBLIC[name]
    theirs = built(entry(zoo, known.dataset, known.robustbench, "linf"))
    state = {key.removeprefix("model."): tensor for key, tensor in theirs.state_dict().items()}
    plain = {key: tensor for key, tensor in state.items() if key not in CONSTANTS}
    assert (len(plain) < len(state)) == (name != "r18")
    source, out = tmp_path / "public.pt", tmp_path / "teacher.safetensors"
    torch.save(plain, source)
    imported = import_teacher(source, out, architecture=None, public=name)
    source.unlink()
    assert imported.architecture == known.architecture
    teacher = read_teacher(str(out))
    same_logits(teacher.module, theirs, images(64 if known.dataset == "imagenet" else 32, 1))


@pytest.mark.usefixtures("small_wide_resnet")
@pytest.mark.parametrize("name", ["Rice2020OverfittingNet", "Chen2020EfficientNet", "Augustin2020AdversarialWideNet"])
def test_wide_resnet_wrappers(zoo: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    theirs = built(lambda: getattr(zoo("cifar10"), name)(depth=10, widen_factor=2))
    state = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("sub_block1")}
    torch.save(state, tmp_path / "t.pt")
    teacher = read_teacher(str(tmp_path / "t.pt"))
    assert teacher.architecture == SMALL
    same_logits(teacher.module, theirs, images())


@pytest.mark.parametrize(
    ("module", "make"),
    [
        # The same weights, but padded on two sides where we pad on four.
        ("architectures.dm_wide_resnet", lambda found: found.DMWideResNet(depth=10, width=2)),
        ("architectures.dm_wide_resnet", lambda found: found.DMPreActResNet()),
        ("architectures.resnet", lambda found: found.PreActResNet(found.PreActBlock, [2, 2, 2, 2])),
        ("architectures.wide_resnet", lambda found: found.WideResNet(depth=28, widen_factor=4)),
        ("architectures.wide_resnet", lambda found: found.WideResNet(depth=10, widen_factor=2, bias_last=False)),
    ],
)
@pytest.mark.usefixtures("small_wide_resnet")
def test_other_networks_are_refused_and_not_misread(
    zoo: Callable[[str], Any], tmp_path: Path, module: str, make: Callable[[Any], nn.Module]
) -> None:
    torch.save(built(lambda: make(zoo(module))).state_dict(), tmp_path / "t.pt")
    with pytest.raises(UserError, match=r"fit none of the architectures|no linear\.weight|not a "):
        read_teacher(str(tmp_path / "t.pt"))
