"""Specs, subsets, holdout and fingerprints."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rnascl_cli.artifacts.documents import DataReference
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data, load_data
from rnascl_cli.recipes.settings import DataSettings
from tests.data.conftest import MakeFolder


def load(spec: str, *, seed: int = 0, training: bool = True, **settings: object) -> Data:
    return load_data(DataSettings.model_validate({"spec": spec, **settings}), seed=seed, training=training)


def test_digits_are_all_there_and_scaled() -> None:
    data = load("digits", holdout=0.0)
    assert (len(data.train) + len(data.test), data.num_classes, data.input_size) == (1797, 10, 32)
    assert 0.19 < len(data.test) / 1797 < 0.21
    bunch = load_digits()
    grey = data.test.images_NCHW[:, :, ::4, ::4]
    assert torch.equal(data.test.images_NCHW, grey.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))
    assert torch.equal(grey[:, 0], grey[:, 2])
    first = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    known = {image.tobytes() for image in first}
    assert all(image.numpy().tobytes() in known for image in grey[:, 0].contiguous())
    assert int(data.test.images_NCHW.max()) == 255  # 16 of 16


def test_digits_split_does_not_depend_on_the_seed() -> None:
    one, other = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(one.test.images_NCHW, other.test.images_NCHW)


@pytest.mark.parametrize("limit", [50, 53])
def test_limits_are_balanced_seeded_and_nested(limit: int) -> None:
    data = load("digits", limit_train=limit, limit_test=20, holdout=0.0)
    counts = data.train.labels_N.bincount(minlength=10)
    assert len(data.train) == limit
    assert int(counts.max()) - int(counts.min()) == (0 if limit == 50 else 1)
    assert data.test.labels_N.bincount(minlength=10).tolist() == [2] * 10
    again = load("digits", limit_train=limit, holdout=0.0)
    assert torch.equal(data.train.index_N, again.train.index_N)
    other = load("digits", limit_train=limit, holdout=0.0, seed=1)
    assert not torch.equal(data.train.index_N, other.train.index_N)
    larger = load("digits", limit_train=200, holdout=0.0)
    assert set(data.train.index_N.tolist()) <= set(larger.train.index_N.tolist())
    assert data.train.index_N.diff().min() > 0


def test_index_is_the_position_in_the_full_split() -> None:
    whole, part = load("digits", holdout=0.0), load("digits", limit_train=40, holdout=0.3)
    for images in (part.train, part.holdout):
        assert torch.equal(images.images_NCHW, whole.train.images_NCHW[images.index_N])
        assert torch.equal(images.labels_N, whole.train.labels_N[images.index_N])


def test_holdout_is_balanced_and_never_trained_on() -> None:
    data = load("digits", limit_train=100, holdout=0.2)
    assert data.holdout.labels_N.bincount(minlength=10).tolist() == [2] * 10
    assert data.train.labels_N.bincount(minlength=10).tolist() == [8] * 10
    assert not set(data.train.index_N.tolist()) & set(data.holdout.index_N.tolist())


def test_holdout_takes_at_least_one_of_two_and_never_a_whole_class() -> None:
    assert load("digits", limit_train=20, holdout=0.01).holdout.labels_N.bincount().tolist() == [1] * 10
    assert len(load("digits", limit_train=10, holdout=0.5).holdout) == 0
    assert len(load("digits", limit_train=50, holdout=0.0).holdout) == 0


def test_mean_and_std_are_those_of_the_training_images() -> None:
    data = load("digits", limit_train=100, holdout=0.2)
    pixels = data.train.images_NCHW.double() / 255
    assert data.mean == tuple(round(float(value), 4) for value in pixels.mean(dim=(0, 2, 3)))
    assert data.std == tuple(round(float(value), 4) for value in pixels.std(dim=(0, 2, 3), correction=0))


def test_reference_says_which_images() -> None:
    data = load("digits", limit_train=30, limit_test=10, holdout=0.1)
    assert data.reference() == DataReference(
        spec="digits",
        fingerprint=data.fingerprint,
        limit_train=30,
        limit_test=10,
        classes=[str(digit) for digit in range(10)],
        train_images=20,
        holdout_images=10,
        test_images=10,
    )


def test_fingerprint_notices_pixels_labels_and_which_images(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}").fingerprint
    assert load(f"folder:{root}").fingerprint == before
    assert load(f"folder:{root}", limit_train=4).fingerprint != before
    image = Image.open(root / "test" / "dog" / "001.png")
    red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
    image.putpixel((0, 0), (red ^ 1, green, blue))
    image.save(root / "test" / "dog" / "001.png")
    pixel = load(f"folder:{root}").fingerprint
    assert pixel != before
    (root / "train" / "cat" / "000.png").rename(root / "train" / "dog" / "a.png")
    assert load(f"folder:{root}").fingerprint != pixel


def test_folder_reads_classes_in_order_and_any_format(make_folder: MakeFolder) -> None:
    root = make_folder(train={"b": 2, "a": 3}, test={"a": 1, "b": 2}, suffix=".bmp")
    Image.new("L", (32, 32), 7).save(root / "train" / "b" / "grey.JPEG")
    Image.new("LA", (32, 32), (9, 100)).save(root / "train" / "b" / "alpha.png")
    Image.new("P", (32, 32), 0).save(root / "train" / "b" / "palette.gif", transparency=0)
    (root / "train" / "b" / "notes.txt").write_text("no image")
    (root / "train" / "b" / ".hidden.png").write_text("no image")
    data = load(f"folder:{root}", holdout=0.0)
    assert data.classes == ["a", "b"]
    assert data.train.labels_N.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    first = torch.from_numpy(np.asarray(Image.open(root / "train" / "a" / "000.bmp")).copy()).permute(2, 0, 1)
    assert torch.equal(data.train.images_NCHW[0], first)
    assert set(data.train.images_NCHW[5].flatten().tolist()) == {9}  # 000, 001, alpha, grey, palette: sorted by name


def test_val_serves_as_test(make_folder: MakeFolder) -> None:
    assert len(load(f"folder:{make_folder(test_name='val')}").test) == 6


def test_large_images_are_resized_and_cropped(make_folder: MakeFolder) -> None:
    root = make_folder(train={"a": 1, "b": 1}, test={"a": 1, "b": 1}, side=100)
    # Left half black, right half white: after Resize 256 of 600x300 and CenterCrop 224 the edge is in the middle.
    halves = np.zeros((300, 600, 3), dtype=np.uint8)
    halves[:, 300:] = 255
    Image.fromarray(halves).save(root / "train" / "a" / "000.png")
    data = load(f"folder:{root}", holdout=0.0)
    assert data.train.images_NCHW.shape == (2, 3, 224, 224)
    assert data.input_size == 224
    row = data.train.images_NCHW[0, 0, 112]
    assert set(row[:110].tolist()) == {0}
    assert set(row[114:].tolist()) == {255}


def test_decoded_images_are_kept_until_a_file_changes(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = load(f"folder:{root}", holdout=0.0)
    victim = root / "train" / "cat" / "001.png"
    status, size = victim.stat(), victim.stat().st_size
    victim.write_bytes(b"\0" * size)  # same size, and the same time below: the listing cannot tell
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(load(f"folder:{root}", holdout=0.0).train.images_NCHW, before.train.images_NCHW)
    limited = load(f"folder:{root}", limit_train=4, holdout=0.0)
    assert torch.equal(limited.train.images_NCHW, before.train.images_NCHW[limited.train.index_N])
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"001\.png: does not decode"):
        load(f"folder:{root}")


def test_damaged_cache_is_made_again(make_folder: MakeFolder, own_cache: Path) -> None:
    root = make_folder()
    before = load(f"folder:{root}").fingerprint
    files = list((own_cache / "images").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert load(f"folder:{root}").fingerprint == before


def test_an_unwritable_cache_is_only_a_warning(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load(f"folder:{make_folder()}").test) == 6
    assert "not kept for the next time" in capsys.readouterr().err


def test_only_wanted_images_are_decoded(make_folder: MakeFolder) -> None:
    root = make_folder(train={"a": 20, "b": 20}, test={"a": 1, "b": 1})
    chosen = set(load(f"folder:{root}", limit_train=4, holdout=0.0).train.index_N.tolist())
    for position in set(range(40)) - chosen - {0}:  # the first image tells the size of all
        (root / "train" / "ab"[position // 20] / f"{position % 20:03d}.png").write_bytes(b"broken")
    assert len(load(f"folder:{root}", limit_train=4, holdout=0.0).train) == 4


def test_a_folder_without_training_images_can_only_be_tested_on(make_folder: MakeFolder) -> None:
    root = make_folder(train={})
    data = load(f"folder:{root}", training=False)
    assert (len(data.train), len(data.holdout), len(data.test)) == (0, 0, 6)
    with pytest.raises(UserError, match="no train/ folder"):
        load(f"folder:{root}")
    with pytest.raises(UserError, match="no training images"):
        _ = data.mean


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"unknown data set 'digit'; did you mean 'digits'"),
        ("cifar", r"did you mean 'cifar10"),
        ("folder", r"write --data folder:DIR"),
        ("imagenet100", r"write --data imagenet100:DIR"),
        ("imagenet", r"write --data imagenet:DIR"),
        ("digits:/x", r"take no folder"),
        ("folder:/nowhere/at/all", r"no folder /nowhere/at/all"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(spec)
    assert "\n" not in str(raised.value)


def test_bad_folders(make_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsorted" / "train").mkdir(parents=True)
    (tmp_path / "unsorted" / "test").mkdir()
    for root, message in [
        (tmp_path / "empty", r"no test/ or val/"),
        (tmp_path / "unsorted", r"no class folders"),
        (make_folder(train={"a": 2}, test={"a": 2}, name="one"), r"at least two"),
        (make_folder(train={"a": 2, "b": 0}, test={"a": 1, "b": 1}, name="hollow"), r"train/b: holds no images"),
        (make_folder(train={"a": 2, "b": 2}, test={"a": 1, "c": 1}, name="other"), r"different class folders \(b, c\)"),
        (make_folder(side=4, name="tiny"), r"at least 8x8"),
    ]:
        with pytest.raises(UserError, match=message):
            load(f"folder:{root}")


def test_an_image_of_another_size_is_named(make_folder: MakeFolder) -> None:
    root = make_folder()
    Image.new("RGB", (40, 32)).save(root / "train" / "dog" / "003.png")
    with pytest.raises(UserError, match=r"dog/003\.png: is 40x32, the set's first image is 32x32"):
        load(f"folder:{root}")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "deep"])
def test_an_image_that_does_not_decode_is_named(make_folder: MakeFolder, damage: str) -> None:
    root = make_folder()
    victim = root / "test" / "cat" / "002.png"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-800])
    elif damage == "deep":
        Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(victim)
    else:
        victim.write_bytes(b"not an image" if damage == "text" else b"")
    with pytest.raises(UserError, match=r"test/cat/002\.png: (does not decode|not an 8-bit)"):
        load(f"folder:{root}")


@pytest.mark.parametrize("limit", [500, 900])  # above twice the limit Pillow raises, between it only warns
def test_an_image_bomb_is_refused(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    root = make_folder()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"000\.png: refused as an image bomb"):
        load(f"folder:{root}")


def test_more_than_memory_is_refused(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnascl_cli.data.decode._free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"GiB of memory.*--limit-train"):
        load(f"folder:{make_folder()}")


def test_cifar_is_downloaded_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def no_network(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(UserError, match=r"--data cifar10: not found under .*no route to host.*folder:DIR"):
        load(f"cifar10:{tmp_path / 'cifar'}")
