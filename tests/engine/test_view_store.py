"""Values kept for views of images: found again by pixels, marked only once they are on disk."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rnascl_cli.teachers.disk_store import IMAGES, SEEN, ArrayRecord, DiskStore, missing_rows

pytestmark = pytest.mark.unit

VIEWS = 6
RECORD = ArrayRecord((2, 3), torch.float16)
DIGESTS = [bytes([number]) * 16 for number in range(5)]


def opened(folder: Path, digests: list[bytes] = DIGESTS, new_rows: int | None = None) -> DiskStore:
    return DiskStore.open(folder, RECORD, views=VIEWS, digests=digests, new_rows=new_rows)


def values(count: int, first: float = 0.0) -> Tensor:
    return (torch.arange(count * 6, dtype=torch.float32) + first).reshape(count, 2, 3)


def test_a_record_knows_its_size() -> None:
    assert RECORD.bytes == 12
    assert ArrayRecord((10,), torch.float32).bytes == 40


def test_what_is_put_is_read_in_any_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    cells_B = store.slots(torch.tensor([3, 0, 4]), torch.tensor([5, 0, 2]))
    assert not store.is_cached(cells_B).any()
    store.put(cells_B, values(3))
    assert store.is_cached(cells_B).all()
    assert torch.equal(store.read(cells_B.flip(0)), values(3).flip(0).half())
    assert not store.is_cached(store.slots(torch.tensor([3]), torch.tensor([4]))).any()


def test_cells_of_different_views_and_images_are_different(tmp_path: Path) -> None:
    store = opened(tmp_path)
    pairs = torch.tensor(list(itertools.product(range(5), range(VIEWS))))
    assert sorted(store.slots(pairs[:, 0], pairs[:, 1]).tolist()) == list(range(5 * VIEWS))


def test_a_later_run_finds_what_was_settled_and_only_that(tmp_path: Path) -> None:
    store = opened(tmp_path)
    first = store.slots(torch.tensor([1]), torch.tensor([2]))
    second = store.slots(torch.tensor([2]), torch.tensor([2]))
    store.put(first, values(1, 7.0))
    store.flush()
    store.put(second, values(1, 9.0))  # never settled: the run died
    again = opened(tmp_path)
    assert again.is_cached(torch.cat([first, second])).tolist() == [True, False]
    assert torch.equal(again.read(first), values(1, 7.0).half())


def test_a_run_beside_this_one_is_seen_at_the_next_settling(tmp_path: Path) -> None:
    here, there = opened(tmp_path), opened(tmp_path)
    cells_B = there.slots(torch.tensor([1, 3]), torch.tensor([2, 0]))
    there.put(cells_B, values(2, 5.0))
    there.flush()
    assert not here.is_cached(cells_B).any()
    here.flush()
    assert here.is_cached(cells_B).all()
    assert torch.equal(here.read(cells_B), values(2, 5.0).half())


def test_an_image_is_found_by_its_pixels_in_another_set(tmp_path: Path) -> None:
    store = opened(tmp_path, DIGESTS[:3])
    store.put(store.slots(torch.tensor([2]), torch.tensor([0])), values(1, 3.0))
    store.flush()
    assert missing_rows(tmp_path, [DIGESTS[4], DIGESTS[2], DIGESTS[4]]) == 1
    other = opened(tmp_path, [DIGESTS[4], DIGESTS[2]])
    cells_B = other.slots(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert other.is_cached(cells_B).tolist() == [False, True]
    assert torch.equal(other.read(cells_B[1:]), values(1, 3.0).half())
    # The first store goes on beside the one that made the file longer.
    more = store.slots(torch.tensor([0]), torch.tensor([1]))
    store.put(more, values(1))
    store.flush()
    assert opened(tmp_path, DIGESTS[:1]).is_cached(torch.tensor([1])).all()


def test_twins_share_a_row(tmp_path: Path) -> None:
    store = opened(tmp_path, [DIGESTS[0], DIGESTS[1], DIGESTS[0]])
    assert store.rows_N.tolist() == [0, 1, 0]


def test_without_room_some_images_have_no_row(tmp_path: Path) -> None:
    store = opened(tmp_path, new_rows=2)
    assert store.rows_N.tolist() == [0, 1, -1, -1, -1]
    cells_B = store.slots(torch.tensor([4, 1]), torch.tensor([3, 3]))
    assert cells_B.tolist() == [-1, VIEWS + 3]
    store.put(cells_B, values(2))
    assert store.is_cached(cells_B).tolist() == [False, True]
    assert torch.equal(store.read(cells_B[1:]), values(2)[1:].half())
    assert (tmp_path / SEEN).stat().st_size == 2 * VIEWS


def test_without_any_room_nothing_is_kept(tmp_path: Path) -> None:
    store = opened(tmp_path, new_rows=0)
    cells_B = store.slots(torch.tensor([0]), torch.tensor([0]))
    store.put(cells_B, values(1))
    store.flush()
    assert not store.is_cached(cells_B).any()


def test_a_torn_digest_claims_nothing(tmp_path: Path) -> None:
    opened(tmp_path, DIGESTS[:2])
    with (tmp_path / IMAGES).open("ab") as file:
        file.write(b"torn")
    store = opened(tmp_path)
    assert store.rows_N.tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / IMAGES).stat().st_size == 5 * 16
