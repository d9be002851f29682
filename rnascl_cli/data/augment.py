"""Augmentation of whole batches on their device, without a loop over images.

Shape suffixes: B images, C channels, H height, W width, A attempts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.recipes.data_spec import LARGEST_CIFAR_LIKE
from rnascl_cli.recipes.settings import DataSettings


class Augment(Protocol):
    """An augmentation in two steps: which view of each image, then the views themselves.

    Drawing needs no images, so order and views of a whole run follow from its seed alone; applying draws
    nothing, so the same views can be had again, or looked up.
    """

    @property
    def views(self) -> int | None:
        """How many views an image has; None where they cannot be counted."""
        ...

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Draw a view for each of so many images: numbers below :attr:`views`, or rows of parameters, on the CPU."""
        ...

    def apply(self, x_BCHW: Tensor, views_B: Tensor) -> Tensor:
        """Return the views of images in [0, 1]: same shape, same range."""
        ...


@dataclass(frozen=True)
class Crop:
    """Random crop of the image padded with black, and, with ``flip``, mirroring of every second image.

    Attributes:
        pad: Pixels added on every side before an image-sized piece is cut out.
        flip: Whether to mirror left and right with probability 1/2.
    """

    pad: int = 4
    flip: bool = True

    @property
    def views(self) -> int:
        """162 with a pad of 4: 9 x 9 corners, mirrored or not; 2 without a pad."""
        return (2 * self.pad + 1) ** 2 * self._sides

    @property
    def _sides(self) -> int:
        return 2 if self.flip else 1

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Draw a view number for each image: (top * 9 + left) * 2 + mirrored, or without mirrors top * 9 + left."""
        corners = 2 * self.pad + 1
        top_B, left_B = torch.randint(0, corners, (2, images), generator=generator)
        mirrored_B = torch.randint(0, 2, (images,), generator=generator)
        corner_B: Tensor = top_B * corners + left_B
        return corner_B * self._sides + mirrored_B % self._sides

    def apply(self, x_BCHW: Tensor, views_B: Tensor) -> Tensor:
        """Cut the views out of the images; the result is in channels_last memory order."""
        B, _, H, W = x_BCHW.shape
        device, corners = x_BCHW.device, 2 * self.pad + 1
        views_B = to_device_async(views_B, device)
        corner_B, mirrored_B = views_B // self._sides, views_B % self._sides == 1
        padded_BHWC = F.pad(x_BCHW, (self.pad,) * 4).permute(0, 2, 3, 1)
        rows_BH = (corner_B // corners)[:, None] + torch.arange(H, device=device)
        columns_W = torch.arange(W, device=device)
        columns_BW = torch.where(mirrored_B[:, None], columns_W.flip(0), columns_W)
        columns_BW = columns_BW + (corner_B % corners)[:, None]
        image_B = torch.arange(B, device=device)
        cut_BHWC = padded_BHWC[image_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]
        return cut_BHWC.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ResizedCrop:
    """RandomResizedCrop (Szegedy et al. 2015) and mirroring, as torchvision draws them, for a batch at once.

    Attributes:
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width over its height; drawn uniformly in its logarithm.
        flip: Whether to mirror left and right with probability 1/2.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    ATTEMPTS = 10

    @property
    def views(self) -> None:
        """Boxes are drawn from a continuum."""
        return None

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Draw what each image's box follows from, ``(B, 1 + 4 A)``: whether it is mirrored, then uniform numbers.

        Those are area, ratio, left and top of each attempt. Which attempt is the first that fits depends on the
        image's own shape, so :meth:`apply` and :meth:`pixel_box` look for it.
        """
        draws_4BA = torch.rand(4, images, self.ATTEMPTS, generator=generator)
        mirrored_B = torch.randint(0, 2, (images,), generator=generator, dtype=torch.bool)
        flip_B1 = (mirrored_B & self.flip)[:, None].float()
        return torch.cat([flip_B1, draws_4BA.transpose(0, 1).flatten(1)], dim=1)

    def apply(self, x_BCHW: Tensor, views_B: Tensor) -> Tensor:
        """Cut each (square) image's box out and stretch it over the whole, bilinearly."""
        width_B, height_B, x_centre_B, y_centre_B = self._boxes(views_B).unbind(1)
        theta_B23 = torch.zeros(len(x_BCHW), 2, 3)
        theta_B23[:, 0, 0] = torch.where(views_B[:, 0] == 1, -width_B, width_B)
        theta_B23[:, 0, 2] = x_centre_B
        theta_B23[:, 1, 1], theta_B23[:, 1, 2] = height_B, y_centre_B
        grid = F.affine_grid(to_device_async(theta_B23, x_BCHW.device), list(x_BCHW.shape), align_corners=False)
        return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def pixel_box(self, view: Sequence[float], *, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the box of one image as torchvision's RandomResizedCrop would cut it, in whole pixels.

        Args:
            view: The image's row of :meth:`draw`.
            width: Of the image as it was photographed.
            height: Of the same.

        Returns:
            Left, top, right, bottom; right and bottom are outside.
        """
        areas, ratios, lefts, tops = (view[1 + i * self.ATTEMPTS : 1 + (i + 1) * self.ATTEMPTS] for i in range(4))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, ratio, left, top in zip(areas, ratios, lefts, tops, strict=True):
            pixels = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
            drawn = math.exp(low + (high - low) * ratio)
            w, h = round(math.sqrt(pixels * drawn)), round(math.sqrt(pixels / drawn))
            if 0 < w <= width and 0 < h <= height:
                x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
                return x, y, x + w, y + h
        # None fits: the largest central box whose ratio is allowed.
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        x, y = (width - w) // 2, (height - h) // 2
        return x, y, x + w, y + h

    def _boxes(self, views_B: Tensor) -> Tensor:
        """Return width, height (shares of the image) and centre (in [-1, 1]) of each image's box, ``(B, 4)``."""
        area_BA, ratio_BA, x_BA, y_BA = views_B[:, 1:].reshape(-1, 4, self.ATTEMPTS).unbind(1)
        area_BA = self.scale[0] + (self.scale[1] - self.scale[0]) * area_BA
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio_BA = torch.exp(low + (high - low) * ratio_BA)
        width_BA, height_BA = (area_BA * ratio_BA).sqrt(), (area_BA / ratio_BA).sqrt()
        fits_BA = (width_BA <= 1) & (height_BA <= 1)
        first_B1 = fits_BA.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
        fits_B = fits_BA.any(dim=1)

        def pick(values_BA: Tensor, otherwise: float) -> Tensor:
            return torch.where(fits_B, values_BA.gather(1, first_B1).squeeze(1), torch.tensor(otherwise))

        width_B, height_B = pick(width_BA, 1.0), pick(height_BA, 1.0)
        # A box of width w has its centre anywhere in [-(1 - w), 1 - w], the image being [-1, 1].
        x_centre_B = (2 * pick(x_BA, 0.5) - 1) * (1 - width_B)
        y_centre_B = (2 * pick(y_BA, 0.5) - 1) * (1 - height_B)
        return torch.stack([width_B, height_B, x_centre_B, y_centre_B], dim=1)


@dataclass(frozen=True)
class Unchanged:
    """Every image as it is: one view."""

    @property
    def views(self) -> int:
        """One."""
        return 1

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Return zeros; nothing is drawn."""
        return torch.zeros(images, dtype=torch.int64)

    def apply(self, x_BCHW: Tensor, views_B: Tensor) -> Tensor:
        """Return the batch as it is."""
        return x_BCHW


def augmentation(settings: DataSettings, input_size: int) -> Augment:
    """Return the augmentation that the settings ask for.

    ``auto`` is a pad-4 crop for digits (a mirrored digit is another sign, or none), a pad-4 crop and flip for
    other images up to 64 pixels a side, and RandomResizedCrop and flip for larger ones.
    """
    choice = settings.augment
    if choice == "auto":
        if settings.spec.partition(":")[0] == "digits":
            choice = "crop"
        else:
            choice = "crop-flip" if input_size <= LARGEST_CIFAR_LIKE else "resized-crop-flip"
    match choice:
        case "crop":
            return Crop(flip=False)
        case "crop-flip":
            return Crop()
        case "flip":
            return Crop(pad=0)
        case "resized-crop-flip":
            return ResizedCrop()
        case "none":
            return Unchanged()
