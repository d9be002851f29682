"""``--data SPEC`` to images: which set, which subset, what is held out.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rnascl_cli.artifacts.documents import DataReference
from rnascl_cli.data import builtin
from rnascl_cli.data.folder import folder, imagenet100
from rnascl_cli.data.images import ImageSet
from rnascl_cli.data.source import Source, Split
from rnascl_cli.data.subset import balanced_subset, holdout_mask
from rnascl_cli.engine.seeds import generator
from rnascl_cli.errors import UserError, nearest
from rnascl_cli.recipes import DataSettings

STATISTICS_CHUNK = 512


@dataclass(frozen=True, eq=False)
class Data:
    """The images of a run.

    Attributes:
        spec: The ``--data`` value.
        classes: Class names in the order of their numbers.
        train: Images to train on.
        holdout: Training images set aside for choosing; never trained on.
        test: Test images; they choose nothing.
        input_size: Height and width, pixels.
        limit_train: How many training images were asked for (holdout included); None for all.
        limit_test: How many test images were asked for; None for all.
    """

    spec: str
    classes: list[str]
    train: ImageSet
    holdout: ImageSet
    test: ImageSet
    input_size: int
    limit_train: int | None
    limit_test: int | None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of each channel over the training images (holdout excluded), in [0, 1], four decimals."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each channel over the training images, four decimals, at least 0.0001."""
        return self._statistics[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, pixels and labels of the training, held-out and test images."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for images in (self.train, self.holdout, self.test):
            digest.update(repr(tuple(images.images_NCHW.shape)).encode())
            for tensor in (images.labels_N, images.images_NCHW):
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def reference(self) -> DataReference:
        """Return the record of these images that artifacts carry."""
        return DataReference(
            spec=self.spec,
            fingerprint=self.fingerprint,
            limit_train=self.limit_train,
            limit_test=self.limit_test,
            classes=self.classes,
            train_images=len(self.train),
            holdout_images=len(self.holdout),
            test_images=len(self.test),
        )

    @functools.cached_property
    def _statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        if not len(self.train):
            raise UserError(f"--data {self.spec}: has no training images to take mean and std from")
        total_C, squares_C = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(self.train), STATISTICS_CHUNK):
            # Sums along a row of bytes and of their squares are below 2^24 up to 258 pixels, so float32 is exact.
            chunk_NCHW = self.train.images_NCHW[start : start + STATISTICS_CHUNK].cpu().float()
            total_C += chunk_NCHW.sum(dim=3).double().sum(dim=(0, 2))
            squares_C += chunk_NCHW.square_().sum(dim=3).double().sum(dim=(0, 2))
        count = self.train.images_NCHW.numel() // 3
        mean_C = total_C / count
        std_C = (squares_C / count - mean_C**2).clamp(min=0).sqrt()
        r, g, b = ([round(float(value) / 255, 4) for value in pair] for pair in zip(mean_C, std_C, strict=True))
        return (r[0], g[0], b[0]), (max(r[1], 1e-4), max(g[1], 1e-4), max(b[1], 1e-4))


def load_data(settings: DataSettings, *, seed: int, training: bool = True) -> Data:
    """Load the images that the settings describe.

    Limits and the held-out share are drawn class by class from the seed. Only the images wanted are decoded.

    Args:
        settings: Spec, limits and the held-out share.
        seed: The run's seed.
        training: Whether training images are needed. With False they are not loaded, and a set may do
            without: a test-only folder can be attacked.

    Returns:
        Training, held-out and test images; the first two empty where ``training`` is False.

    Raises:
        UserError: An unknown spec, a missing or malformed folder, an image that does not decode (named), a
            set that does not fit in memory, or no training images where they are needed.
    """
    source = _source(settings.spec)
    test = _subset(source.test, settings.limit_test, seed, "test")
    if not training:
        train = holdout = test.select(torch.arange(0))
    elif source.train is None:
        raise UserError(f"--data {settings.spec}: has no train/ folder, only test images; nothing to train on")
    else:
        whole = _subset(source.train, settings.limit_train, seed, "train")
        held_N = holdout_mask(whole.labels_N, settings.holdout, generator(seed, "data", "holdout"))
        holdout = whole.select(held_N.nonzero().squeeze(1))
        # Without a holdout the training images stay mapped from the cache file, uncopied.
        train = whole.select((~held_N).nonzero().squeeze(1)) if len(holdout) else whole
    return Data(
        settings.spec,
        source.classes,
        train,
        holdout,
        test,
        input_size=test.images_NCHW.shape[-1],
        limit_train=settings.limit_train,
        limit_test=settings.limit_test,
    )


def _subset(split: Split, limit: int | None, seed: int, name: Literal["train", "test"]) -> ImageSet:
    size = len(split.labels_N) if limit is None else limit
    index_N = balanced_subset(split.labels_N, size, generator(seed, "data", name))
    return ImageSet(split.read(index_N), split.labels_N[index_N], index_N)


def _source(spec: str) -> Source:
    name, _, folder_text = spec.partition(":")
    if name not in SOURCES:
        raise UserError(f"--data {spec}: unknown data set '{name}'{nearest(name, SOURCES)}")
    return SOURCES[name](folder_text)


def _digits(folder_text: str) -> Source:
    if folder_text:
        raise UserError(f"--data digits:{folder_text}: digits come with rnascl and take no folder; write --data digits")
    return builtin.digits()


def _needs_folder(name: str, read: Callable[[Path], Source]) -> Callable[[str], Source]:
    def source(folder_text: str) -> Source:
        if not folder_text:
            raise UserError(f"--data {name}: a folder is needed; write --data {name}:DIR")
        return read(Path(folder_text).expanduser())

    return source


SOURCES: dict[str, Callable[[str], Source]] = {
    "digits": _digits,
    "cifar10": functools.partial(builtin.cifar, "cifar10"),
    "cifar100": functools.partial(builtin.cifar, "cifar100"),
    "folder": _needs_folder("folder", folder),
    "imagenet100": _needs_folder("imagenet100", imagenet100),
}
