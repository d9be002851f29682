"""Small image folders, and a cache of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("RNASCL_CACHE", str(cache))
    return cache


def write_image(path: Path, *, side: int | tuple[int, int] = 32, seed: int = 0) -> None:
    width, height = side if isinstance(side, tuple) else (side, side)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write ``train/`` and ``test/`` with random images; returns the folder."""

    def make(
        *,
        train: dict[str, int] | None = None,
        test: dict[str, int] | None = None,
        side: int = 32,
        suffix: str = ".png",
        test_name: str = "test",
        name: str = "set",
    ) -> Path:
        root = tmp_path / name
        parts = {
            "train": {"cat": 6, "dog": 6} if train is None else train,
            test_name: {"cat": 3, "dog": 3} if test is None else test,
        }
        seed = 0
        for split, classes in parts.items():
            for class_name, count in classes.items():
                (root / split / class_name).mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    seed += 1
                    write_image(root / split / class_name / f"{number:03d}{suffix}", side=side, seed=seed)
        return root

    return make
