"""Sets of images kept as uint8 tensors, and batches of any set as floats in [0, 1].

What is said of a set here holds for one whose images stay in their files, too: see :mod:`rnascl_cli.data.stream`.

Shape suffixes: N images of a set, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnascl_cli.core import distributed
from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.data.augment import Augment, Unchanged
from rnascl_cli.data.batch_sharding import BatchShard, Parts, undivided

Drawn = tuple[Tensor, Tensor]
"""Which images of a set (``rows_B``, on the CPU), and which view of each (``views_B``, as the augmentation drew it)."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels, decoded once.

    Attributes:
        images_NCHW: Pixels, uint8, RGB.
        labels_N: Class numbers, int64.
        index_N: Position of each image in the full split it was taken from, int64, ascending.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    index_N: Tensor

    def __post_init__(self) -> None:
        assert self.images_NCHW.dtype == torch.uint8
        assert len(self.images_NCHW) == len(self.labels_N) == len(self.index_N)

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def side(self) -> int:
        """Height and width, pixels."""
        return self.images_NCHW.shape[-1]

    def pixels(self, rows: Tensor | slice) -> Tensor:
        """Return the pixels at the given rows, as they are evaluated: uint8 ``(B, C, H, W)``."""
        if isinstance(rows, Tensor):
            rows = to_device_async(rows, self.images_NCHW.device)
        return self.images_NCHW[rows]

    def augmented(
        self, drawn: Iterable[Drawn], *, augment: Augment, device: torch.device
    ) -> Iterator[tuple[Drawn, Tensor]]:
        """Yield each batch that was drawn, in order, with its images ``x_BCHW`` in [0, 1] on ``device``."""
        for rows_B, views_B in drawn:
            yield (rows_B, views_B), augment.apply(as_floats(self.pixels(rows_B), device), views_B)

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield what a fingerprint of the set is made of: shape, labels and pixels."""
        yield repr(tuple(self.images_NCHW.shape)).encode()
        for tensor in (self.labels_N, self.images_NCHW):
            yield tensor.cpu().contiguous().numpy().data

    def digests(self) -> list[bytes]:
        """Return a 16-byte digest of each image's pixels: by it an image is known again in another subset."""
        return [
            hashlib.blake2b(image.numpy().data, digest_size=16).digest()
            for image in self.images_NCHW.cpu().contiguous()
        ]

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same set with its tensors on ``device``."""
        return ImageSet(self.images_NCHW.to(device), self.labels_N.to(device), self.index_N.to(device))

    def select(self, rows: Tensor) -> ImageSet:
        """Return the images at the given rows of this set."""
        rows = rows.to(self.labels_N.device)
        return ImageSet(self.images_NCHW[rows], self.labels_N[rows], self.index_N[rows])


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a set, augmented: a whole batch, or one rank's share of it.

    Attributes:
        x_BCHW: float32 in [0, 1], channels_last, on the device asked for.
        y_B: int64, there too.
        rows_B: Which images of the set these are, int64, on the CPU.
        views_B: Which view of each, as the augmentation drew it, on the CPU.
        share: Which images of the whole batch these are.
        full: Whether the whole batch is as large as a pass's batches are, of which the last may be smaller.
    """

    x_BCHW: Tensor
    y_B: Tensor
    rows_B: Tensor
    views_B: Tensor
    shard: BatchShard
    full: bool = True

    def __len__(self) -> int:
        return len(self.rows_B)


def batch_count(images: ImageSet, batch_size: int) -> int:
    """Return how many batches :func:`batches` makes of one pass over the images."""
    full, rest = divmod(len(images), batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def batches(
    images: ImageSet,
    *,
    batch_size: int,
    generator: torch.Generator,
    augment: Augment,
    device: torch.device,
    behind: int = 0,
    parts: Parts = undivided,
) -> Iterator[Batch]:
    """Yield one shuffled, augmented epoch; with several ranks, this rank's shard of every batch.

    The last batch may be smaller. If it would have a single image, that image is skipped, since batch statistics and
    the split of a batch need two.

    Args:
        images: The images; on ``device`` they need no copies.
        batch_size: Global batch size.
        generator: A CPU generator for order and augmentation: the same batches on any device.
        augment: Augmentation, on ``device``.
        device: Device of the batches.
        behind: Number of batches to skip when resuming; they are drawn, but not loaded.
        parts: Returns the sizes of the parts that a step splits a batch into.

    Yields:
        The batches.
    """
    order_N = torch.randperm(len(images), generator=generator)
    rows = [
        order_N[number * batch_size : (number + 1) * batch_size] for number in range(batch_count(images, batch_size))
    ]
    shares = [BatchShard.of_batch(len(rows_B), parts) for rows_B in rows]
    # Augmentation is drawn for the whole batch; only this rank's images are loaded.
    drawn = (
        (share.of(rows_B), share.of(augment.draw(len(rows_B), generator)))
        for rows_B, share in zip(rows, shares, strict=True)
    )
    left = itertools.islice(drawn, behind, None)
    made = images.augmented(left, augment=augment, device=device)
    for ((rows_B, views_B), x_BCHW), share in zip(made, shares[behind:], strict=True):
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        full = share.whole == min(batch_size, len(images))
        yield Batch(x_BCHW, _labels(images, rows_B, device), rows_B, views_B, share, full)


def ordered_batches(
    images: ImageSet, *, batch_size: int, device: torch.device, round_robin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images in order, without augmentation: ``x_BCHW`` in [0, 1] and ``y_B``.

    With ``round_robin``, ranks take whole batches in turn, so each batch is that of a single process.
    """
    ends = [min(start + batch_size, len(images)) for start in range(0, len(images), batch_size)]
    rows = [torch.arange(batch_size * number, end) for number, end in enumerate(ends)]
    if round_robin:
        rows = rows[distributed.rank() :: distributed.size()]
    drawn = ((rows_B, torch.zeros_like(rows_B)) for rows_B in rows)
    for (rows_B, _), x_BCHW in images.augmented(drawn, augment=Unchanged(), device=device):
        yield x_BCHW, _labels(images, rows_B, device)


def as_floats(pixels_BCHW: Tensor, device: torch.device) -> Tensor:
    """Return uint8 pixels as floats in [0, 1] on ``device``; the copy to the device is in uint8."""
    return to_device_async(pixels_BCHW, device).float() / 255


def _labels(images: ImageSet, rows_B: Tensor, device: torch.device) -> Tensor:
    return to_device_async(images.labels_N[to_device_async(rows_B, images.labels_N.device)], device)
