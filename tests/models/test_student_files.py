"""Student files: what goes in comes out, and whatever is wrong with one is said in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rnascl_cli
from rnascl_cli.artifacts.documents import Architecture
from rnascl_cli.artifacts.store import sha256_file, write_weights
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.loading import load_model, resolve_model
from rnascl_cli.models.files import build_student, checked_architecture, load_student, save_student
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import SPACES, network_cost
from tests.models.slimming import images, shaken

pytestmark = pytest.mark.unit

WIDTHS = [12, 16, 16, 32, 20, 28, 64, 52, 52]
MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


def architecture(**changes: Any) -> Architecture:
    """An S3 student's."""
    cost = network_cost(SPACES["S3"], WIDTHS, num_classes=4)
    fields: dict[str, Any] = {
        "space": "S3",
        "widths": WIDTHS,
        "num_classes": 4,
        "input_size": 32,
        "params": cost.params,
        "macs": cost.macs,
    }
    return Architecture(**(fields | changes))


@pytest.fixture
def student() -> Student:
    """A student with random numbers everywhere."""
    built = build_student(architecture(), mean=MEAN, std=STD)
    shaken(built)
    return built.eval()


@pytest.fixture
def saved(tmp_path: Path, student: Student) -> Path:
    """Its file, in a run directory."""
    path = tmp_path / "run" / "student.safetensors"
    save_student(path, student, architecture())
    return path


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, which must be a line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def test_round_trip_gives_equal_logits(saved: Path, student: Student) -> None:
    loaded, found = load_student(saved)
    x_BCHW = images(SPACES["S3"])
    with torch.no_grad():
        assert torch.equal(loaded(x_BCHW), student(x_BCHW))
    assert found == architecture()
    assert not loaded.training
    assert loaded.normalise.constants() == {"mean": list(MEAN), "std": list(STD)}


def test_saving_is_deterministic_and_returns_the_hash(tmp_path: Path, student: Student) -> None:
    hashes = {save_student(tmp_path / name, student, architecture()) for name in ("a", "b")}
    assert hashes == {sha256_file(tmp_path / "a")}
    student.to(memory_format=torch.channels_last)
    assert save_student(tmp_path / "c", student, architecture()) in hashes


def test_only_learned_numbers_are_saved(saved: Path) -> None:
    tensors = load_file(saved)
    learned = sum(tensor.numel() for name, tensor in tensors.items() if name.rpartition(".")[2] in ("weight", "bias"))
    assert learned == architecture().params


