"""Augmentation of whole batches on their device, without a loop over images.

Shape suffixes: B images, C channels, H height, W width, A attempts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.recipes import DataSettings

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Takes ``x_BCHW`` in [0, 1] and a CPU generator, and gives an augmented batch of the same shape and range."""

LARGEST_CIFAR_LIKE = 64
"""Images up to this many pixels a side are cropped after padding; larger ones get random resized crops."""


@dataclass(frozen=True)
class CropViews:
    """Which crop of each image, and whether it is mirrored: ``(2 * pad + 1)^2 * 2`` views in all."""

    top_B: Tensor
    left_B: Tensor
    flip_B: Tensor


@dataclass(frozen=True)
class Crop:
    """Random crop of the image padded with black, and, with ``flip``, mirroring of every second image.

    Attributes:
        pad: Pixels added on every side before an image-sized piece is cut out.
        flip: Whether to mirror left and right with probability 1/2.
    """

    pad: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> CropViews:
        """Draw the views of ``count`` images."""
        corners = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (count,), generator=generator, dtype=torch.bool)
        return CropViews(corners[0], corners[1], mirrored if self.flip else torch.zeros_like(mirrored))

    def apply(self, x_BCHW: Tensor, views: CropViews) -> Tensor:
        """Cut the views out of the images; the result is in channels_last memory order."""
        B, _, H, W = x_BCHW.shape
        device = x_BCHW.device
        padded_BHWC = F.pad(x_BCHW, (self.pad,) * 4).permute(0, 2, 3, 1)
        rows_BH = views.top_B.to(device)[:, None] + torch.arange(H, device=device)
        columns_W = torch.arange(W, device=device)
        columns_BW = torch.where(views.flip_B.to(device)[:, None], columns_W.flip(0), columns_W)
        columns_BW = columns_BW + views.left_B.to(device)[:, None]
        image_B = torch.arange(B, device=device)
        cut_BHWC = padded_BHWC[image_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]
        return cut_BHWC.permute(0, 3, 1, 2)

    def __call__(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a view of each image and cut it out."""
        return self.apply(x_BCHW, self.draw(len(x_BCHW), generator))


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

    def __call__(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Cut a random box out of each image and stretch it over the whole, bilinearly."""
        boxes_B4 = self._boxes(len(x_BCHW), generator)
        mirrored_B = torch.randint(0, 2, (len(x_BCHW),), generator=generator, dtype=torch.bool)
        width_B, height_B, x_centre_B, y_centre_B = boxes_B4.unbind(1)
        theta_B23 = torch.zeros(len(x_BCHW), 2, 3)
        theta_B23[:, 0, 0] = torch.where(mirrored_B, -width_B, width_B) if self.flip else width_B
        theta_B23[:, 0, 2] = x_centre_B
        theta_B23[:, 1, 1] = height_B
        theta_B23[:, 1, 2] = y_centre_B
        grid = F.affine_grid(theta_B23.to(x_BCHW), list(x_BCHW.shape), align_corners=False)
        return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _boxes(self, count: int, generator: torch.Generator) -> Tensor:
        """Return width, height (shares of the image) and centre (in [-1, 1]) of each image's box, ``(B, 4)``."""
        draws_BA = torch.rand(4, count, self.ATTEMPTS, generator=generator)
        area_BA = self.scale[0] + (self.scale[1] - self.scale[0]) * draws_BA[0]
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio_BA = torch.exp(low + (high - low) * draws_BA[1])
        width_BA, height_BA = (area_BA * ratio_BA).sqrt(), (area_BA / ratio_BA).sqrt()
        fits_BA = (width_BA <= 1) & (height_BA <= 1)
        first_B1 = fits_BA.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
        fits_B = fits_BA.any(dim=1)

        def pick(values_BA: Tensor, otherwise: float) -> Tensor:
            return torch.where(fits_B, values_BA.gather(1, first_B1).squeeze(1), torch.tensor(otherwise))

        width_B, height_B = pick(width_BA, 1.0), pick(height_BA, 1.0)
        # A box of width w has its centre anywhere in [-(1 - w), 1 - w], the image being [-1, 1].
        x_centre_B = (2 * pick(draws_BA[2], 0.5) - 1) * (1 - width_B)
        y_centre_B = (2 * pick(draws_BA[3], 0.5) - 1) * (1 - height_B)
        return torch.stack([width_B, height_B, x_centre_B, y_centre_B], dim=1)


def unchanged(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
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
        case "resized-crop-flip":
            return ResizedCrop()
        case "none":
            return unchanged
