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
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError, expand_user
from rnascl_cli.core.random_streams import generator
from rnascl_cli.data.builtin import cifar, digits
from rnascl_cli.data.folder import folder, imagenet, imagenet100
from rnascl_cli.data.images import ImageSet
from rnascl_cli.data.source import Source, Split
from rnascl_cli.data.statistics import ChannelStatistics, Triple, channel_statistics
from rnascl_cli.data.stream import Feeder, StreamedSet, default_workers
from rnascl_cli.data.subset import balanced_subset, holdout_mask
from rnascl_cli.recipes.data_spec import no_training_images, parse_spec
from rnascl_cli.recipes.settings import DataSettings

KEPT_BYTES = 2 * 2**30
"""Up to here a split of image files is decoded once and kept in memory; a larger one is streamed."""


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
    def mean(self) -> Triple:
        """Mean of each channel over the training images (holdout excluded), in [0, 1], four decimals."""
        return self._statistics.mean

    @property
    def std(self) -> Triple:
        """Standard deviation of each channel over the training images, four decimals, at least 0.0001."""
        return self._statistics.std

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, labels and images of the training, held-out and test sets.

        Of a set in memory these are its pixels, of a streamed one digests of its files' bytes: kept one way and
        the other, the same images have two fingerprints.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for images in (self.train, self.holdout, self.test):
            for part in images.contents():
                digest.update(part)
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
    def _statistics(self) -> ChannelStatistics:
        if not len(self.train):
            raise UserError(f"--data {self.spec}: has no training images to take mean and std from")
        return channel_statistics(self.train)


def load_data(settings: DataSettings, *, seed: int, training: bool = True) -> Data:
    """Load the images that the settings describe.

    Limits and the held-out share are drawn class by class from the seed. Only the images wanted are decoded:
    at once, or batch by batch where they are many.

    Args:
        settings: Spec, limits, the held-out share, and how images are kept.
        seed: The run's seed.
        training: Whether training images are needed. With False they are not loaded, and a set may do
            without: a test-only folder can be attacked.

    Returns:
        Training, held-out and test images; the first two empty where ``training`` is False.

    Raises:
        UserError: An unknown spec, a missing or malformed folder, an image that does not decode (named), a
            set that does not fit in memory, or no training images where they are needed.
    """
    with distributed.local_rank_zero_first():
        return _load_data(settings, seed=seed, training=training)


def _load_data(settings: DataSettings, *, seed: int, training: bool) -> Data:
    source = _source(settings.spec)
    subset = functools.partial(_subset, settings=settings, seed=seed, feeder=_feeder(settings))
    test = subset(source.test, settings.limit_test, name="test")
    if not training:
        train = holdout = test.select(torch.arange(0))
    elif source.train is None:
        raise no_training_images(settings.spec)
    else:
        whole = subset(source.train, settings.limit_train, name="train")
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
        input_size=test.side,
        limit_train=settings.limit_train,
        limit_test=settings.limit_test,
    )


def _subset(
    split: Split,
    limit: int | None,
    *,
    name: Literal["train", "test"],
    settings: DataSettings,
    seed: int,
    feeder: Feeder,
) -> ImageSet:
    size = len(split.labels_N) if limit is None else limit
    index_N = balanced_subset(split.labels_N, size, generator(seed, "data", name))
    labels_N = split.labels_N[index_N]
    if _streams(split, len(index_N), settings):
        assert split.files is not None
        return StreamedSet(split.files, labels_N, index_N, feeder=feeder)
    return ImageSet(split.read(index_N), labels_N, index_N)


def _streams(split: Split, count: int, settings: DataSettings) -> bool:
    """Tell whether so many images of a split stay in their files."""
    if split.files is None:
        if settings.keep == "stream":
            raise UserError(f"data.keep: 'stream' is for image folders; {settings.spec} is small, use 'auto'")
        return False
    if settings.keep == "auto":
        return count * 3 * split.files.shape.side**2 > KEPT_BYTES
    return settings.keep == "stream"


def _feeder(settings: DataSettings) -> Feeder:
    return Feeder(default_workers() if settings.workers is None else settings.workers)


def _source(spec: str) -> Source:
    name, folder_text = parse_spec(spec)
    return SOURCES[name](folder_text)


def _in_folder(read: Callable[[Path], Source]) -> Callable[[str], Source]:
    return lambda folder_text: read(expand_user(folder_text, option="--data"))


SOURCES: dict[str, Callable[[str], Source]] = {
    "digits": lambda _: digits(),
    "cifar10": functools.partial(cifar, "cifar10"),
    "cifar100": functools.partial(cifar, "cifar100"),
    "folder": _in_folder(folder),
    "imagenet": _in_folder(imagenet),
    "imagenet100": _in_folder(imagenet100),
}
