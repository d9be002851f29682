"""Decoding image files into uint8 tensors.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rnascl_cli.core.console import info
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.progress import progress
from rnascl_cli.data.augment import ResizedCrop

SHORT_SIDE = 256
CHUNK = 256
MEMORY_SHARE = 0.8
THINNEST = 100  # times as long as wide
LARGE_PIXELS = 2**24
_LARGE = threading.Lock()
# Opening one of these starts another program or renders a page; none is a photograph.
REFUSED_FORMATS = {"EPS", "WMF", "EMF", "PDF", "MPEG", "HDF5", "BUFR", "GRIB", "FITS"}
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Cut = Callable[[Image.Image, int], Image.Image]
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Shape:
    """What every decoded image looks like.

    Attributes:
        side: Height and width, pixels.
        resize: Whether images are brought to that size (short side 256, centre crop), or must have it.
    """

    side: int
    resize: bool


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in REFUSED_FORMATS)


@functools.cache
def extensions() -> frozenset[str]:
    """Return the lower-case suffixes of files taken for images."""
    readable = set(_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height without decoding the pixels."""
    with _opened(path) as image:
        return image.size


def decode(paths: Sequence[Path], shape: Shape, *, what: str) -> Tensor:
    """Decode images to RGB, several at once.

    Args:
        paths: The files, in the order wanted.
        shape: Size of the result.
        what: What to call them in the progress display.

    Returns:
        Pixels, uint8 ``(len(paths), 3, side, side)``.

    Raises:
        UserError: A file does not decode, is no 8-bit image, or has another size; the first such in order is
            named. Or the images would not fit in memory.
    """
    refuse_beyond_memory(len(paths), shape.side, what=what)
    pixels = np.empty((len(paths), 3, shape.side, shape.side), dtype=np.uint8)

    def fill(start: int) -> int:
        chunk = paths[start : start + CHUNK]
        for row, path in enumerate(chunk, start):
            pixels[row] = decode_one(path, shape).transpose(2, 0, 1)
        return len(chunk)

    if len(paths) >= 4 * CHUNK:
        info(f"decoding {len(paths):,} images of {what}; they are kept for the next time")
    with progress(f"decoding {what}", len(paths)) as advance, ThreadPoolExecutor(threads()) as pool:
        try:
            for done in pool.map(fill, range(0, len(paths), CHUNK)):
                advance(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return torch.from_numpy(pixels)


def decode_now(paths: Sequence[Path], shape: Shape) -> Tensor:
    """Decode a batch of images as they are evaluated, several at once and without a word.

    Returns:
        Pixels, uint8 ``(B, 3, side, side)``.

    Raises:
        UserError: As :func:`decode`.
    """
    with ThreadPoolExecutor(threads()) as pool:
        return stack(list(pool.map(lambda path: decode_one(path, shape), paths)), shape)


def threads() -> int:
    """Return how many images to decode at once in this process."""
    return min(32, os.cpu_count() or 1)


def refuse_beyond_memory(count: int, side: int, *, what: str) -> None:
    """Refuse a set whose decoded pixels would not fit beside everything else.

    Raises:
        UserError: With the sizes and the mend.
    """
    needed, free = count * 3 * side * side, _free_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise UserError(
            f"--data: {count:,} images of {what} at {side}x{side} need {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} GiB are free; use --set data.keep=stream for a folder, --limit-train or --limit-test"
        )


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # not Linux; the allocation itself will tell
    values = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(values[0]) * 1024 if values else None


def decode_one(path: Path, shape: Shape, cut: Cut | None = None) -> Pixels:
    """Decode one image to RGB.

    Args:
        path: The file.
        shape: Of the result.
        cut: What is made of the whole image instead of the evaluation's view.

    Returns:
        Pixels, uint8 ``(side, side, 3)``.

    Raises:
        UserError: As :func:`decode`.
    """
    with _opened(path) as image, _one_by_one(image):
        if image.mode in DEEP_MODES:
            raise UserError(f"{path}: not an 8-bit image (mode {image.mode}); convert it to 8-bit RGB or grey")
        if not shape.resize and image.size != (shape.side, shape.side):
            width, height = image.size
            raise UserError(
                f"{path}: is {width}x{height}, the set's first image is {shape.side}x{shape.side}; "
                "small images must all have one size"
            )
        try:
            image.load()  # an icon's size is known for certain only now
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow warns about the direct way
            rgb = image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            raise UserError(f"{path}: does not decode ({error}); replace or remove it") from None
    if not shape.resize and rgb.size != (shape.side, shape.side):
        raise UserError(f"{path}: its header names another size than its pixels have; replace or remove it")
    if shape.resize:
        _refuse_thin(path, rgb.width, rgb.height)
    if cut is not None:
        return np.asarray(cut(rgb, shape.side))
    return np.asarray(_centre(rgb, shape.side) if shape.resize else rgb)


def _one_by_one(image: Image.Image) -> contextlib.AbstractContextManager[object]:
    """Return a lock for large images: as many of them at once as there are cores would fill the memory."""
    return _LARGE if image.width * image.height > LARGE_PIXELS else contextlib.nullcontext()


def _refuse_thin(path: Path, width: int, height: int) -> None:
    """Refuse an image of one pixel by 65,500: a few kilobytes whose short side of 256 would make a long one of 17 M."""
    if max(width, height) > THINNEST * min(width, height):
        raise UserError(f"{path}: is {width}x{height}, too thin for a photograph; crop or remove it")


def random_cut(crop: ResizedCrop, view: Sequence[float]) -> Cut:
    """Return the cut of a random box, stretched to the whole and mirrored or not, as torchvision's transforms do it.

    Args:
        crop: The augmentation.
        view: The image's row of :meth:`ResizedCrop.draw`.
    """

    def cut(image: Image.Image, side: int) -> Image.Image:
        box = crop.pixel_box(view, width=image.width, height=image.height)
        image = image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view[0] else image

    return cut


def stack(images: Sequence[Pixels], shape: Shape) -> Tensor:
    """Return decoded images as one tensor (B, C, H, W), channels last in memory, as they come."""
    pixels_BHWC = np.stack(images) if images else np.empty((0, shape.side, shape.side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Resize the short side to 256 and cut out the centre, as torchvision's evaluation transform does."""
    width, height = image.size
    short = min(width, height)
    width, height = width * SHORT_SIDE // short, height * SHORT_SIDE // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _opened(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: cannot be read (not a regular file); replace or remove it")
    try:
        image = Image.open(path, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: refused as an image bomb ({error})") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: does not decode (not an image, or cut short); replace or remove it") from None
    except OSError as error:
        what = f"cannot be read ({error.strerror})" if error.strerror else f"does not decode ({error})"
        raise UserError(f"{path}: {what}; replace or remove it") from None
    except Exception as error:
        raise UserError(f"{path}: does not decode ({error}); replace or remove it") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise UserError(f"{path}: refused as an image bomb ({image.width}x{image.height} pixels)")
    return image
