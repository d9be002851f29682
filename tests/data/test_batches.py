"""Batches and augmentation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from rnascl_cli.data import ImageSet, augmentation, batch_count, batches, ordered_batches
from rnascl_cli.data.augment import Augment, Crop, ResizedCrop, Unchanged
from rnascl_cli.recipes.settings import DataSettings

CPU = torch.device("cpu")


def image_set(count: int, side: int = 8) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=seeded(5), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, torch.arange(count))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ordered_batches_are_the_images_over_255() -> None:
    images = image_set(5)
    got = list(ordered_batches(images, batch_size=2, device=CPU))
    assert [len(y_B) for _, y_B in got] == [2, 2, 1]
    assert torch.equal(torch.cat([x_BCHW for x_BCHW, _ in got]), images.images_NCHW.float() / 255)
    assert torch.equal(torch.cat([y_B for _, y_B in got]), images.labels_N)


def test_batches_shuffle_all_images_and_follow_the_generator() -> None:
    images = image_set(10)

    def run(seed: int) -> list[torch.Tensor]:
        return [
            batch.x_BCHW for batch in batches(images, batch_size=4, generator=seeded(seed), augment=Crop(), device=CPU)
        ]

    one, again, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    plain = torch.cat(
        [batch.x_BCHW for batch in batches(images, batch_size=4, generator=seeded(), augment=Unchanged(), device=CPU)]
    )
    assert sorted(plain.flatten(1).sum(1).tolist()) == sorted((images.images_NCHW / 255).flatten(1).sum(1).tolist())
    assert not torch.equal(plain, images.images_NCHW.float() / 255)


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_an_interrupted_pass_goes_on_where_it_was(behind: int) -> None:
    images, one, other = image_set(10), seeded(3), seeded(3)
    whole = list(batches(images, batch_size=4, generator=one, augment=Crop(), device=CPU))
    rest = list(batches(images, batch_size=4, generator=other, augment=Crop(), device=CPU, behind=behind))
    assert len(rest) == 3 - behind
    for got, wanted in zip(rest, whole[behind:], strict=True):
        assert torch.equal(got.x_BCHW, wanted.x_BCHW)
        assert torch.equal(got.y_B, wanted.y_B)
        assert torch.equal(got.rows_B, wanted.rows_B)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (1, 4, [1]), (2, 1, [1, 1]), (0, 4, [])],
)
def test_a_last_single_image_sits_out(count: int, size: int, sizes: list[int]) -> None:
    images = image_set(count)
    got = [
        len(batch) for batch in batches(images, batch_size=size, generator=seeded(), augment=Unchanged(), device=CPU)
    ]
    assert got == sizes
    assert batch_count(images, size) == len(sizes)


def test_crop_cuts_the_view_out_of_the_padded_image() -> None:
    x_BCHW = torch.rand(4, 3, 8, 8, generator=seeded())
    top_B, left_B = torch.tensor([4, 0, 8, 3]), torch.tensor([4, 8, 1, 5])
    got = Crop().apply(x_BCHW, (top_B * 9 + left_B) * 2 + torch.tensor([0, 0, 1, 1]))
    padded = F.pad(x_BCHW, (4, 4, 4, 4))
    assert torch.equal(got[0], x_BCHW[0])
    assert torch.equal(got[1], padded[1, :, 0:8, 8:16])
    assert torch.equal(got[2], padded[2, :, 8:16, 1:9].flip(2))
    assert torch.equal(got[3], padded[3, :, 3:11, 5:13].flip(2))


def test_crop_draws_every_offset_and_both_mirrors() -> None:
    views_B = Crop().draw(2000, seeded())
    assert Crop().views == 162
    assert 0 <= int(views_B.min()) <= int(views_B.max()) < 162
    for offsets in (views_B // 2 // 9, views_B // 2 % 9):
        counts = offsets.bincount(minlength=9)
        assert len(counts) == 9
        assert 150 < int(counts.min()) <= int(counts.max()) < 300  # 222 expected
    assert 900 < int((views_B % 2).sum()) < 1100


def test_a_crop_without_mirrors_has_half_the_views_and_the_same_corners() -> None:
    crop = Crop(flip=False)
    views_B = crop.draw(100, seeded())
    assert crop.views == 81
    assert torch.equal(views_B, Crop().draw(100, seeded()) // 2)
    x_BCHW = torch.rand(100, 3, 8, 8, generator=seeded())
    assert torch.equal(crop.apply(x_BCHW, views_B), Crop().apply(x_BCHW, 2 * views_B))


def test_a_batch_says_which_view_of_which_image_it_holds() -> None:
    images = image_set(10)
    for batch in batches(images, batch_size=4, generator=seeded(), augment=Crop(), device=CPU):
        x_BCHW = images.images_NCHW[batch.rows_B].float() / 255
        assert torch.equal(batch.x_BCHW, Crop().apply(x_BCHW, batch.views_B))
        assert torch.equal(batch.y_B, images.labels_N[batch.rows_B])


def test_digests_know_an_image_again_in_another_subset() -> None:
    images = image_set(6)
    whole = images.digests()
    assert len(set(whole)) == 6
    assert images.select(torch.tensor([4, 1])).digests() == [whole[4], whole[1]]


def view(augment: Augment, x_BCHW: torch.Tensor) -> torch.Tensor:
    return augment.apply(x_BCHW, augment.draw(len(x_BCHW), seeded()))


def test_resized_crop_of_the_whole_image_changes_nothing_or_mirrors() -> None:
    x_BCHW = torch.rand(64, 3, 12, 12, generator=seeded())
    whole = ResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    torch.testing.assert_close(view(whole, x_BCHW), x_BCHW, atol=1e-5, rtol=0)
    mirrored = view(ResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)), x_BCHW)
    same_B = (mirrored - x_BCHW).abs().amax(dim=(1, 2, 3)) < 1e-5
    flipped_B = (mirrored - x_BCHW.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((same_B ^ flipped_B).all())
    assert 16 < int(same_B.sum()) < 48


def test_resized_crop_takes_a_linear_ramp_to_a_linear_ramp() -> None:
    """On an image whose value is its x position, a crop of width w is a ramp of slope w."""
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    got = view(ResizedCrop(flip=False), ramp)
    inner = got[:, 0, 32, 8:-8]
    slopes = inner.diff(dim=1)
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), atol=1e-4, rtol=0)
    width_B = slopes[:, 0] * 63
    assert float(width_B.min()) > 0.05
    assert float(width_B.max()) < 1.001


def test_resized_crop_boxes_have_the_asked_area_and_ratio_and_lie_inside() -> None:
    width_B, height_B, x_B, y_B = ResizedCrop()._boxes(ResizedCrop().draw(5000, seeded())).unbind(1)
    area_B, ratio_B = width_B * height_B, width_B / height_B
    assert 0.08 - 1e-6 <= float(area_B.min()) <= float(area_B.max()) <= 1 + 1e-6
    assert 3 / 4 - 1e-5 <= float(ratio_B.min()) <= float(ratio_B.max()) <= 4 / 3 + 1e-5
    assert abs(float(ratio_B.log().mean())) < 0.02
    assert 0.45 < float(area_B.mean()) < 0.56
    assert float((x_B.abs() + width_B).max()) <= 1 + 1e-6
    assert float((y_B.abs() + height_B).max()) <= 1 + 1e-6


def test_choice_of_augmentation() -> None:
    def choose(side: int = 32, **settings: str) -> object:
        return augmentation(DataSettings.model_validate({"spec": "cifar10", **settings}), side)

    assert choose() == Crop()
    assert choose(64) == Crop()
    assert choose(224) == ResizedCrop()
    assert choose(spec="digits") == Crop(flip=False)
    assert choose(augment="none") == Unchanged()
    assert choose(augment="crop-flip", spec="digits") == Crop()
    assert choose(augment="resized-crop-flip") == ResizedCrop()


def test_augmented_pixels_stay_in_range() -> None:
    x_BCHW = torch.rand(32, 3, 16, 16, generator=seeded())
    for augment in (Crop(), ResizedCrop()):
        got = view(augment, x_BCHW)
        assert got.shape == x_BCHW.shape
        assert 0 <= float(got.min()) <= float(got.max()) <= 1
        assert math.isfinite(float(got.sum()))
