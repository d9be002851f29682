"""What a data set is before any subset is taken: labels known at once, pixels read for the images wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rnascl_cli.data.files import ImageFiles


@dataclass(frozen=True, eq=False)
class Split:
    """The training or test part of a data set.

    Attributes:
        labels_N: The class number of every image, int64.
        read: Takes ascending positions and gives those images' pixels, uint8 ``(n, 3, H, W)``.
        files: Where the pixels come from, if from a file an image: such a split can be streamed.
    """

    labels_N: Tensor
    read: Callable[[Tensor], Tensor]
    files: ImageFiles | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: its classes, and its two splits.

    Attributes:
        classes: Class names in the order of their numbers.
        train: None where the set has test images only.
        test: The test split.
    """

    classes: list[str]
    train: Split | None
    test: Split
