"""Image folders: ``train/`` and ``test/`` or ``val/``, one folder a class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rnascl_cli.artifacts.store import write_with
from rnascl_cli.cache import cache_dir
from rnascl_cli.console import warn
from rnascl_cli.data.augment import LARGEST_CIFAR_LIKE
from rnascl_cli.data.decode import CROPPED_SIDE, Shape, decode, extensions, image_size
from rnascl_cli.data.source import Source, Split
from rnascl_cli.errors import UserError

CACHE_VERSION = 1  # raise it when decoding changes
SMALLEST_SIDE = 8
IMAGENET100_SHA256 = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"


@dataclass(frozen=True)
class Listed:
    """One image file: its path under the split's folder, and what tells that it changed."""

    name: str
    size: int
    mtime_ns: int


def folder(root: Path) -> Source:
    """Return an image folder; classes are the names of the class folders, sorted.

    Images up to 64 pixels a side must all be squares of one size, as in CIFAR. Larger ones are resized to 256
    at the short side and cropped to the central 224x224.

    Raises:
        UserError: The folder, a split, a class or its images are missing, or the splits' classes differ.
    """
    train, test = _split_folders(root)
    classes = _class_names(train or test)
    if len(classes) < 2:
        raise UserError(f"{train or test}: has {len(classes)} class folders; at least two are needed")
    if train is not None and (names := _class_names(test)) != classes:
        odd = sorted(set(names).symmetric_difference(classes))
        raise UserError(f"{root}: {test.name}/ and train/ have different class folders ({_few(odd)})")
    return _source(root, train, test, classes, shape=None)


def imagenet100(root: Path) -> Source:
    """Return the 100 classes of ImageNet-100 (Tian et al. 2020) out of an ImageNet folder, at 224x224.

    Classes are numbered in the order of their wnids, as an ImageFolder of the 100 folders would.

    Raises:
        UserError: As :func:`folder`; a missing class folder is named.
    """
    train, test = _split_folders(root)
    classes = imagenet100_classes()
    for split in (train, test):
        missing = [] if split is None else [name for name in classes if not (split / name).is_dir()]
        if missing:
            raise UserError(f"{split}: {len(missing)} of ImageNet-100's class folders are missing ({_few(missing)})")
    return _source(root, train, test, classes, shape=Shape(CROPPED_SIDE, resize=True))


def imagenet100_classes() -> list[str]:
    """Return the 100 wnids, sorted, from the list in the package, whose sha256 is checked."""
    data = (resources.files("rnascl_cli.data") / "imagenet100-classes.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == IMAGENET100_SHA256, "the package's class list has changed"
    return sorted(data.decode("ascii").split())


def _split_folders(root: Path) -> tuple[Path | None, Path]:
    if not root.is_dir():
        raise UserError(f"--data: no folder {root}; name one with train/ and test/ in it")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not tests:
        raise UserError(f"--data: {root} has no test/ or val/ folder; put the test images there, one folder a class")
    train = root / "train"
    return (train if train.is_dir() else None), tests[0]


def _class_names(split: Path) -> list[str]:
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{split}: has no class folders; make one folder a class")
    return names


def _source(root: Path, train: Path | None, test: Path, classes: list[str], *, shape: Shape | None) -> Source:
    parts = [_list_images(split, classes) for split in (train, test) if split is not None]
    if shape is None:
        shape = _shape_of((train or test) / parts[0][0][0].name)
    what = root.name or str(root)
    splits = [
        _split(split, files, labels_N, shape, what=f"{what}/{split.name}")
        for split, (files, labels_N) in zip([part for part in (train, test) if part is not None], parts, strict=True)
    ]
    return Source(classes, splits[0] if train is not None else None, splits[-1])


def _list_images(split: Path, classes: Sequence[str]) -> tuple[list[Listed], Tensor]:
    """List the split's images by class, then by name, with their class numbers.

    Raises:
        UserError: A class folder holds no image.
    """
    files: list[Listed] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = []
        with os.scandir(split / name) as entries:
            for entry in entries:
                suffix = Path(entry.name).suffix.lower()
                if suffix in extensions() and not entry.name.startswith("."):
                    found.append(_listed(entry, name))
        if not found:
            raise UserError(f"{split / name}: holds no images; add some or remove the class from every split")
        files.extend(sorted(found, key=lambda item: item.name))
        labels.extend([number] * len(found))
    return files, torch.tensor(labels)


def _listed(entry: os.DirEntry[str], class_name: str) -> Listed:
    try:
        status = entry.stat()
    except OSError as error:
        raise UserError(f"{entry.path}: cannot be read ({error.strerror}); mend its permissions or remove it") from None
    return Listed(f"{class_name}/{entry.name}", status.st_size, status.st_mtime_ns)


def _shape_of(first: Path) -> Shape:
    """Tell from the first image whether the set is one of small squares or of photographs."""
    width, height = image_size(first)
    if max(width, height) > LARGEST_CIFAR_LIKE:
        return Shape(CROPPED_SIDE, resize=True)
    if width != height or width < SMALLEST_SIDE:
        raise UserError(
            f"{first}: is {width}x{height}; images up to {LARGEST_CIFAR_LIKE} pixels must be squares of at "
            f"least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )
    return Shape(width, resize=False)


def _split(path: Path, files: list[Listed], labels_N: Tensor, shape: Shape, *, what: str) -> Split:
    def read(positions: Tensor) -> Tensor:
        whole = _cache_file(path, files, shape)
        if len(positions) < len(files):
            if (pixels := _read_cache(whole)) is not None and len(pixels) == len(files):
                return pixels[positions]
            chosen = [files[position] for position in positions.tolist()]
        else:
            chosen = files
        return _decode_once(path, chosen, shape, what=what)

    return Split(labels_N, read)


def _decode_once(path: Path, files: Sequence[Listed], shape: Shape, *, what: str) -> Tensor:
    """Return the images' pixels from the cache, or decode and keep them."""
    cached = _cache_file(path, files, shape)
    pixels = _read_cache(cached)
    if pixels is not None and pixels.shape == (len(files), 3, shape.side, shape.side):
        return pixels
    pixels = decode([path / item.name for item in files], shape, what=what)
    try:
        write_with(cached, lambda temporary: save_file({"pixels": pixels}, temporary))
    except (OSError, SafetensorError) as error:
        warn(f"decoded images are not kept for the next time: {error}")
    return pixels


def _cache_file(path: Path, files: Sequence[Listed], shape: Shape) -> Path:
    """Name the cache file after everything its content depends on: the files, as listed, and the decoding."""
    key = hashlib.sha256(repr((CACHE_VERSION, str(path.resolve()), shape)).encode())
    key.update(
        "\n".join(f"{item.name}\0{item.size}\0{item.mtime_ns}" for item in files).encode(errors="surrogateescape")
    )
    return cache_dir() / "images" / f"{key.hexdigest()[:32]}.safetensors"


def _read_cache(path: Path) -> Tensor | None:
    """Return the cached pixels, mapped from the file rather than copied; None where there are none."""
    if not path.is_file():
        return None
    try:
        return load_file(path).get("pixels")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        warn(f"{path}: damaged cache file, decoding the images again ({error})")
        return None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
