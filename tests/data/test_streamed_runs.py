"""Whole runs on images that stay in their files: the bytes of their results, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.cli import app
from tests.command import done, refused
from tests.conftest import FAST
from tests.photographs import write_photographs

CLASSES = [str(number) for number in range(10)]  # as many as the tiny teacher's
TIMINGS = ("seconds", "images_per_second", "peak_memory_bytes")
PLACES = ("provenance", "model")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of small JPEG squares, three training images and a test image each."""
    return write_photographs(tmp_path_factory.mktemp("squares"), CLASSES, train=3, test=1, shapes=[(32, 32)])


def streamed(root: Path, workers: int) -> list[object]:
    settings = {"keep": "stream", "workers": workers, "augment": "resized-crop-flip", "holdout": 0.3}
    pairs = [f"data.{key}={value}" for key, value in settings.items()]
    return ["--data", f"folder:{root}", *(word for pair in pairs for word in ("--set", pair)), *FAST]


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_timings(item) for key, item in value.items() if key not in TIMINGS + PLACES}
    return [without_timings(item) for item in value] if isinstance(value, list) else value


def chain(squares: Path, out: Path, *, workers: int, teacher: Path) -> dict[str, Any]:
    """Search, train, fine-tune and attack; return what they left that does not depend on clock and place."""
    options = streamed(squares, workers)
    done("search", "--space", "S3", "--teacher", teacher, "--epochs", 2, *options, "--out", out / "search")
    done("train", out / "search", "--epochs", 2, *options, "--out", out / "train")
    fine = ["--epochs", 1, "--set", "robust.steps=1"]
    done("adv-finetune", out / "train", *fine, *options, "--out", out / "fine")
    done("attack", out / "fine", "--attack", "fgsm,pgd2", *options)
    found: dict[str, Any] = {
        str(path.relative_to(out)): without_timings(json.loads(path.read_text()))
        for path in sorted(out.rglob("*.json"))
    }
    for path in sorted(out.rglob("metrics.jsonl")):
        found[str(path.relative_to(out))] = [
            without_timings(json.loads(line)) for line in path.read_text().splitlines()
        ]
    for path in sorted(out.rglob("*.safetensors")):
        found[str(path.relative_to(out))] = path.read_bytes()
    return found


@pytest.mark.pipeline
def test_same_command_and_seed_same_bytes_whatever_the_number_of_workers(
    squares: Path, tmp_path: Path, tiny_teacher: Path
) -> None:
    alone = chain(squares, tmp_path / "0", workers=0, teacher=tiny_teacher)
    helped = chain(squares, tmp_path / "2", workers=2, teacher=tiny_teacher)
    assert len(alone) >= 10
    assert alone.keys() == helped.keys()
    assert [name for name in alone if alone[name] != helped[name]] == []


@pytest.mark.pipeline
def test_a_later_stage_keeps_images_as_the_earlier_one_did(squares: Path, tmp_path: Path) -> None:
    options = streamed(squares, 0)
    done("search", "--space", "S3", "--paradigm", "standard", "--epochs", 1, *options, "--out", tmp_path / "search")
    done("train", tmp_path / "search", "--epochs", 1, *FAST, "--out", tmp_path / "train")
    found = [
        json.loads((tmp_path / name).read_text())["provenance"] for name in ("search/search.json", "train/train.json")
    ]
    assert found[1]["recipe"]["data"]["keep"] == "stream"
    assert found[0]["data"] == found[1]["data"]


@pytest.mark.pipeline
def test_a_corrupt_image_ends_the_run_with_its_name(squares: Path, tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "set", ["a", "b"], train=6, test=1, shapes=[(32, 32)])
    victim = root / "train" / "b" / "003.JPEG"
    victim.write_bytes(victim.read_bytes()[:200])
    options = ["--space", "S3", "--paradigm", "standard", "--epochs", 1, *streamed(root, 2), "--out", tmp_path / "run"]
    assert f"{victim}: does not decode" in refused("search", *options)


@pytest.mark.slow
def test_ctrl_c_ends_workers_too(squares: Path, tmp_path: Path) -> None:
    options = ["--space", "S3", "--paradigm", "standard", "--epochs", "100000", *streamed(squares, 2)]
    # Where tests run in the background, children start deaf to SIGINT.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{hear}; from rnascl_cli.cli.app import main; main()"
    command = [sys.executable, "-c", program, "search", *map(str, options), "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[2])},
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            while b"epoch 2/" not in line:
                assert line, "the run ended by itself"
                line = process.stderr.readline()
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does: to the workers as well
            _, rest = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert b"Traceback" not in rest
    assert b"rnascl: search: stopped at" in rest
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a worker is left")
