"""Data sets that come from libraries: scikit-learn's digits, torchvision's CIFAR."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.console import info
from rnascl_cli.core.errors import UserError, expand_user
from rnascl_cli.data.source import Source, Split
from rnascl_cli.data.subset import holdout_mask

DIGITS_TEST_SHARE = 0.2
DIGITS_SPLIT_SEED = 0  # the set has no published split; this one is the same for every run and seed
DIGITS_SCALE = 4  # 8x8 to 32x32


def digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits as 3x32x32 images.

    The 8x8 images with values 0 to 16 are scaled to 0 to 255, each pixel is repeated 4x4, and the grey
    channel three times. 80 % of each class are training images.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey_NHW = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)
    large_NHW = grey_NHW.repeat_interleave(DIGITS_SCALE, dim=1).repeat_interleave(DIGITS_SCALE, dim=2)
    images_NCHW = large_NHW[:, None].expand(-1, 3, -1, -1)
    labels_N = torch.from_numpy(bunch.target).long()
    seeded = torch.Generator().manual_seed(DIGITS_SPLIT_SEED)
    test_N = holdout_mask(labels_N, DIGITS_TEST_SHARE, seeded)
    return Source(
        [str(digit) for digit in range(10)],
        _split(images_NCHW[~test_N], labels_N[~test_N]),
        _split(images_NCHW[test_N], labels_N[test_N]),
    )


def cifar(name: Literal["cifar10", "cifar100"], folder: str) -> Source:
    """Return torchvision's CIFAR, downloading it where it is not there yet.

    Args:
        name: Which of the two.
        folder: Where the set lies or is put; empty for ``data/`` in the cache.

    Raises:
        UserError: It is absent and cannot be downloaded, or is damaged.
    """
    from torchvision import datasets

    root = expand_user(folder, option="--data") if folder else cache_dir() / "data"
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        parts = [_cifar_part(kind, name, root, train=train) for train in (True, False)]
    except Exception as error:  # URLError, RuntimeError, EOFError, OSError, ...: whatever the download met
        raise UserError(
            f"--data {name}: not found under {root}, or not as published (by MD5), and the download failed "
            f"({type(error).__name__}: {error}); put torchvision's copy there, or use --data {name}:DIR or folder:DIR"
        ) from None
    splits = [_split(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in parts]
    return Source(list(parts[0].classes), splits[0], splits[1])


def cifar_is_here(name: Literal["cifar10", "cifar100"]) -> bool:
    """Return whether ``--data NAME`` finds torchvision's copy in the cache, and so would download nothing."""
    parts = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    return (cache_dir() / "data" / parts[name]).is_dir()


def _cifar_part(kind: Any, name: str, root: Path, *, train: bool) -> Any:
    try:
        return kind(root, train=train, download=False)  # checks every file's MD5 before it is read
    except RuntimeError:
        info(f"downloading {name} into {root}")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return kind(root, train=train, download=True)


def _split(images_NCHW: Tensor, labels_N: Tensor) -> Split:
    return Split(labels_N, lambda positions: images_NCHW[positions].contiguous())
