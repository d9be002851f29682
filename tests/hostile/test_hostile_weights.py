"""Weights that are none: for every command that reads a network, and for load()."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import rnascl_cli
from rnascl_cli.artifacts.store import HEADER_KEY, SEAL, SEAL_OF, read_weights, write_weights
from rnascl_cli.cli import app
from rnascl_cli.core.errors import UserError
from rnascl_cli.loading import resolve_model
from rnascl_cli.spaces import SPACES, network_cost
from tests.command import done
from tests.conftest import FAST
from tests.hostile.conftest import Untouched

pytestmark = pytest.mark.pipeline

DIGITS = ("--data", "digits", "--limit-train", 40, "--limit-test", 20, *FAST, "--out", "new")
STUDENT_READERS: list[tuple[object, ...]] = [
    ("attack", "train", "--out", "new"),
    ("attack", "train/student.safetensors", *DIGITS[:2], "--out", "new"),
    ("adv-finetune", "train", *FAST, "--out", "new"),
]


def teacher_readers(file: str) -> list[tuple[object, ...]]:
    """Every command that reads the teacher in ``file``."""
    return [
        ("teacher", "show", file),
        ("teacher", "import", file, "--out", "new.safetensors"),
        ("attack", file, "--data", "digits", "--out", "new"),
        ("search", "--space", "S3", "--teacher", file, *DIGITS),
        ("train", "search", "--teacher", file, "--paradigm", "kl", *FAST, "--out", "new"),
        ("adv-finetune", "train", "--teacher", file, "--paradigm", "kl", *FAST, "--out", "new"),
    ]


def container(header: Any, *, claim: int | None = None, size: int = 0) -> bytes:
    """A safetensors file of that header, which may claim another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + b"\0" * size


CONTAINERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "2^60": (lambda: container({}, claim=2**60), f"its header claims {2**60} bytes"),
    "2^63 and more": (lambda: container({}, claim=2**64 - 1), "its header claims"),
    "empty": (lambda: b"", "cut short"),
    "tensors by the thousand": (
        lambda: container({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10**5)}),
        "larger than any network rnascl knows (its header has",
    ),
    "shape and bytes differ": (
        lambda: container({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}, size=4),
        "damaged or not a safetensors file",
    ),
    "no numbers in it": (
        lambda: container({"linear.weight": {"dtype": "F32", "shape": [10**15, 0], "data_offsets": [0, 0]}}),
        "classes",
    ),
    "deep header": (lambda: container({"__metadata__": {HEADER_KEY: "[" * 100_000}}), "the rnascl header is not JSON"),
    "header of numbers": (lambda: container({"__metadata__": {HEADER_KEY: "[1]"}}), "is not a JSON object"),
    "kind": (lambda: container({"__metadata__": {HEADER_KEY: '{"kind": ["\\u001b[31m"]}'}}), ""),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_every_reader_refuses_a_container(world: Path, untouched: Untouched, case: str) -> None:
    make, message = CONTAINERS[case]
    data = make()
    (world / "other.safetensors").write_bytes(data)
    for command in teacher_readers("other.safetensors"):
        line = untouched(*command)
        assert message in line
        assert "other.safetensors: " in line
    (world / "train" / "student.safetensors").write_bytes(data)
    for command in STUDENT_READERS[:2]:
        line = untouched(*command)
        assert message in line
        assert "student.safetensors: " in line
    assert "student.safetensors: is not the file that train.json was written with" in untouched(*STUDENT_READERS[2])
    for source in ("train", "other.safetensors"):
        with pytest.raises(UserError):
            rnascl_cli.load(source)


class Evil:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def zipped(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    """What torch.save wrote before 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def unpacking(pickled: bytes, compression: int) -> bytes:
    """A checkpoint whose description of the tensors is ``pickled``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zipped({"a": torch.zeros(1)}))) as good, zipfile.ZipFile(buffer, "w") as made:
        for entry in good.infolist():
            data = pickled if entry.filename.endswith("data.pkl") else good.read(entry)
            made.writestr(entry.filename, data, compress_type=compression)
    return buffer.getvalue()


def state() -> dict[str, torch.Tensor]:
    """A whole r8."""
    from rnascl_cli.teachers.architectures import build_teacher, network_of

    return dict(network_of(build_teacher("r8", num_classes=10)).state_dict())


