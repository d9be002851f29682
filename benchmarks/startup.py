"""How long the command takes to answer, and CIFAR-10 to be read from a folder whose images are cached."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import ROOT, Measurement
from benchmarks.search_step import scratch

READ = """
import sys, time
from rnascl_cli.data import load_data
from rnascl_cli.recipes.settings import DataSettings
began = time.perf_counter()
data = load_data(DataSettings(spec=f"folder:{sys.argv[1]}", holdout=0.0), seed=0)
seconds = time.perf_counter() - began
assert len(data.train) == 50_000 and len(data.test) == 10_000
print(seconds)
"""
TRAIN, TEST, CLASSES = 50_000, 10_000, 10


def startup(rounds: int) -> list[Measurement]:
    """Time `rnascl --help`, and a data set of CIFAR-10's size out of the cache."""
    return [_help(2 * rounds), _cifar(rounds)]


def _help(rounds: int) -> Measurement:
    command = [sys.executable, "-m", "rnascl_cli", "--help"]
    seconds = [_timed(lambda: _run(command)) for _ in range(rounds + 1)][1:]
    return _seconds("startup.help", "`rnascl --help`", seconds, at_most=0.3)


def _cifar(rounds: int) -> Measurement:
    with scratch() as folder:
        _write_images(folder / "images")
        read = [sys.executable, "-c", READ, str(folder / "images")]
        seconds = [float(_run(read)) for _ in range(rounds + 1)][1:]  # the first one fills the cache
    what = "60,000 images of 32x32 from a folder, decoded before: from the call to tensors"
    return _seconds("startup.cifar", what, seconds, at_most=2.0)


def _write_images(root: Path) -> None:
    """Write as many images as CIFAR-10 has, in ten folders each for train and test."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = root / "image.png"
    root.mkdir(parents=True)
    Image.fromarray(pixels).save(image)
    content = image.read_bytes()
    image.unlink()
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count // CLASSES):
                (folder / f"{index:05}.png").write_bytes(content)


def _run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _seconds(name: str, what: str, seconds: list[float], *, at_most: float) -> Measurement:
    return Measurement(
        name,
        what,
        statistics.median(seconds),
        len(seconds),
        unit="s",
        low=min(seconds),
        high=max(seconds),
        at_most=at_most,
        note="median [fastest, slowest]",
        kept=False,
    )
