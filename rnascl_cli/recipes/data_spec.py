"""What ``--data SPEC`` names: told from its words and its folders, before any image is read. No tensors here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rnascl_cli.core.errors import UserError, did_you_mean, expand_user, printable

CROPPED_SIDE = 224
"""What photographs are cropped to, pixels."""
LARGEST_CIFAR_LIKE = 64
"""Images up to this many pixels a side are cropped after padding; larger ones get random resized crops."""
TRIES = 10  # files that are looked at for one that is an image


class Images(NamedTuple):
    """What a network must fit: how many classes there are, and height and width of an image in pixels."""

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
"""The sets that are a folder, and what the one of the test images is called; ILSVRC's own test/ has no labels."""
KNOWN = (*FIXED, "folder")


def parse_spec(spec: str) -> tuple[str, str]:
    """Return the set's name and its folder, empty where none is given.

    Raises:
        UserError: There is no such set, or it needs a folder, or takes none.
    """
    name, _, folder = spec.partition(":")
    if name not in KNOWN:
        raise UserError(f"--data {spec}: unknown data set '{name}'{did_you_mean(name, KNOWN)}")
    if name in FOLDERS and not folder:
        raise UserError(f"--data {name}: a folder is needed; write --data {name}:DIR")
    if name == "digits" and folder:
        raise UserError(f"--data digits:{folder}: digits come with rnascl and take no folder; write --data digits")
    return name, folder


def check_there(spec: str) -> None:
    """Refuse a set to train on whose folder, or a split of it, is not there; what is downloaded need not be.

    Raises:
        UserError: It is not, or :func:`parse_spec` refuses the words.
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
    """Return the refusal of a set that has test images only."""
    return UserError(f"--data {spec}: has no train/ folder, only test images; nothing to train on")


def images_of(spec: str) -> Images | None:
    """Return what a network for these images must fit; None where a folder would have to be read to know it.

    Of a folder, the names of its class folders and the size of one image are looked at.
    """
    name, _, folder = spec.partition(":")
    if name in FIXED:  # imagenet's folder may still be missing, as in the recipes, where only a plan is wanted
        return FIXED[name]
    parse_spec(spec)
    try:
        train, test, classes = folder_classes(expand_user(folder, option="--data"))
        side = _side((train or test) / classes[0])
    except (UserError, OSError):  # told by whoever needs the folder
        return None
    return None if side is None else Images(len(classes), side)


def folder_classes(root: Path) -> tuple[Path | None, Path, list[str]]:
    """Return an image folder's split to train on, if it has one, that to test on, and its classes.

    Raises:
        UserError: The folder, a split or its classes are missing, or the splits' classes differ.
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
    """Return the folder of the training images, if there is one, and that of the test images.

    Args:
        root: The folder they are in.
        tests: What that of the test images may be called; the first that is there counts.

    Raises:
        UserError: There is no such folder, or it has no test images.
    """
    if not root.is_dir():
        raise UserError(f"--data: no folder {root}; name one with train/ and {tests[0]}/ in it")
    found = [root / name for name in tests if (root / name).is_dir()]
    if not found:
        raise UserError(
            f"--data: {root} has no {tests[0]}/ or {tests[1]}/ folder; put the test images there, one folder a class"
        )
    train = root / "train"
    return (train if train.is_dir() else None), found[0]


def class_names(split: Path) -> list[str]:
    """Return the names of a split's class folders, sorted.

    Raises:
        UserError: There are none, or one has no printable name.
    """
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{split}: has no class folders; make one folder a class")
    if odd := [name for name in names if printable(name) != name]:
        raise UserError(f"{split}: the class folder '{odd[0]}' has no printable name; rename it")
    return names


def is_photograph(width: int, height: int) -> bool:
    """Return whether an image is too large to be taken as it is, and is resized and cropped."""
    return max(width, height) > LARGEST_CIFAR_LIKE


def few(names: list[str]) -> str:
    """Return the first names of a list that may be long."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _side(class_folder: Path) -> int | None:
    """Return the side of what the images of a folder become, by its first one; None where that cannot be told."""
    from PIL import Image

    files = sorted(path for path in class_folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in files[:TRIES]:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception:  # no image, or a bad one: whoever reads it will say so
            continue
        return CROPPED_SIDE if is_photograph(width, height) else width
    return None
