"""Image folders: ``train/`` and ``test/`` or ``val/``, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from rnascl_cli.artifacts.store import sha256_bytes
from rnascl_cli.core.errors import UserError
from rnascl_cli.data.decode import Shape, extensions, image_size
from rnascl_cli.data.files import ImageFiles, Listed
from rnascl_cli.data.source import Source, Split
from rnascl_cli.recipes.data_spec import (
    CROPPED_SIDE,
    FOLDERS,
    LARGEST_CIFAR_LIKE,
    few,
    folder_classes,
    is_photograph,
    split_folders,
)

SMALLEST_SIDE = 8
IMAGENET_SHA256 = "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"
IMAGENET100_SHA256 = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"


def folder(root: Path) -> Source:
    """Return an image folder; classes are the names of the class folders, sorted.

    Images up to 64 pixels a side must all be squares of one size, as in CIFAR. Larger ones are resized to 256
    at the short side and cropped to the central 224x224.

    Raises:
        UserError: The folder, a split, a class or its images are missing, or the splits' classes differ.
    """
    train, test, classes = folder_classes(root)
    return _source(root, train, test, classes, shape=None)


def imagenet100(root: Path) -> Source:
    """Return the 100 classes of ImageNet-100 (Tian et al. 2020) out of an ImageNet folder, at 224x224.

    Classes are numbered in the order of their wnids, as an ImageFolder of the 100 folders would.

    Raises:
        UserError: As :func:`folder`; a missing class folder is named.
    """
    return _photographs(root, imagenet100_classes(), "ImageNet-100")


def imagenet(root: Path) -> Source:
    """Return ImageNet's 1,000 classes (ILSVRC 2012), at 224x224, in their usual order: that of their wnids.

    Raises:
        UserError: As :func:`imagenet100`.
    """
    return _photographs(root, imagenet_classes(), "ImageNet")


def imagenet100_classes() -> list[str]:
    """Return the 100 wnids, sorted, from the list in the package, whose sha256 is checked."""
    return sorted(_class_list("imagenet100-classes.txt", IMAGENET100_SHA256))


def imagenet_classes() -> list[str]:
    """Return the 1,000 wnids, sorted, from the list in the package, whose sha256 is checked."""
    return sorted(_class_list("imagenet-classes.txt", IMAGENET_SHA256))


def _class_list(name: str, sha256: str) -> list[str]:
    data = (resources.files("rnascl_cli.data") / name).read_bytes()
    assert sha256_bytes(data) == sha256, f"the package's class list {name} has changed"
    return data.decode("ascii").split()


def _photographs(root: Path, classes: list[str], what: str) -> Source:
    """Return the named classes out of an ImageNet folder; others in it are left alone."""
    train, test = split_folders(root, tests=FOLDERS["imagenet"])
    for split in (train, test):
        missing = [] if split is None else [name for name in classes if not (split / name).is_dir()]
        if len(missing) == len(classes) and split is not None:
            raise UserError(
                f"{split}: has none of {what}'s class folders (n01440764, ...); sort its images into one folder a "
                "wnid, as for torchvision's ImageFolder"
            )
        if missing:
            raise UserError(
                f"{split}: {len(missing)} of {what}'s class folders are missing ({few(missing)}); complete them, or "
                f"use --data folder:{root} for the classes that are there"
            )
    return _source(root, train, test, classes, shape=Shape(CROPPED_SIDE, resize=True))


def _source(root: Path, train: Path | None, test: Path, classes: list[str], *, shape: Shape | None) -> Source:
    listed = [(split, *_list_images(split, classes)) for split in (train, test) if split is not None]
    if shape is None:
        shape = _shape_of((train or test) / listed[0][1][0].name)
    splits = []
    for split, images, labels_N in listed:
        files = ImageFiles(split, images, shape, what=f"{root.name or root}/{split.name}")
        splits.append(Split(labels_N, files.read, files))
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
    if is_photograph(width, height):
        return Shape(CROPPED_SIDE, resize=True)
    if width != height or width < SMALLEST_SIDE:
        raise UserError(
            f"{first}: is {width}x{height}; images up to {LARGEST_CIFAR_LIKE} pixels must be squares of at "
            f"least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )
    return Shape(width, resize=False)
