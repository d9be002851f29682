"""Folders of small made-up photographs: JPEG files of several shapes, each class with its own colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ((90, 70), (70, 90), (120, 66), (80, 80))  # width, height


def write_photograph(path: Path, *, size: tuple[int, int], seed: int, hue: int = 0) -> None:
    """Write smooth random colours, lighter in one channel than in the others."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (7, 7, 3), dtype=np.uint8)
    coarse[:, :, hue % 3] += 55
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def write_photographs(
    root: Path,
    classes: Sequence[str],
    *,
    train: int,
    test: int,
    test_name: str = "val",
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> Path:
    """Write ``train/`` and ``val/`` with so many photographs a class; returns the folder."""
    for split, count in (("train", train), (test_name, test)):
        for number, name in enumerate(classes):
            for index in range(count):
                seed = 1000 * number + 2 * index + (split != "train")
                size = shapes[(number + index) % len(shapes)]
                write_photograph(root / split / name / f"{index:03d}.JPEG", size=size, seed=seed, hue=number)
    return root
