"""Checkpoints that hold more than tensors: what can be left out is left out, and nothing they name is ever run."""

from __future__ import annotations

import argparse
import builtins
import collections
import operator
import os
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnascl_cli.core.errors import UserError
from rnascl_cli.teachers.load import read_checkpoint, read_teacher
from rnascl_cli.teachers.safe_unpickling import UnknownObject, load_pickled
from tests.teachers.conftest import images, random_teacher

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Parameters:
    """As cox.utils.Parameters, which robustness keeps its arguments in; not importable when the file is read."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params


@pytest.fixture
def cox() -> Iterator[Callable[[], None]]:
    """A module ``cox.utils`` for writing the file; call the fixture to take it away again."""
    package, utils = types.ModuleType("cox"), types.ModuleType("cox.utils")
    Parameters.__module__, Parameters.__qualname__ = "cox.utils", "Parameters"
    utils.Parameters = Parameters  # type: ignore[attr-defined]

    def take_away() -> None:
        sys.modules.pop("cox", None)
        sys.modules.pop("cox.utils", None)

    sys.modules["cox"], sys.modules["cox.utils"] = package, utils
    yield take_away
    take_away()


def madry(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as robustness writes it: DataParallel around an AttackerModel, which holds the network twice."""
    layer = {"new_mean": torch.tensor(MEAN).view(3, 1, 1), "new_std": torch.tensor(STD).view(3, 1, 1)}
    model = {
        **{f"module.normalizer.{name}": value for name, value in layer.items()},
        **{f"module.model.{name}": value for name, value in state.items()},
        **{f"module.attacker.normalize.{name}": value for name, value in layer.items()},
        **{f"module.attacker.model.{name}": value for name, value in state.items()},
    }
    return {
        "model": collections.OrderedDict(model),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "schedule": {"milestones": collections.Counter({50: 1}), "gamma": 0.1, "base_lrs": [0.1], "last_epoch": 150},
        "epoch": 150,
        "amp": None,
        "adv_prec1": np.float64(0.5),
        "history": np.arange(3),
        "args": Parameters({"attack_lr": 0.1, "adv_train": 1, "out": Path("/x"), "more": argparse.Namespace(a=1)}),
    }


@FORMATS
def test_a_checkpoint_of_madrylabs_robustness(tmp_path: Path, cox: Callable[[], None], zipped: bool) -> None:
    original = random_teacher("r8", mean=MEAN, std=STD)
    path = tmp_path / "cifar_linf_8.pt"
    torch.save(madry(dict(original.state_dict())), path, _use_new_zipfile_serialization=zipped)
    cox()
    teacher = read_teacher(str(path), num_classes=10)
    torch.testing.assert_close(teacher.module(images()), original(images()), atol=1e-6, rtol=0)
    assert "cox" not in sys.modules
    dropped = read_checkpoint(path).converted.dropped
    assert dropped["args"] == "an object of cox.utils.Parameters, not weights"
    assert dropped["epoch"] == "int, not weights"
    assert {"optimizer", "schedule", "adv_prec1", "history"} <= set(dropped)
    assert dropped["module.attacker.model.conv1.weight"] == "a copy of the same weights"


def test_what_stands_for_an_unknown_object_does_nothing(tmp_path: Path, cox: Callable[[], None]) -> None:
    torch.save({"args": Parameters({"lr": 0.1})}, tmp_path / "t.pt")
    cox()
    found = load_pickled(tmp_path / "t.pt")["args"]
    assert isinstance(found, UnknownObject)
    assert (found.path, vars(found)) == ("cox.utils.Parameters", {})


class Payload:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(mark: Path) -> dict[str, tuple[Payload, bool]]:
    """What would leave a mark if it ran, and whether the rest of the file can still be read."""
    return {
        "os.mkdir": (Payload(os.mkdir, str(mark)), False),
        "os.system": (Payload(os.system, f"touch {mark}"), False),
        "exec": (Payload(builtins.exec, f"open({str(mark)!r}, 'w').close()"), True),
        "eval": (Payload(builtins.eval, f"open({str(mark)!r}, 'w').close()"), True),
        "open": (Payload(builtins.open, str(mark), "w"), True),
        "subprocess": (Payload(subprocess.check_call, ["touch", str(mark)]), True),
        "a call of what a call gave": (Payload(operator.methodcaller("touch"), mark), True),
        "shutil": (Payload(shutil.copy, "/etc/hostname", str(mark)), True),
        "hidden by a known name": (Payload(torch.load, str(mark)), True),
    }


@FORMATS
@pytest.mark.parametrize("name", list(payloads(Path("x"))))
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_a_payload_runs_nothing(tmp_path: Path, name: str, zipped: bool, where: str) -> None:
    mark = tmp_path / "mark"
    payload, readable = payloads(mark)[name]
    state = dict(random_teacher("r8").state_dict())
    whole = {"state_dict": state, "args": payload} if where == "beside" else {"state_dict": {**state, "extra": payload}}
    torch.save(whole, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    if readable and where == "beside":
        read_teacher(str(tmp_path / "evil.pt"))
    else:
        said = "runs no code from checkpoints" if not readable else "extra is no tensor"
        with pytest.raises(UserError, match=rf"evil\.pt: .*{said}") as raised:
            read_teacher(str(tmp_path / "evil.pt"))
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 500
    assert not mark.exists()


class Stateful:
    """Would write a file when it is given its state."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["mark"]).touch()


@FORMATS
def test_a_class_that_can_be_imported_is_not(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "mark"
    state = dict(random_teacher("r8").state_dict())
    torch.save({"model": state, "args": Stateful(mark)}, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    read_teacher(str(tmp_path / "t.pt"))
    assert not mark.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "t.pt")
    with pytest.raises(UserError, match=r"whole object \(an object of torch\.nn\..*\.Linear\).*state_dict"):
        read_teacher(str(tmp_path / "t.pt"))


def test_what_cannot_be_left_out_is_refused(tmp_path: Path) -> None:
    state = dict(random_teacher("r8").state_dict())
    filled = collections.defaultdict(list, {"a": [1]})
    torch.save({"model": state, "log": filled}, tmp_path / "t.pt")
    with pytest.raises(UserError, match=r"runs no code from checkpoints \(Can only SETITEM.*save its state dict alone"):
        read_teacher(str(tmp_path / "t.pt"))
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "u.pt", pickle_protocol=4)
    with pytest.raises(UserError, match=r"runs no code from checkpoints \(Unsupported operand"):
        read_teacher(str(tmp_path / "u.pt"))


def test_torchs_oldest_format_is_named(tmp_path: Path) -> None:
    for name in ("storages", "tensors", "pickle"):
        (tmp_path / name).write_bytes(b"")
    with tarfile.open(tmp_path / "t.pth.tar", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(tmp_path / name, name)
    with pytest.raises(UserError, match=r"tar format of torch before 0\.2"):
        read_teacher(str(tmp_path / "t.pth.tar"))


def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:  # which torch tells by its constants
        for name, content in (("data.pkl", b"\x80\x02}."), ("constants.pkl", b"\x80\x02)."), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    with pytest.raises(UserError, match=r"TorchScript archive"):
        read_teacher(str(tmp_path / "t.pt"))
