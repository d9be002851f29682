"""Atomic writes and checked weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rnascl_cli.artifacts.store import (
    read_weights,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_text,
    write_weights,
    write_with,
)
from rnascl_cli.core.errors import UserError

pytestmark = pytest.mark.unit


def test_sha256_of_abc(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "abc") == known


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [item.name for item in path.parent.iterdir()] == ["c.txt"]


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_with(path, half)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_a_failing_first_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(tmp_path / "a.txt", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def crash(self: Path, target: Any) -> Path:
        raise OSError("crashed")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="crashed"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_the_data_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_text(tmp_path / "a", "x")
    assert order == ["fsync", "rename", "fsync"]


def test_weights_round_trip(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(2, 3),
        "strided": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "part": torch.arange(10)[::2],
        "scalar": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    path = tmp_path / "w.safetensors"
    sha256 = write_weights(path, tensors, {"kind": "student", "mean": [0.5]})
    found, header, metadata = read_weights(path)
    assert header == {"kind": "student", "mean": [0.5]}
    assert set(metadata) == {"rnascl"}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_of_a_parameter_that_takes_gradients(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", {"a": torch.ones(2, requires_grad=True)}, {})
    assert not read_weights(tmp_path / "w")[0]["a"].requires_grad


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2)}
    one = write_weights(tmp_path / "1", tensors, {"x": 1, "y": 2})
    assert one == write_weights(tmp_path / "2", dict(reversed(tensors.items())), {"y": 2, "x": 1})


def test_somebody_elses_file_has_no_header(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w", metadata={"format": "pt"})
    assert read_weights(tmp_path / "w")[1:] == (None, {"format": "pt"})
    save_file({"a": torch.ones(1)}, tmp_path / "v")
    assert read_weights(tmp_path / "v")[1:] == (None, {})


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\xff" * 8, b"\x08" + b"\0" * 7 + b"notjson!", b"PK\x03\x04" + b"\0" * 100]
)
def test_damaged_weights(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged or not a safetensors file") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_absent_weights_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            read_weights(path)
