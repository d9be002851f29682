"""What every test may use: an isolated cache, one torch thread, a tiny teacher and a tiny image folder."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rnascl_cli.artifacts.documents import DataReference, Provenance, TeacherReference
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import write_teacher
from tests.command import done

TINY_CLASSES = ("ant", "bee", "cat")
TINY_TRAIN, TINY_TEST = 8, 4  # images a class
PARADIGMS = ("rnas-cl", "icc", "kl", "standard")
FAST = ("--batch-size", 16, "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # for what runs outside any one test
        patch.setenv("RNASCL_CACHE", str(cache_folder))
        yield


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's own teacher and image cache, empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setenv("RNASCL_CACHE", str(cache_folder))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("RNASCL_DEBUG", raising=False)
    torch.manual_seed(0)  # a test that passes, passes again


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an untrained r8 for ten classes."""
    return _teacher_file(tmp_path_factory.mktemp("teacher") / "r8.safetensors", num_classes=10, seed=1)


@pytest.fixture(scope="session")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another untrained r8 for ten classes: same layers, another sha256."""
    return _teacher_file(tmp_path_factory.mktemp("teacher") / "other.safetensors", num_classes=10, seed=2)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of three classes, 32x32 PNG, 24 training and 12 test images."""
    root = tmp_path_factory.mktemp("folder") / "tiny"
    pixels = np.random.default_rng(0)
    for split, count in (("train", TINY_TRAIN), ("test", TINY_TEST)):
        for name in TINY_CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def small() -> list[object]:
    """Options that make a stage a matter of a second: forty digits, CPU, float32."""
    return ["--limit-train", 40, "--limit-test", 20, *FAST]


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, small: list[object]) -> dict[str, Path]:
    """A two-epoch search of each paradigm, by paradigm."""
    root = tmp_path_factory.mktemp("searched")
    for paradigm in PARADIGMS:
        teacher = [] if paradigm == "standard" else ["--teacher", tiny_teacher]
        common = ["--space", "S3", "--data", "digits", "--epochs", 2, "--seed", 3, *small]
        done("search", *common, *teacher, "--paradigm", paradigm, "--out", root / paradigm)
    return {paradigm: root / paradigm for paradigm in PARADIGMS}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, searched: dict[str, Path]) -> dict[str, Path]:
    """A two-epoch training of each paradigm's network, by paradigm."""
    root = tmp_path_factory.mktemp("trained")
    for paradigm, source in searched.items():
        done("train", source, "--epochs", 2, *FAST, "--out", root / paradigm)
    return {paradigm: root / paradigm for paradigm in PARADIGMS}


@pytest.fixture
def provenance() -> Provenance:
    """A provenance as a stage would write it."""
    return Provenance(
        tool_version="0.1.0",
        created="2030-01-01T00:00:00+00:00",
        command=["rnascl", "search"],
        recipe={"space": "S3"},
        seed=3,
        data=DataReference(
            spec="digits",
            fingerprint="a" * 64,
            limit_train=40,
            limit_test=20,
            classes=[str(digit) for digit in range(10)],
            train_images=36,
            holdout_images=4,
            test_images=20,
        ),
        teacher=TeacherReference(source="r8", path="/t/r8.safetensors", architecture="r8", sha256="b" * 64),
        inputs={"search.json": "c" * 64},
        device="cpu (test)",
        precision="fp32",
        torch_version="2.0",
        commit=None,
    )


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator().manual_seed(0)


def _teacher_file(path: Path, *, num_classes: int, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = build_teacher("r8", num_classes=num_classes)
    write_teacher(path, teacher, architecture="r8", num_classes=num_classes, about={"source": "a test"})
    return path
