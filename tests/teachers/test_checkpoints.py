"""Public dialects, our own files, and everything that a checkpoint can have wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.teachers.architectures import network_of
from rnascl_cli.teachers.load import read_teacher, write_teacher
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from rnascl_cli.teachers.state_dict_conversion import convert_state_dict, expected_tensors
from tests.teachers.conftest import images, random_teacher

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
State = dict[str, Any]


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def madry(state: State) -> State:
    layer = {"new_mean": column(MEAN).squeeze(0), "new_std": column(STD).squeeze(0)}
    return {
        "model": {
            **prefixed(layer, "module.normalizer."),
            **prefixed(state, "module.model."),
            **prefixed(layer, "module.attacker.normalize."),
            **prefixed(state, "module.attacker.model."),
        },
        "epoch": 3,
    }


DIALECTS: dict[str, Callable[[State], State]] = {
    "robustbench": lambda state: {**state, "mu": column(MEAN), "sigma": column(STD)},
    "state_dict and module": lambda state: {
        "state_dict": prefixed({**state, "mean": torch.tensor(MEAN), "std": torch.tensor(STD)}, "module."),
        "best": 0.5,
    },
    "normalize layer": lambda state: {
        **prefixed(state, "model."),
        "normalize.mean": column(MEAN),
        "normalize.std": column(STD),
    },
    "nested": lambda state: {"model": {"state_dict": {**state, "mu": column(MEAN), "sigma": column(STD)}}},
    "madry": madry,
}


@pytest.mark.parametrize("dialect", list(DIALECTS))
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_dialects_give_the_same_logits(tmp_path: Path, dialect: str, suffix: str) -> None:
    original = random_teacher("r8", mean=MEAN, std=STD)
    path = tmp_path / f"public{suffix}"
    torch.save(DIALECTS[dialect](dict(original.state_dict())), path)
    teacher = read_teacher(str(path), num_classes=10)
    assert teacher.architecture == "r8"
    assert (teacher.reference.path, teacher.reference.sha256) == (str(path.resolve()), sha256_file(path))
    torch.testing.assert_close(teacher.module(images()), original(images()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ["r18", "r50", "imagenet-r18"])
def test_architectures_are_told_from_their_tensors(tmp_path: Path, architecture: str) -> None:
    original = random_teacher(architecture, num_classes=12, mean=MEAN, std=STD)
    state = dict(network_of(original).state_dict())
    torch.save({**state, "mu": column(MEAN), "sigma": column(STD)}, tmp_path / "a.pt")
    teacher = read_teacher(str(tmp_path / "a.pt"))
    assert (teacher.architecture, teacher.num_classes) == (architecture, 12)
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    side = 64 if architecture.startswith("imagenet") else 32
    torch.testing.assert_close(teacher.module(images(side)), original(images(side)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ["wrn-34-10", "wrn-34-20", "imagenet-r50", "imagenet-wrn-50-2"])
def test_large_architectures_are_told_apart_by_shape(architecture: str) -> None:
    state = {name: torch.zeros(()).expand(shape) for name, shape in expected_tensors(architecture, 10).items()}
    assert convert_state_dict(prefixed(state, "module."), architecture=None, where="x").architecture == architecture


def test_a_half_precision_checkpoint_without_counters(tmp_path: Path) -> None:
    original = random_teacher("r8")
    state = {name: tensor.half() for name, tensor in original.state_dict().items() if tensor.is_floating_point()}
    save_file(state, tmp_path / "half.safetensors")
    teacher = read_teacher(str(tmp_path / "half.safetensors"))
    assert {tensor.dtype for tensor in teacher.module.parameters()} == {torch.float32}
    torch.testing.assert_close(teacher.module(images()), original(images()), atol=0.02, rtol=0.01)


def test_trades_unused_blocks_are_dropped() -> None:
    shapes = dict(expected_tensors("wrn-34-10", 10))
    shapes |= {f"sub_{name}": shape for name, shape in shapes.items() if name.startswith("block1.")}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    found = convert_state_dict(state, architecture=None, where="x")
    assert found.architecture == "wrn-34-10"
    assert set(found.dropped) == {name for name in shapes if name.startswith("sub_block1.")}


def test_no_normalisation_means_none_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = random_teacher("r8")
    save_file(dict(original.state_dict()), tmp_path / "plain.safetensors")
    teacher = read_teacher(str(tmp_path / "plain.safetensors"))
    assert isinstance(teacher.module.normalise, Normalise)
    assert teacher.module.normalise.constants() == {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    assert "holds no normalisation" in capsys.readouterr().err


def test_our_own_file_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = random_teacher("r8", num_classes=4, mean=MEAN, std=STD)
    path = tmp_path / "t.safetensors"
    sha256 = write_teacher(path, original, architecture="r8", num_classes=4, about={"source": "here"})
    teacher = read_teacher(str(path), num_classes=4)
    assert teacher.reference.sha256 == sha256 == sha256_file(path)
    assert teacher.header["source"] == "here"
    assert torch.equal(teacher.module(images()), original(images()))
    assert "normalisation" not in capsys.readouterr().err


def test_a_teacher_of_nans_is_never_written(tmp_path: Path) -> None:
    broken = random_teacher("r8")
    broken.state_dict()["linear.bias"][3] = float("inf")
    with pytest.raises(RunError, match=r"linear\.bias holds NaN or infinity"):
        write_teacher(tmp_path / "t.safetensors", broken, architecture="r8", num_classes=10, about={})
    assert not list(tmp_path.glob("*.safetensors"))


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_teacher(path, random_teacher("r8", num_classes=4), architecture="r8", num_classes=4, about={})
    with pytest.raises(UserError, match=r"has 4 classes, the data has 10"):
        read_teacher(str(path), num_classes=10)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    state = dict(random_teacher("r8").state_dict())
    torch.save({"state_dict": state, "args": Evil(tmp_path / "mark")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt: holds more than tensors, and rnascl runs no code") as raised:
        read_teacher(str(tmp_path / "evil.pt"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["t.pt", "t.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    original = random_teacher("r8")
    if name.endswith(".pt"):
        torch.save(original.state_dict(), path)
    else:
        write_teacher(path, original, architecture="r8", num_classes=10, about={})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=rf"{name}: (damaged|holds more)"):
        read_teacher(str(path))


def drop(state: State, name: str) -> None:
    del state[name]


WRONG: dict[str, tuple[Callable[[State], object], str]] = {
    "unexplained": (lambda s: s.update(extra=torch.zeros(1)), r"not a r8: 1 tensors unexplained \(extra\)"),
    "missing": (lambda s: drop(s, "layer2.0.bn1.bias"), r"1 tensors missing \(layer2\.0\.bn1\.bias\)"),
    "shape": (
        lambda s: s.update({"conv1.weight": torch.zeros(16, 1, 3, 3)}),
        r"another shape \(conv1\.weight \(16, 1, 3, 3\) for \(16, 3, 3, 3\)\)",
    ),
    "nan": (lambda s: s["linear.bias"].fill_(float("nan")), r"linear\.bias holds NaN"),
    "twice": (lambda s: s.update({"module.conv1.weight": s["conv1.weight"]}), r"both mean 'conv1\.weight'"),
    "copy differs": (
        lambda s: s.update({"attacker.model.conv1.weight": s["conv1.weight"] + 1}),
        r"differs from the tensor it should be a copy of",
    ),
    "copy of nothing": (lambda s: s.update({"attacker.model.x": torch.zeros(1)}), r"a copy of nothing"),
    "mean only": (lambda s: s.update(mu=column(MEAN)), r"only that"),
    "bytes": (lambda s: s.update(mu=column(MEAN) * 255, sigma=column(STD)), r"three numbers in \[0, 1\]"),
    "no classifier": (lambda s: drop(s, "linear.weight"), r"no linear\.weight or fc\.weight"),
    "number": (lambda s: s.update(epoch=3), r"epoch is no tensor"),
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    state: State = {name: tensor.clone() for name, tensor in random_teacher("r8").state_dict().items()}
    change, message = WRONG[fault]
    change(state)
    torch.save(state, tmp_path / "t.pt")
    with pytest.raises(UserError, match=rf"t\.pt: .*{message}") as raised:
        read_teacher(str(tmp_path / "t.pt"))
    assert len(str(raised.value)) < 600


def test_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(10, 3), "fc.bias": torch.zeros(10)}, tmp_path / "t.pt")
    with pytest.raises(UserError, match="fit none of the architectures"):
        read_teacher(str(tmp_path / "t.pt"))


@pytest.mark.parametrize("value", [3, [1, 2], {}, None, "text"])
def test_what_is_no_state_dict(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "t.pt")
    with pytest.raises(UserError, match=r"t\.pt: holds no state dict"):
        read_teacher(str(tmp_path / "t.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "student"}, "a teacher file is needed; this is a 'student'"),
        ({"architecture": "r9"}, "does not know \\('r9'\\)"),
        ({"architecture": "r18"}, "not a r18"),
        ({"architecture": ["r8"]}, "does not know"),
        ({"mean": [0, 0]}, "'mean' in the header"),
        ({"std": [0, 1, 1]}, "'std' in the header"),
        ({"std": "abc"}, "'std' in the header"),
    ],
)
def test_headers_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    header = {"kind": "teacher", "architecture": "r8", "num_classes": 10, "mean": [0, 0, 0], "std": [1, 1, 1], **change}
    path = tmp_path / "t.safetensors"
    save_file(dict(random_teacher("r8").state_dict()), path, metadata={"rnascl": json.dumps(header)})
    with pytest.raises(UserError, match=message):
        read_teacher(str(path))


@pytest.mark.parametrize("name", list(PUBLIC))
def test_an_absent_public_teacher_says_how_to_get_it(name: str, own_cache: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_teacher(name)
    text = str(raised.value)
    for part in (
        f"rnascl teacher fetch {name}",
        f"rnascl teacher import FILE --arch {PUBLIC[name].architecture}",
        "rnascl teacher train",
        PUBLIC[name].gdrive_id,
        PUBLIC[name].robustbench,
        str(own_cache / "teachers"),
    ):
        assert part in text
    assert "\n" not in text


def test_names_are_found_in_the_cache(own_cache: Path) -> None:
    folder = own_cache / "teachers"
    for name in ("r18-cifar10", "mine"):
        write_teacher(folder / f"{name}.safetensors", random_teacher("r8"), architecture="r8", num_classes=10, about={})
    assert read_teacher("r18").reference.path.endswith("r18-cifar10.safetensors")
    assert read_teacher("mine").reference.source == "mine"
    with pytest.raises(UserError, match=r"no cached teacher 'mime'; did you mean 'mine'"):
        read_teacher("mime")
    write_teacher(folder / "r18-other.safetensors", random_teacher("r8"), architecture="r8", num_classes=10, about={})
    with pytest.raises(UserError, match=r"several files in .*\(r18-cifar10, r18-other\)"):
        read_teacher("r18")
    assert read_teacher("r18-other").architecture == "r8"


@pytest.mark.parametrize("source", ["missing.safetensors", "/no/such/file.pt", "folder/x"])
def test_missing_files(source: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_teacher(source)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"t\.onnx: not a checkpoint"):
        read_teacher(str(tmp_path / "t.onnx"))
    with pytest.raises(UserError, match="is a folder"):
        read_teacher(str(tmp_path))
