"""Values kept in a device's memory: the same as in files, brought there once an epoch, and nobody waits in a step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rnascl_cli.teachers.device_store import DeviceStore, free_memory
from rnascl_cli.teachers.disk_store import ArrayRecord, DiskStore

pytestmark = pytest.mark.unit

VIEWS = 6
RECORD = ArrayRecord((2, 3), torch.float16)
DIGESTS = [bytes([number]) * 16 for number in range(5)]
CPU = torch.device("cpu")


def filed(folder: Path, digests: list[bytes] = DIGESTS, new_rows: int | None = None) -> DiskStore:
    return DiskStore.open(folder, RECORD, views=VIEWS, digests=digests, new_rows=new_rows)


def held(behind: DiskStore | None = None, digests: list[bytes] = DIGESTS, device: torch.device = CPU) -> DeviceStore:
    return DeviceStore(RECORD, views=VIEWS, digests=digests, device=device, behind=behind)


def values(count: int, first: float = 0.0) -> Tensor:
    return (torch.arange(count * 6, dtype=torch.float32) + first).reshape(count, 2, 3)


def test_what_is_put_is_read_in_any_order() -> None:
    store = held()
    cells_B = store.slots(torch.tensor([3, 0, 4]), torch.tensor([5, 0, 2]))
    assert not store.is_cached(cells_B).any()
    store.put(cells_B, values(3))
    assert store.is_cached(cells_B).all()
    assert torch.equal(store.read(cells_B.flip(0)), values(3).flip(0).half())
    assert not store.is_cached(store.slots(torch.tensor([3]), torch.tensor([4]))).any()
    store.flush()  # there are no files: nothing to do


def test_cells_of_different_views_and_images_are_different_and_twins_share_theirs() -> None:
    pairs = torch.tensor(list(itertools.product(range(5), range(VIEWS))))
    assert sorted(held().slots(pairs[:, 0], pairs[:, 1]).tolist()) == list(range(5 * VIEWS))
    twins = held(digests=[DIGESTS[0], DIGESTS[1], DIGESTS[0]])
    assert twins.rows_N.tolist() == [0, 1, 0]


def test_files_get_what_is_new_when_it_settles_and_a_later_run_finds_it(tmp_path: Path) -> None:
    store = held(filed(tmp_path))
    cells_B = store.slots(torch.tensor([3, 1]), torch.tensor([5, 0]))
    store.put(cells_B, values(2, 7.0))
    assert not filed(tmp_path).is_cached(torch.arange(5 * VIEWS)).any()
    store.flush()
    file = filed(tmp_path)
    assert file.is_cached(torch.arange(5 * VIEWS)).sum() == 2
    assert torch.equal(file.read(file.slots(torch.tensor([3, 1]), torch.tensor([5, 0]))), values(2, 7.0).half())
    later = held(filed(tmp_path))
    assert later.is_cached(cells_B).all()
    assert torch.equal(later.read(cells_B), values(2, 7.0).half())


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = held(filed(tmp_path))
    cells_B = first.slots(torch.tensor([0, 4]), torch.tensor([1, 2]))
    first.put(cells_B, values(2))
    first.flush()
    file = filed(tmp_path)
    read: list[int] = []

    def counted(cells_B: Tensor, read_file=file.read) -> Tensor:  # type: ignore[no-untyped-def]
        read.append(len(cells_B))
        found: Tensor = read_file(cells_B)
        return found

    monkeypatch.setattr(file, "read", counted)
    again = held(file)
    assert torch.equal(again.read(cells_B[:1]), values(1).half())
    assert torch.equal(again.read(cells_B), values(2).half())
    assert torch.equal(again.read(cells_B), values(2).half())
    assert read == [1, 1]
    again.flush()  # what came from the files is not written there again
    assert torch.equal(file.read(file.slots(torch.tensor([4]), torch.tensor([2]))), values(2)[1:].half())


def test_rows_of_the_files_are_other_ones(tmp_path: Path) -> None:
    """The files also hold other sets' images, and had no room for one of these."""
    filed(tmp_path, [DIGESTS[4], DIGESTS[2]])
    behind = filed(tmp_path, [DIGESTS[2], DIGESTS[3], DIGESTS[0]], new_rows=1)
    assert behind.rows_N.tolist() == [1, 2, -1]
    store = held(behind, [DIGESTS[2], DIGESTS[3], DIGESTS[0]])
    cells_B = store.slots(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]))
    store.put(cells_B, values(3))
    assert torch.equal(store.read(cells_B), values(3).half())  # in memory there is room for all
    store.flush()
    file = filed(tmp_path, [DIGESTS[3], DIGESTS[2]])
    assert torch.equal(file.read(file.slots(torch.tensor([1, 0]), torch.tensor([3, 4]))), values(2).half())
    assert held(filed(tmp_path, DIGESTS[:4]), DIGESTS[:4]).is_cached(torch.arange(4 * VIEWS)).sum() == 2


def test_nothing_in_a_step_looks_at_what_is_on_the_device() -> None:
    """Tensors on ``meta`` have no values: whatever would wait for a device fails on them."""
    meta = torch.device("meta")
    store = held(device=meta)
    cells_B = store.slots(torch.tensor([3, 0]), torch.tensor([5, 0]))
    store.put(cells_B, values(2).to(meta))
    assert store.is_cached(cells_B).all()
    assert store.read(cells_B).device == meta
    with pytest.raises((NotImplementedError, RuntimeError)):
        store.read(cells_B).sum().item()


def test_some_memory_is_free() -> None:
    assert 2**20 < free_memory(CPU) < 2**50
