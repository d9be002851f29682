"""Numbers kept for every view of every image, on disk, filled as they come.

With a countable augmentation (pad-4 crop and flip: 162 views) a run sees the same view of an image again and
again. What a frozen network says about it need be computed once. A store is a folder:

    images.bin   a 16-byte digest for each image that has a row, appended
    values.bin   rows x views x shape numbers, memory-mapped; sparse until filled
    seen.bin     rows x views bytes: 1 where the values are there and safely on disk

An image is found by its pixels, so subsets, seeds and held-out shares of one data set meet in the same rows,
and several processes may use a store at once: both would write the same numbers into a cell.

Shape suffixes: N images of a set, B cells asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IMAGES, VALUES, SEEN, LOCK = "images.bin", "values.bin", "seen.bin", "lock"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class ArrayRecord:
    """What is kept for one view: an array of this shape and type.

    Attributes:
        shape: Of the array.
        dtype: ``float16`` or ``float32``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def numpy(self) -> npt.DTypeLike:
        """The type in numpy's words."""
        return np.float16 if self.dtype == torch.float16 else np.float32


def missing_rows(folder: Path, digests: Sequence[bytes]) -> int:
    """Return how many of the images have no row in the store of a folder yet; the folder need not exist."""
    return len(set(digests) - set(_digests(folder)))


class DiskStore:
    """A store, open for reading and writing; made by :meth:`open`.

    Attributes:
        rows_N: The row of each image it was opened for, -1 where there was no room for one.
    """

    def __init__(self, folder: Path, record: ArrayRecord, *, views: int, rows_N: Tensor, total: int) -> None:
        self._folder, self._record, self._views = folder, record, views
        self.rows_N = rows_N
        cells = total * views
        shape = (cells, *record.shape)
        # A file is never shorter than its rows (see open), but an empty one cannot be mapped. The map is for reading:
        # on a full disk, storing to a hole through it would end the process without a word (SIGBUS).
        self._values: npt.NDArray[np.generic] = (
            np.memmap(folder / VALUES, dtype=record.numpy, mode="r", shape=shape) if cells else np.empty(shape)
        )
        self._seen: npt.NDArray[np.uint8] = np.fromfile(folder / SEEN, dtype=np.uint8, count=cells)
        self._fresh: list[npt.NDArray[np.int64]] = []
        self._waiting: list[tuple[npt.NDArray[np.int64], Tensor]] = []

    @classmethod
    def open(
        cls, folder: Path, record: ArrayRecord, *, views: int, digests: Sequence[bytes], new_rows: int | None = None
    ) -> DiskStore:
        """Open the store of a folder, making it or adding rows where images have none.

        Args:
            folder: Of the store.
            record: What is kept for a view; a folder holds one kind for ever.
            views: Number of views of an image.
            digests: The images, by :meth:`ImageSet.digests`.
            new_rows: At most so many rows are added; None for as many as are missing.

        Raises:
            OSError: The folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            known = _digests(folder)
            row_of = {digest: row for row, digest in enumerate(known)}
            added = [digest for digest in dict.fromkeys(digests) if digest not in row_of][:new_rows]
            row_of |= {digest: len(known) + place for place, digest in enumerate(added)}
            # Room first, then the digests that claim it: a crash in between leaves nothing that is half there.
            _grow(folder / VALUES, len(row_of) * views * record.bytes)
            _grow(folder / SEEN, len(row_of) * views, holes=False)
            with (folder / IMAGES).open("r+b" if known else "w+b") as file:
                file.truncate(len(known) * DIGEST_BYTES)
                file.seek(0, os.SEEK_END)
                file.write(b"".join(added))
        rows_N = torch.tensor([row_of.get(digest, -1) for digest in digests], dtype=torch.int64)
        return cls(folder, record, views=views, rows_N=rows_N, total=len(row_of))

    def slots(self, rows_B: Tensor, views_B: Tensor) -> Tensor:
        """Return the cell of each view of each image, -1 for images without a row.

        Args:
            rows_B: Images, as places among those the store was opened for.
            views_B: Numbers below the number of views.
        """
        store_rows_B = self.rows_N[rows_B]
        return torch.where(store_rows_B < 0, -1, store_rows_B * self._views + views_B)

    def is_cached(self, cells_B: Tensor) -> Tensor:
        """Return which cells are filled, as booleans."""
        found_B = cells_B >= 0
        marks_B = np.zeros(len(cells_B), dtype=np.bool_)
        marks_B[found_B.numpy()] = self._seen[cells_B[found_B].numpy()] == 1
        return torch.from_numpy(marks_B)

    def read(self, cells_B: Tensor) -> Tensor:
        """Return the values of filled cells, on the CPU."""
        return torch.from_numpy(np.take(self._values, cells_B.numpy(), axis=0))

    def put(self, cells_B: Tensor, values_B: Tensor) -> None:
        """Keep values; those of images without a row are dropped.

        What lies on another device stays there until :meth:`settle`, so that no step waits for a copy.

        Raises:
            OSError: The disk is full, or failed.
        """
        cells, kept = cells_B.numpy(), cells_B >= 0
        if not bool(kept.all()):
            cells, values_B = cells[kept.numpy()], values_B[kept.to(values_B.device)]
        if not len(cells):
            return
        if values_B.device.type == "cpu":
            self._write(cells, values_B)
        else:
            self._waiting.append((cells, values_B.to(self._record.dtype)))

    def _write(self, cells: npt.NDArray[np.int64], values_B: Tensor) -> None:
        numbers_B = np.ascontiguousarray(values_B.to(self._record.dtype).numpy())
        with (self._folder / VALUES).open("r+b", buffering=0) as file:
            for cell, numbers in zip(cells.tolist(), numbers_B, strict=True):
                file.seek(cell * self._record.bytes)
                _write_whole(file, numbers.tobytes())
        self._seen[cells] = 1
        self._fresh.append(cells)

    def flush(self) -> None:
        """Bring what is new to disk, and only then say that it is there; see what other processes have brought.

        Raises:
            OSError: The disk is full, or failed.
        """
        for cells, values_B in self._waiting:
            self._write(cells, values_B.cpu())
        self._waiting.clear()
        if not len(self._seen):
            return
        marks = np.memmap(self._folder / SEEN, dtype=np.uint8, mode="r+")
        if self._fresh:
            with (self._folder / VALUES).open("rb") as file:
                os.fsync(file.fileno())
            marks[np.concatenate(self._fresh)] = 1
            marks.flush()
        np.maximum(self._seen, marks[: len(self._seen)], out=self._seen)
        self._fresh.clear()


def _digests(folder: Path) -> list[bytes]:
    try:
        data = (folder / IMAGES).read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) - len(data) % DIGEST_BYTES  # a torn last digest claims nothing
    return [data[place : place + DIGEST_BYTES] for place in range(0, whole, DIGEST_BYTES)]


def _grow(path: Path, size: int, *, holes: bool = True) -> None:
    """Lengthen a file with zeros; without holes they take their place on the disk at once, or fail at once."""
    with path.open("ab") as file:
        if file.tell() >= size:
            return
        if holes:
            file.truncate(size)
        else:
            os.posix_fallocate(file.fileno(), 0, size)


def _write_whole(file: FileIO, data: bytes) -> None:
    """Write all of ``data``: a disk that fills up in the middle takes a part without an error."""
    done = 0
    while done < len(data):
        done += file.write(data[done:])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it when the process dies."""
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
