"""Parses ``--data SPEC`` and checks its folders before any image is read. No tensors here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rnascl_cli.core.errors import UserError, did_you_mean, expand_user, printable

CROPPED_SIDE = 224
"""Side of the crops of photographs, pixels."""
LARGEST_CIFAR_LIKE = 64
"""Largest side, in pixels, of images that are padded and cropped; larger ones get random resized crops."""
TRIES = 10  # files to try until one is an image


class Images(NamedTuple):
    """Number of classes, and height and width of an image in pixels."""

    num_classes: int
    input_size: int


FIXED = {
    "digits": Images(10, 32),
    "cifar10": Images(10, 32),
    "cifar100": Images(100, 32),
    "imagenet": Images(1000, CROPPED_SIDE),
    "imagenet100": Images(100, CROPPED_SIDE),
}
FOLDERS = {"folder": ("test", "val"), "imagenet": ("val", "test"), "imagenet100": ("val", "test")}
"""Data sets in a folder, and the names of their test split; ILSVRC's own test/ has no labels."""
KNOWN = (*FIXED, "folder")


def parse_spec(spec: str) -> tuple[str, str]:
    """Return the data set's name and its folder, empty if none is given.

    Raises:
        UserError: The data set is unknown, needs a folder, or takes none.
    """
    name, _, folder = spec.partition(":")
    if name not in KNOWN:
        raise UserError(f"--data {spec}: unknown data set '{name}'{did_you_mean(name, KNOWN)}")
    if name in FOLDERS and not folder:
        raise UserError(f"--data {name}: a folder is needed; write --data {name}:DIR")
    if name == "digits" and folder:
        raise UserError(
            f"--data digits:{folder}: digits are part of scikit-learn and take no folder; write --data digits"
        )
    return name, folder


def check_there(spec: str) -> None:
    """Check that the folder of a training data set and its splits exist; downloaded data sets may be missing.

    Raises:
        UserError: A folder is missing, or the spec is invalid.
    """
    name, folder = parse_spec(spec)
    if name in FOLDERS:
        root = expand_user(folder, option="--data")
        train, _ = split_folders(root, tests=FOLDERS[name])
        if train is None:
            raise no_training_images(spec)
        if name == "folder":
            folder_classes(root)


def no_training_images(spec: str) -> UserError:
    """Return the error for a data set without training images."""
    return UserError(f"--data {spec}: has no train/ folder; add one, or name another data set")


def images_of(spec: str) -> Images | None:
    """Return number of classes and image size of a data set; None if its folder cannot be read.

    Reads only the names of the class folders and the size of one image.
    """
    name, _, folder = spec.partition(":")
    if name in FIXED:  # the recipes name imagenet without its folder
        return FIXED[name]
    parse_spec(spec)
    try:
        train, test, classes = folder_classes(expand_user(folder, option="--data"))
        side = _side((train or test) / classes[0])
    except (UserError, OSError):  # reported when the images are loaded
        return None
    return None if side is None else Images(len(classes), side)


def folder_classes(root: Path) -> tuple[Path | None, Path, list[str]]:
    """Return the training split (None if missing), the test split and the classes of an image folder.

    Raises:
        UserError: The folder, the test split or its classes are missing, or the splits' classes differ.
    """
    train, test = split_folders(root)
    classes = class_names(train or test)
    if len(classes) < 2:
        raise UserError(f"{train or test}: has {len(classes)} class folders; at least two are needed")
    if train is not None and (names := class_names(test)) != classes:
        odd = sorted(set(names).symmetric_difference(classes))
        raise UserError(f"{root}: {test.name}/ and train/ have different class folders ({few(odd)})")
    return train, test, classes


def split_folders(root: Path, *, tests: tuple[str, str] = FOLDERS["folder"]) -> tuple[Path | None, Path]:
    """Return the folder of the training images (None if missing) and that of the test images.

    Args:
        root: The folder of both.
        tests: Names of the test folder, in order of preference.

    Raises:
        UserError: There is no such folder, or it has no test images.
    """
    if not root.is_dir():
        raise UserError(f"--data: no folder {root}; name one with train/ and {tests[0]}/ in it")
    found = [root / name for name in tests if (root / name).is_dir()]
    if not found:
        raise UserError(
            f"--data: {root} has no {tests[0]}/ or {tests[1]}/ folder; put the test images there, one folder per class"
        )
    train = root / "train"
    return (train if train.is_dir() else None), found[0]


def class_names(split: Path) -> list[str]:
    """Return the sorted names of a split's class folders.

    Raises:
        UserError: There are none, or a name is not printable.
    """
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{split}: has no class folders; make one folder per class")
    if odd := [name for name in names if printable(name) != name]:
        raise UserError(f"{split}: the class folder '{odd[0]}' has a name that is not printable; rename it")
    return names


def is_photograph(width: int, height: int) -> bool:
    """Return whether an image is so large that it is resized and cropped."""
    return max(width, height) > LARGEST_CIFAR_LIKE


def few(names: list[str]) -> str:
    """Return the first three names of a list."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _side(class_folder: Path) -> int | None:
    """Return the side of a folder's images after cropping, from its first image; None if there is none."""
    from PIL import Image

    files = sorted(path for path in class_folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in files[:TRIES]:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception:  # not an image, or a damaged one, which is reported when the images are loaded
            continue
        return CROPPED_SIDE if is_photograph(width, height) else width
    return None