def floats(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """An r8 whose matrices and kernels are changed."""
    return {name: change(tensor) if tensor.ndim > 1 else tensor for name, tensor in state().items()}


CHECKPOINTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "code in a zip": (lambda mark: zipped({"state_dict": state(), "args": Evil(mark)}), "runs no code"),
    "code in the old format": (lambda mark: legacy({"state_dict": state(), "args": Evil(mark)}), "runs no code"),
    "code alone": (lambda mark: pickle.dumps(Evil(mark)), "public.pt: "),
    "zip bomb": (
        lambda _: unpacking(b"\x80\x02" + b"]0" * 10**8 + b"N.", zipfile.ZIP_DEFLATED),
        "refused as an archive bomb",
    ),
    "a million lists": (
        lambda _: unpacking(b"\x80\x02" + b"]" * 2_000_000 + b".", zipfile.ZIP_STORED),
        "describes more objects than any network has",
    ),
    "a million lists in the old format": (
        lambda _: b"\x80\x02" + b"]" * 2_000_000 + b".",
        "describes more objects than any network has",
    ),
    "no zip inside": (lambda _: b"PK\x03\x04" + b"\0" * 100, "damaged or not a checkpoint"),
    "without numbers": (lambda _: zipped({k: v.to("meta") for k, v in state().items()}), "no plain tensor"),
    "sparse": (lambda _: zipped(floats(torch.Tensor.to_sparse)), "no plain tensor"),
    "complex": (lambda _: zipped(floats(lambda tensor: tensor.to(torch.complex64))), "no plain tensor"),
    "integers": (lambda _: zipped(floats(lambda tensor: tensor.to(torch.int8))), "no plain tensor"),
    "a class too few": (
        lambda _: zipped(state() | {"linear.weight": torch.zeros(0, 128), "linear.bias": torch.zeros(0)}),
        "has 0 classes",
    ),
    "classes by the million": (
        lambda _: zipped(state() | {"linear.weight": torch.zeros(1).expand(10**8, 128)}),
        "has 100000000 classes",
    ),
    "escapes": (lambda _: zipped(state() | {"\x1b[31m\n": torch.zeros(1)}), "\\x1b[31m"),
    "a long name": (lambda _: zipped(state() | {"x" * 10**6: torch.zeros(1)}), "unexplained (xxx"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore")  # torch of sparse tensors
def test_every_reader_refuses_a_checkpoint(world: Path, untouched: Untouched, case: str) -> None:
    make, message = CHECKPOINTS[case]
    (world / "public.pt").write_bytes(make(world / "mark"))
    readers = teacher_readers("public.pt")
    for command in readers if "code" in case else readers[1:3]:
        line = untouched(*command)
        assert message in line
        assert "public.pt: " in line
    with pytest.raises(UserError):
        rnascl_cli.load("public.pt")
    assert not (world / "mark").exists()


def test_a_checkpoint_to_resume_from_runs_nothing(world: Path, untouched: Untouched) -> None:
    command = ("train", "search", "--paradigm", "standard", "--epochs", 1, *FAST, "--out", "run")
    done(*command)
    for content in (
        zipped({"identity": Evil(world / "mark")}),
        legacy(Evil(world / "mark")),
        b"\x80\x02" + b"]" * 10**6,
    ):
        for file in (world / "run").glob("checkpoint*"):
            file.write_bytes(content)
        assert "checkpoint" in untouched(*command, "--resume")
        assert not (world / "mark").exists()


def test_memory_does_not_follow_what_files_claim(world: Path) -> None:
    """All of them in one process: its largest size is that of torch and a small network."""
    sparse = world / "sparse.safetensors"
    header = container({"a": {"dtype": "F32", "shape": [25 * 10**9], "data_offsets": [0, 10**11]}})
    sparse.write_bytes(header)
    os.truncate(sparse, len(header) + 10**11)  # a hole: nothing on disk
    for name in ("2^60", "tensors by the thousand", "no numbers in it"):
        (world / f"{name}.safetensors").write_bytes(CONTAINERS[name][0]())
    for name in ("zip bomb", "a million lists in the old format", "classes by the million"):
        (world / f"{name}.pt").write_bytes(CHECKPOINTS[name][0](world))
    program = """
import resource, sys
from pathlib import Path
from rnascl_cli.core.errors import UserError
from rnascl_cli.loading import resolve_model
resolve_model("r8.safetensors")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted([*Path(".").glob("[!r]*.safetensors"), *Path(".").glob("*.pt")]):
    try:
        sys.exit(f"{path}: accepted {resolve_model(path)}")
    except UserError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[2])},
    )
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) < 300  # MiB; mostly the architectures that are tried on for size


@pytest.mark.parametrize("file", ["train/student.safetensors", "r8.safetensors"])
def test_any_flipped_bit_is_noticed(good_world: Path, tmp_path: Path, file: str) -> None:
    good = (good_world / file).read_bytes()
    head = 8 + int.from_bytes(good[:8], "little")
    path = tmp_path / "flipped.safetensors"

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def flip(draw: Random) -> None:
        data = bytearray(good)
        # Half of them in the small part that is not numbers.
        data[draw.randrange(head if draw.random() < 0.5 else len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"flipped\.safetensors: "):
            read_weights(path)

    flip()


@pytest.mark.parametrize("key", [HEADER_KEY, SEAL, SEAL_OF])
def test_the_seal_cannot_be_lost_by_a_flipped_bit(tmp_path: Path, key: str) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.ones(2)}, {"kind": "student"})
    good = path.read_bytes()
    for old in (f'"{key}"', f'\\"{key}\\"'):
        at = good.find(old.encode())
        if at >= 0:
            path.write_bytes(good[: at + 2] + b"x" + good[at + 3 :])
            with pytest.raises(UserError, match="has changed since it was written"):
                read_weights(path)
            return
    pytest.fail(f"no {key} in the file")


def test_a_file_from_before_there_were_seals_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "w", metadata={HEADER_KEY: '{"kind": "teacher"}'})
    assert read_weights(tmp_path / "w")[1] == {"kind": "teacher"}


def flipped(path: Path) -> None:
    """Flip a bit among the numbers, and seal the file again: only a hash kept elsewhere can tell."""
    tensors, header, _ = read_weights(path)
    assert header is not None
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] += 1e-3
    write_weights(path, tensors, header)


@pytest.mark.parametrize("run", ["train", "fine"])
def test_the_recorded_sha256_catches_another_student(world: Path, untouched: Untouched, run: str) -> None:
    flipped(world / run / "student.safetensors")
    document = "train.json" if run == "train" else "adv-finetune.json"
    for command in (("attack", run, "--out", "new"), ("adv-finetune", run, *FAST, "--out", "new")):
        line = untouched(*command)
        assert f"{run}/student.safetensors: is not the file that {document} was written with" in line
        assert "expected " in line
        assert "found " in line
    with pytest.raises(UserError, match="is not the file that"):
        rnascl_cli.load(run)
    outcome = done("report", run, "--out", "new")
    assert f"student.safetensors has changed since {document} was written" in " ".join(outcome.err.split())
    assert "has changed since" in (world / "new" / "report.md").read_text()


def test_a_derived_document_that_is_not_the_trainings(world: Path, untouched: Untouched) -> None:
    path = world / "train" / "derived.json"
    raw = json.loads(path.read_text())
    raw["tutors"]["tutor"][0] ^= 1
    path.write_text(json.dumps(raw))
    line = untouched("adv-finetune", "train", *FAST, "--out", "new")
    assert "derived.json: is not the file that train.json was written with" in line


@pytest.mark.parametrize("paradigm", ["rnas-cl", "icc", "kl"])
def test_another_teacher_under_the_recorded_name(world: Path, untouched: Untouched, paradigm: str) -> None:
    raw = json.loads((world / "search" / "search.json").read_text())
    raw["provenance"]["teacher"]["path"] = str((world / "r8.safetensors").resolve())
    (world / "search" / "search.json").write_text(json.dumps(raw))
    flipped(world / "r8.safetensors")
    line = untouched("train", "search", "--paradigm", paradigm, *FAST, "--out", "new")
    assert "r8.safetensors: " in line
    assert "sha256" in line


@pytest.mark.parametrize("classes", [10**7, 10**12])
def test_a_student_of_millions_of_classes(world: Path, untouched: Untouched, classes: int) -> None:
    path = world / "train" / "student.safetensors"
    tensors, header, _ = read_weights(path)
    assert header is not None
    cost = network_cost(SPACES["S3"], header["architecture"]["widths"], num_classes=classes, input_size=32)
    header["architecture"] |= {"num_classes": classes, "params": cost.params, "macs": cost.macs}
    write_weights(path, tensors, header)
    assert "architecture in the header: num_classes" in untouched("attack", "train", "--out", "new")


def test_a_student_of_nans(world: Path) -> None:
    path = world / "train" / "student.safetensors"
    tensors, header, _ = read_weights(path)
    assert header is not None
    tensors["classifier.bias"][0] = float("nan")
    write_weights(path, tensors, header)
    with pytest.raises(UserError, match=r"classifier\.bias holds NaN or infinity"):
        resolve_model(path)


def test_another_teacher_as_student(world: Path, untouched: Untouched) -> None:
    shutil.copy(world / "r8.safetensors", world / "train" / "student.safetensors")
    assert "student.safetensors: " in untouched("adv-finetune", "train", *FAST, "--out", "new")
    assert load_file(world / "r8.safetensors")