@pytest.mark.parametrize("named", ["run directory", "file", "text"])
def test_load_takes_a_run_or_a_file(saved: Path, student: Student, named: str) -> None:
    sources: dict[str, str | Path] = {"run directory": saved.parent, "file": saved, "text": str(saved)}
    model = rnascl_cli.load(sources[named])
    x_BCHW = images(SPACES["S3"])
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(x_BCHW), student(x_BCHW))
        # Pixels in [0, 1] go in: the constants are inside.
        normalised = (x_BCHW - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        plain = build_student(architecture())
        plain.load_state_dict(student.state_dict())
        torch.testing.assert_close(model(x_BCHW), plain.eval()(normalised))


def test_load_takes_a_teacher(tiny_teacher: Path) -> None:
    model = rnascl_cli.load(tiny_teacher)
    assert not model.training
    with torch.no_grad():
        assert model(images(SPACES["S3"])).shape == (3, 10)


def test_resolve_says_what_it_found(saved: Path, tiny_teacher: Path) -> None:
    found = resolve_model(saved.parent)
    assert (found.kind, found.num_classes, found.run, found.path) == ("student", 4, saved.parent, saved)
    assert found.sha256 == sha256_file(saved)
    assert resolve_model(saved).run is None
    teacher = resolve_model(tiny_teacher)
    assert (teacher.kind, teacher.num_classes, teacher.sha256) == ("teacher", 10, sha256_file(tiny_teacher))


def test_a_run_without_a_student(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no student\.safetensors") as error:
        load_model(tmp_path)
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    for read in (load_student, load_model):
        with pytest.raises(UserError, match="damaged or not a safetensors file") as error:
            read(saved)
        assert str(saved) in one_line(error)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_student(tmp_path / "gone.safetensors")


def rewrite(path: Path, *, header: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> None:
    """Write the file again with other header fields, and with tensors replaced (None: left out)."""
    kept: dict[str, Any] = {**load_file(path), **{name.replace("__", "."): value for name, value in tensors.items()}}
    before = {"kind": "student", "architecture": architecture().model_dump(), "mean": list(MEAN), "std": list(STD)}
    found = {name: value for name, value in kept.items() if value is not None}
    write_weights(path, found, {**before, **(header or {})})


def test_somebody_elses_file(saved: Path) -> None:
    save_file({"x": torch.zeros(1)}, saved)
    with pytest.raises(UserError, match="not a student file of rnascl"):
        load_student(saved)
    rewrite(saved, header={"kind": "teacher"})
    with pytest.raises(UserError, match="not a student file of rnascl"):
        load_student(saved)


@pytest.mark.parametrize("text", ["not JSON", "[1, 2]", "[" * 100_000])
def test_a_header_that_is_no_object(saved: Path, text: str) -> None:
    save_file({"x": torch.zeros(1)}, saved, metadata={"rnascl": text})
    with pytest.raises(UserError, match="the rnascl header is not") as error:
        load_student(saved)
    assert str(saved) in one_line(error)


WRONG_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"architecture": None}, "architecture in the header"),
    "a field too many": ({"architecture": {**architecture().model_dump(), "depth": 3}}, "depth"),
    "a field too few": ({"architecture": {"space": "S3"}}, "widths"),
    "space": ({"architecture": architecture(space="S4").model_dump()}, "unknown search space 'S4'"),
    "count": ({"architecture": architecture(widths=[16] * 8).model_dump()}, "8 numbers, space S3 has 9 blocks"),
    "width": ({"architecture": architecture(widths=[14, *WIDTHS[1:]]).model_dump()}, r"widths\[0\] is 14"),
    "cost": ({"architecture": architecture(params=7).model_dump()}, "derive it again"),
    "mean": ({"mean": [0.5, 0.5]}, "'mean' in the header must be three numbers"),
    "std": ({"std": [0.5, 0.5, 0.0]}, "'std' in the header must be three numbers"),
    "text": ({"mean": ["a", "b", "c"]}, "'mean' in the header"),
}


@pytest.mark.parametrize("case", WRONG_HEADERS)
def test_a_wrong_header(saved: Path, case: str) -> None:
    header, message = WRONG_HEADERS[case]
    rewrite(saved, header=header)
    with pytest.raises(UserError, match=message) as error:
        load_student(saved)
    assert str(saved) in one_line(error)


def test_nan_in_the_header(saved: Path) -> None:
    header = {
        "kind": "student",
        "architecture": architecture().model_dump(),
        "mean": [float("nan")] * 3,
        "std": [1] * 3,
    }
    save_file(load_file(saved), saved, metadata={"rnascl": json.dumps(header)})
    with pytest.raises(UserError, match="the rnascl header is not JSON"):
        load_student(saved)


@pytest.mark.parametrize(
    "tensors",
    [{"classifier__bias": None}, {"extra__weight": torch.zeros(2)}, {"classifier__weight": torch.zeros(4, 60)}],
    ids=["missing", "extra", "other shape"],
)
def test_tensors_that_do_not_fit(saved: Path, tensors: dict[str, Any]) -> None:
    rewrite(saved, **tensors)
    with pytest.raises(UserError, match="tensors do not fit the architecture in the header") as error:
        load_student(saved)
    message = one_line(error)
    assert str(saved) in message
    assert next(iter(tensors)).replace("__", ".") in message


def test_widths_of_another_student(saved: Path) -> None:
    widths = [16, *WIDTHS[1:]]
    cost = network_cost(SPACES["S3"], widths, num_classes=4)
    other = architecture(widths=widths, params=cost.params, macs=cost.macs)
    rewrite(saved, header={"architecture": other.model_dump()})
    with pytest.raises(UserError, match="tensors do not fit"):
        load_student(saved)


def test_a_good_architecture_passes() -> None:
    assert checked_architecture(architecture(), where="here") == architecture()


def test_a_student_of_nans_is_never_written(student: Student, tmp_path: Path) -> None:
    with torch.no_grad():
        student.classifier.bias[1] = float("nan")
    with pytest.raises(RunError, match=r"classifier\.bias holds NaN or infinity"):
        save_student(tmp_path / "student.safetensors", student, architecture())
    assert list(tmp_path.iterdir()) == []
