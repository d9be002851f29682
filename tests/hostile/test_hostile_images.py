"""Images that swell, lie or are none; sets without images; CIFAR's pickles, doctored."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets import CIFAR10

from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data, load_data
from rnascl_cli.recipes.settings import DataSettings
from tests.command import done, rnascl
from tests.conftest import FAST
from tests.hostile.conftest import Untouched

pytestmark = pytest.mark.pipeline


def pixels(side: int = 32) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_claiming(side: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    data = bytearray(saved(pixels(), "JPEG"))
    at = data.find(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def text_bomb(kind: bytes) -> bytes:
    """A PNG of 32x32 whose text or colour profile unpacks to 100 MB."""
    good = saved(pixels(), "PNG")
    at = good.find(b"IDAT") - 4
    return good[:at] + chunk(kind, b"c\0\0" + zlib.compress(bytes(100 * 2**20), 9)) + good[at:]


def icon(inner: Image.Image) -> bytes:
    """An icon that claims 32x32 and holds another image."""
    data = saved(inner, "PNG")
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(data), 22) + data


REFUSED: dict[str, tuple[int, str, Callable[[], bytes], str]] = {  # side of the others, suffix, bytes, message
    "giant png": (32, ".png", lambda: png(100_000, 100_000), "refused as an image bomb"),
    "giant png among photographs": (100, ".png", lambda: png(2**31 - 1, 2**31 - 1), "refused as an image bomb"),
    "giant jpeg": (100, ".jpg", lambda: jpeg_claiming(65_500), "refused as an image bomb"),
    "one pixel wide": (100, ".png", lambda: saved(Image.new("RGB", (1, 65_500)), "PNG"), "too thin for a photograph"),
    "one pixel high": (100, ".png", lambda: saved(Image.new("RGB", (65_500, 1)), "PNG"), "too thin for a photograph"),
    "text bomb": (32, ".png", lambda: text_bomb(b"zTXt"), "does not decode"),
    "profile bomb": (32, ".png", lambda: text_bomb(b"iCCP"), "does not decode"),
    "icon of another size": (32, ".ico", lambda: icon(Image.new("RGB", (600, 600))), "another size|is 600x600"),
    "nothing": (32, ".png", lambda: png(0, 0), "does not decode"),
    "cut gif": (32, ".gif", lambda: saved(pixels().convert("P"), "GIF")[:300], "does not decode"),
    "16-bit grey": (
        32,
        ".png",
        lambda: saved(Image.fromarray(np.full((32, 32), 40_000, np.uint16)), "PNG"),
        "not an 8-bit image",
    ),
    "floats": (32, ".tif", lambda: saved(Image.fromarray(np.ones((32, 32), np.float32)), "TIFF"), "not an 8-bit image"),
    "a program": (32, ".png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "does not decode"),
    "a page": (32, ".png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "does not decode"),
}


def write_set(root: Path, side: int) -> Path:
    """A folder of two classes with two images each, to train and to test on; returns where one more would go."""
    for split in ("train", "test"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                (root / split / name / f"{index}.png").write_bytes(saved(pixels(side), "PNG"))
    return root / "train" / "b"


def load(root: Path) -> Data:
    """The set without a holdout."""
    return load_data(DataSettings(spec=f"folder:{root}", holdout=0.0), seed=0)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Image was not the expected size:UserWarning")
def test_an_image_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    side, suffix, make, message = REFUSED[case]
    (write_set(tmp_path / "set", side) / f"x{suffix}").write_bytes(make())
    with pytest.raises(UserError, match=rf"train/b/x\{suffix}: .*({message})"):
        load(tmp_path / "set")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nowhere"])
def test_what_has_an_images_name_only(tmp_path: Path, kind: str) -> None:
    victim = write_set(tmp_path / "set", 32) / "x.png"
    match kind:
        case "pipe":
            os.mkfifo(victim)
        case "folder":
            victim.mkdir()
        case "device":
            victim.symlink_to("/dev/zero")
        case "nowhere":
            victim.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"train/b/x\.png: cannot be read"):
        load(tmp_path / "set")


def test_through_the_command_line(world: Path, untouched: Untouched) -> None:
    folder = write_set(world / "set", 32)
    (folder / "x.png").write_bytes(png(100_000, 100_000))
    search = ("search", "--space", "S3", "--paradigm", "standard", "--data", "folder:set", *FAST, "--out", "new")
    for command in (search, ("attack", "r8.safetensors", "--data", "folder:set", "--out", "new")):
        assert "refused as an image bomb" in untouched(*search) or command
    (folder / "x.png").unlink()
    (world / "bomb.png").write_bytes(png(100_000, 100_000))
    assert "refused as an image bomb" in untouched("report", "train", "--image", "bomb.png", "--out", "new")


@pytest.mark.parametrize(
    "mode", ["CMYK", "L", "1", "P", "RGBA", "LA", "YCbCr", "LAB", "animated", "16-bit colour", "rotated"]
)
def test_what_decodes_becomes_rgb_as_torchvision_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The first picture of an animation; the high bytes of 16-bit colour; rotations in EXIF are not applied."""
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    folder = write_set(tmp_path / "set", 32)
    picture = pixels()
    expected = np.asarray(picture)
    match mode:
        case "CMYK" | "YCbCr":
            data, suffix = saved(picture.convert(mode), "TIFF"), ".tif"
        case "LAB":
            data, suffix = saved(Image.merge("LAB", [picture.getchannel(0)] * 3), "TIFF"), ".tif"
        case "animated":
            other = Image.new("RGB", (32, 32))
            data, suffix = saved(picture, "WEBP", lossless=True, save_all=True, append_images=[other]), ".webp"
        case "16-bit colour":
            rows = np.repeat(expected, 2, axis=2)
            rows[:, :, 1::2] = 255  # low bytes
            data, suffix = (
                png(32, 32, depth=16, data=zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))),
                ".png",
            )
        case "rotated":
            exif = Image.Exif()
            exif[0x0112] = 6
            data, suffix = saved(picture, "PNG", exif=exif), ".png"
        case _:
            data, suffix = saved(picture.convert(mode), "PNG"), ".png"
    (folder / f"x{suffix}").write_bytes(data)
    found = load(tmp_path / "set").train.images_NCHW[-1].permute(1, 2, 0).numpy()
    assert found.shape == (32, 32, 3)
    if mode in ("animated", "16-bit colour", "rotated", "RGBA"):
        assert np.array_equal(found, expected)
    elif mode != "LAB":
        with Image.open(io.BytesIO(data)) as again:
            assert np.array_equal(found, np.asarray(again.convert("RGB")))


