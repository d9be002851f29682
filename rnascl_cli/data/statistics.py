"""Mean and standard deviation of the pixels of a set.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from rnascl_cli.artifacts.store import write_text
from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.console import info, warning
from rnascl_cli.data.files import MANY
from rnascl_cli.data.images import ImageSet
from rnascl_cli.data.stream import StreamedSet

Triple = tuple[float, float, float]
CHUNK = 512
SAMPLE = 4096
"""Of a streamed set so many images, evenly spaced, stand for all: their means are then known to about 0.002."""
SMALLEST_STD = 1e-4


class ChannelStatistics(BaseModel):
    """Of each channel, over all pixels.

    Attributes:
        mean: In [0, 1], four decimals.
        std: Four decimals, at least 0.0001.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Triple
    std: Triple


def channel_statistics(images: ImageSet) -> ChannelStatistics:
    """Return mean and standard deviation of each channel.

    Over all images of a set in memory. Of a streamed set over an evenly spaced sample of :data:`SAMPLE`, which is
    kept for the next time.
    """
    if not isinstance(images, StreamedSet):
        return _measure(images)
    if len(images) > SAMPLE:
        images = images.select(torch.arange(SAMPLE) * len(images) // SAMPLE)
    key = hashlib.sha256(b"".join([repr(images.files.shape).encode(), *images.digests()]))
    kept = cache_dir() / "statistics" / f"{key.hexdigest()[:32]}.json"
    if (found := _read(kept)) is not None:
        return found
    if len(images) >= MANY:
        info(f"mean and standard deviation of {images.files.what}, over {len(images):,} images; kept for the next time")
    measured = _measure(images)
    try:
        write_text(kept, measured.model_dump_json())
    except OSError as error:
        warning(f"mean and standard deviation are not kept for the next time: {error}")
    return measured


def _measure(images: ImageSet) -> ChannelStatistics:
    total_C, squares_C = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(images), CHUNK):
        # Sums along a row of bytes and of their squares are below 2^24 up to 258 pixels, so float32 is exact.
        chunk_NCHW = images.pixels(slice(start, start + CHUNK)).cpu().float()
        total_C += chunk_NCHW.sum(dim=3).double().sum(dim=(0, 2))
        squares_C += chunk_NCHW.square_().sum(dim=3).double().sum(dim=(0, 2))
    count = len(images) * images.side**2
    mean_C = total_C / count
    std_C = (squares_C / count - mean_C**2).clamp(min=0).sqrt()
    r, g, b = ([round(float(value) / 255, 4) for value in pair] for pair in zip(mean_C, std_C, strict=True))
    std = (max(r[1], SMALLEST_STD), max(g[1], SMALLEST_STD), max(b[1], SMALLEST_STD))
    return ChannelStatistics(mean=(r[0], g[0], b[0]), std=std)


def _read(path: Path) -> ChannelStatistics | None:
    try:
        return ChannelStatistics.model_validate_json(path.read_bytes()) if path.is_file() else None
    except (OSError, ValidationError) as error:
        warning(f"{path}: damaged cache file, measuring again ({type(error).__name__})")
        return None
