"""Stored outputs for views of images: found again by pixels, marked once they are on disk, the same on a device."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rnascl_cli.teachers.output_cache import free_memory
from rnascl_cli.teachers.output_store import IMAGES, SEEN, OutputStore, StoredKind, missing_rows

pytestmark = pytest.mark.unit

VIEWS = 6
KIND = StoredKind({"kind": "maps"}, VIEWS, (2, 3), torch.float16)
DIGESTS = [bytes([number]) * 16 for number in range(5)]
CPU = torch.device("cpu")
ALL = torch.arange(len(DIGESTS) * VIEWS)


def on_disk(folder: Path, digests: list[bytes] = DIGESTS, new_rows: int | None = None) -> OutputStore:
    return OutputStore(KIND, digests, folder=folder, new_rows=new_rows)


def on_device(
    folder: Path | None = None, digests: list[bytes] = DIGESTS, new_rows: int | None = None, device: torch.device = CPU
) -> OutputStore:
    return OutputStore(KIND, digests, folder=folder, new_rows=new_rows, device=device)


def slots(*image_and_view: tuple[int, int]) -> Tensor:
    return torch.tensor([image * VIEWS + view for image, view in image_and_view])


def values(count: int, first: float = 0.0) -> Tensor:
    return (torch.arange(count * 6, dtype=torch.float32) + first).reshape(count, 2, 3)


def test_a_kind_knows_the_size_of_a_view() -> None:
    assert KIND.view_bytes == 12
    assert StoredKind({}, VIEWS, (10,), torch.float32).view_bytes == 40


@pytest.mark.parametrize("place", ["disk", "device", "device and disk"])
def test_stored_values_are_read_in_any_order(tmp_path: Path, place: str) -> None:
    store = {"disk": on_disk, "device": lambda _: on_device(), "device and disk": on_device}[place](tmp_path)
    slots_B = slots((3, 5), (0, 0), (4, 2))
    assert not store.is_cached(slots_B).any()
    store.put(slots_B, values(3))
    assert store.is_cached(slots_B).all()
    assert torch.equal(store.read(slots_B.flip(0)), values(3).flip(0).half())
    assert store.is_cached(ALL).sum() == 3
    store.flush()
    assert torch.equal(store.read(slots_B), values(3).half())


@pytest.mark.parametrize("open_store", [on_disk, on_device])
def test_a_later_run_finds_flushed_values_and_only_those(
    tmp_path: Path, open_store: Callable[[Path], OutputStore]
) -> None:
    store = on_disk(tmp_path)
    store.put(slots((1, 2)), values(1, 7.0))
    store.flush()
    store.put(slots((2, 2)), values(1, 9.0))  # never flushed: the run was killed
    later = open_store(tmp_path)
    assert later.is_cached(slots((1, 2), (2, 2))).tolist() == [True, False]
    assert torch.equal(later.read(slots((1, 2))), values(1, 7.0).half())


def test_device_values_reach_the_files_at_flush(tmp_path: Path) -> None:
    store = on_device(tmp_path)
    store.put(slots((3, 5), (1, 0)), values(2, 7.0))
    assert not on_disk(tmp_path).is_cached(ALL).any()
    store.flush()
    later = on_disk(tmp_path)
    assert later.is_cached(ALL).sum() == 2
    assert torch.equal(later.read(slots((3, 5), (1, 0))), values(2, 7.0).half())


@pytest.mark.parametrize("open_store", [on_disk, on_device])
def test_values_of_a_concurrent_run_are_found_after_flush(
    tmp_path: Path, open_store: Callable[[Path], OutputStore]
) -> None:
    here, there = open_store(tmp_path), on_disk(tmp_path)
    slots_B = slots((1, 2), (3, 0))
    there.put(slots_B, values(2, 5.0))
    there.flush()
    assert not here.is_cached(slots_B).any()
    here.flush()
    assert here.is_cached(slots_B).all()
    assert torch.equal(here.read(slots_B), values(2, 5.0).half())


def test_an_image_is_found_by_its_pixels_in_another_set(tmp_path: Path) -> None:
    store = on_disk(tmp_path, DIGESTS[:3])
    store.put(slots((2, 0)), values(1, 3.0))
    store.flush()
    assert missing_rows(tmp_path, [DIGESTS[4], DIGESTS[2], DIGESTS[4]]) == 1
    other = on_disk(tmp_path, [DIGESTS[4], DIGESTS[2]])
    assert other.is_cached(slots((0, 0), (1, 0))).tolist() == [False, True]
    assert torch.equal(other.read(slots((1, 0))), values(1, 3.0).half())
    # The first store continues while another one has extended the files.
    store.put(slots((0, 1)), values(1))
    store.flush()
    assert on_disk(tmp_path, DIGESTS[:1]).is_cached(slots((0, 1))).all()


def test_files_that_hold_other_images_and_have_no_room_for_all(tmp_path: Path) -> None:
    on_disk(tmp_path, [DIGESTS[4], DIGESTS[2]])
    images = [DIGESTS[2], DIGESTS[3], DIGESTS[0]]
    store = on_device(tmp_path, images, new_rows=1)
    slots_B = slots((0, 3), (1, 4), (2, 5))
    store.put(slots_B, values(3))
    assert torch.equal(store.read(slots_B), values(3).half())  # the device has room for all
    store.flush()
    later = on_disk(tmp_path, images)
    assert later.is_cached(slots_B).tolist() == [True, True, False]
    assert torch.equal(later.read(slots_B[:2]), values(2).half())


@pytest.mark.parametrize("new_rows", [0, 2])
def test_without_room_some_images_are_not_stored(tmp_path: Path, new_rows: int) -> None:
    store = on_disk(tmp_path, new_rows=new_rows)
    store.put(slots((4, 3), (1, 3)), values(2))
    assert store.is_cached(slots((4, 3), (1, 3))).tolist() == [False, new_rows == 2]
    store.flush()
    assert (tmp_path / SEEN).stat().st_size == new_rows * VIEWS
    if new_rows:
        assert torch.equal(store.read(slots((1, 3))), values(2)[1:].half())


def test_a_torn_digest_is_ignored(tmp_path: Path) -> None:
    on_disk(tmp_path, DIGESTS[:2])
    with (tmp_path / IMAGES).open("ab") as file:
        file.write(b"torn")
    store = on_disk(tmp_path)
    store.put(ALL, values(len(ALL)))
    assert torch.equal(store.read(ALL), values(len(ALL)).half())
    assert (tmp_path / IMAGES).read_bytes() == b"".join(DIGESTS)


def test_a_step_does_not_wait_for_the_device() -> None:
    """Tensors on ``meta`` have no values: whatever would wait for a device fails on them."""
    meta = torch.device("meta")
    store = on_device(device=meta)
    slots_B = slots((3, 5), (0, 0))
    store.put(slots_B, values(2).to(meta))
    assert store.is_cached(slots_B).all()
    assert store.read(slots_B).device == meta
    with pytest.raises((NotImplementedError, RuntimeError)):
        store.read(slots_B).sum().item()


def test_the_free_memory_without_the_names_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < free_memory(CPU) < 2**50
    names = {name: number for name, number in os.sysconf_names.items() if name != "SC_AVPHYS_PAGES"}
    monkeypatch.setattr(os, "sysconf_names", names)  # as on macOS
    assert 2**20 < free_memory(CPU) < 2**50


def test_files_are_made_without_posix_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    on_disk(tmp_path)
    assert (tmp_path / SEEN).read_bytes() == bytes(len(ALL))
    assert (tmp_path / SEEN).stat().st_blocks > 0


def test_every_slot_is_different(tmp_path: Path) -> None:
    pairs = list(itertools.product(range(5), range(VIEWS)))
    store = on_disk(tmp_path)
    store.put(slots(*pairs), values(len(pairs)))
    assert torch.equal(store.read(slots(*pairs)), values(len(pairs)).half())