@pytest.mark.parametrize("change", ["floats", "another shape", "another name"])
def test_a_cache_of_other_things_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set", 32)
    before = load(tmp_path / "set").fingerprint
    for path in (tmp_path / "cache" / "images").iterdir():
        kept = load_file(path)["pixels"].clone()
        made = {"floats": kept.float(), "another shape": kept[:, :, :16].contiguous(), "another name": kept}[change]
        save_file({"x" if change == "another name" else "pixels": made}, path)
    assert load(tmp_path / "set").fingerprint == before


def doctored(root: Path, mark: Path) -> None:
    """A CIFAR-10 folder whose first batch runs code when unpickled, and whose labels go beyond the classes."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(mark),)

    batch = {"data": np.zeros((10, 3072), np.uint8), "labels": [10**6] * 10, "x": Evil()}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": ["a", "b"], "x": Evil()}))


def test_a_doctored_cifar_is_not_unpickled(
    world: Path, untouched: Untouched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    doctored(world / "cifar", tmp_path / "mark")
    for command in (
        ("search", "--space", "S3", "--paradigm", "standard", "--data", "cifar10:cifar", *FAST, "--out", "new"),
        ("attack", "r8.safetensors", "--data", "cifar10:cifar", "--out", "new"),
    ):
        outcome = rnascl(*command)
        assert outcome.code == 2
        assert "not as published (by MD5)" in outcome.err
    assert not (tmp_path / "mark").exists()


def test_classes_of_teacher_and_images_that_differ(world: Path, untouched: Untouched) -> None:
    write_set(world / "set", 32)
    assert "classes" in untouched("attack", "r8.safetensors", "--data", "folder:set", "--out", "new")
    assert "classes" in untouched("train", "search", "--data", "folder:set", *FAST, "--out", "new")
    done("derive", "search")


def test_labels_and_pixels_are_those_of_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set", 32)
    data = load(tmp_path / "set")
    assert data.train.labels_N.tolist() == [0, 0, 1, 1]
    assert data.train.images_NCHW.dtype == torch.uint8
