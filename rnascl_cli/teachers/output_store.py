"""Storage for the teacher's outputs: one array for each view of each training image.

A countable augmentation (pad-4 crop and flip has 162 views) shows the same view of an image again and again, and a
frozen network gives the same output each time. A store keeps these arrays in files, in the memory of the device, or in
both. The files are a folder:

    images.bin   a 16-byte digest for each image that has a row, appended
    values.bin   rows x views x shape numbers, memory-mapped; sparse until filled
    seen.bin     rows x views bytes: 1 where the values are there and safely on disk
    about.json   what the values depend on besides the images

Images are identified by their pixels, so subsets, seeds and held-out splits of one data set share rows. Several
processes may use a folder at once: they would write the same numbers to the same place.

Shape suffixes: N images of the set, U unique images, B slots of a batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnascl_cli.artifacts.store import write_text
from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.core.file_lock import waiting_lock

IMAGES, VALUES, SEEN, ABOUT, LOCK = "images.bin", "values.bin", "seen.bin", "about.json", "lock"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class StoredKind:
    """One kind of output: logits, or maps.

    Attributes:
        about: Everything that the values depend on besides the images, as JSON-able values.
        views: Number of views of an image.
        shape: Shape of the array for one view.
        dtype: ``float16`` or ``float32``.
    """

    about: dict[str, Any]
    views: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def view_bytes(self) -> int:
        """Size of the array for one view."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def numpy_dtype(self) -> npt.DTypeLike:
        """The type in numpy."""
        return np.float16 if self.dtype == torch.float16 else np.float32


class OutputStore:
    """Arrays for all views of a set's images.

    An array is addressed by its slot: row of the image among the unique digests, times ``views``, plus the view.
    Which slots are filled is known on the CPU, so no step waits for the device.

    Args:
        kind: What is stored for a view; a folder holds one kind forever.
        digests: The images, by :meth:`ImageSet.digests`; identical images share their slots.
        folder: Where the files are; None to keep nothing after the run.
        new_rows: Add at most this many rows to the files; None for as many as are missing.
        device: Where values are also kept while the run lasts, which takes the memory for all of them at once; None
            to read them from the files each time.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(
        self,
        kind: StoredKind,
        digests: Sequence[bytes],
        *,
        folder: Path | None = None,
        new_rows: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._kind, self._views, self._folder, self._device = kind, kind.views, folder, device
        unique = list(dict.fromkeys(digests))
        slots = len(unique) * kind.views
        self._cached: npt.NDArray[np.bool_] = np.zeros(slots, dtype=np.bool_)
        self._unsaved: list[tuple[npt.NDArray[np.int64], Tensor | None]] = []  # None: they are on the device
        self._unmarked: list[npt.NDArray[np.int64]] = []  # slots of the files
        # The row of each image in the files, which hold other sets' images too; -1 without files, or without room.
        self._file_row_U: npt.NDArray[np.int64] = np.full(len(unique), -1, dtype=np.int64)
        if folder is not None:
            row_of = _add_rows(folder, kind, unique, new_rows)
            self._file_row_U[:] = [row_of.get(digest, -1) for digest in unique]
            shape = (len(row_of) * kind.views, *kind.shape)
            # An empty file cannot be mapped. The map is for reading only: on a full disk, writing to a hole through it
            # would end the process without a message (SIGBUS).
            self._file_values: npt.NDArray[np.generic] = (
                np.memmap(folder / VALUES, dtype=kind.numpy_dtype, mode="r", shape=shape) if row_of else np.empty(shape)
            )
            self._merge_marks(np.fromfile(folder / SEEN, dtype=np.uint8))
        if device is not None:
            self._device_values = torch.empty((slots, *kind.shape), dtype=kind.dtype, device=device)
            self._on_device: npt.NDArray[np.bool_] = np.zeros(slots, dtype=np.bool_)

    def is_cached(self, slots_B: Tensor) -> Tensor:
        """Return which slots are filled, as booleans on the CPU."""
        return torch.from_numpy(self._cached[slots_B.numpy()])

    def read(self, slots_B: Tensor) -> Tensor:
        """Return the values of filled slots: on the store's device, or on the CPU without one."""
        if self._device is None:
            return self._read_files(slots_B)
        missing_B = slots_B[torch.from_numpy(~self._on_device[slots_B.numpy()])]
        if len(missing_B):
            self._write_device(missing_B, to_device_async(self._read_files(missing_B), self._device))
        return self._device_values.index_select(0, to_device_async(slots_B, self._device))

    def put(self, slots_B: Tensor, values_B: Tensor) -> None:
        """Store values; without device memory, those of images that have no row in the files are dropped.

        Nothing here waits for a device: values there are written to the files by :meth:`flush`.

        Raises:
            OSError: The disk is full, or failed.
        """
        slots = slots_B.numpy()
        if self._device is not None:
            self._write_device(slots_B, values_B.to(self._kind.dtype))
            self._cached[slots] = True
            self._unsaved.append((slots, None))
        elif values_B.device.type == "cpu":
            self._write_files(slots, values_B)
        else:
            self._unsaved.append((slots, values_B.to(self._kind.dtype)))

    def flush(self) -> None:
        """Write new values to the files, mark them there once they are on disk, and read other processes' marks.

        Raises:
            OSError: The disk is full, or failed.
        """
        if self._folder is None:
            self._unsaved.clear()
            return
        for slots, values_B in self._unsaved:
            if values_B is None:
                assert self._device is not None
                values_B = self._device_values.index_select(0, to_device_async(torch.from_numpy(slots), self._device))
            self._write_files(slots, values_B.cpu())
        self._unsaved.clear()
        if (self._folder / SEEN).stat().st_size == 0:  # cannot be mapped
            return
        marks = np.memmap(self._folder / SEEN, dtype=np.uint8, mode="r+")
        if self._unmarked:
            with (self._folder / VALUES).open("rb") as file:
                os.fsync(file.fileno())
            marks[np.concatenate(self._unmarked)] = 1
            marks.flush()
            self._unmarked.clear()
        self._merge_marks(marks)

    def _file_slots(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        rows = self._file_row_U[slots // self._views]
        return np.where(rows < 0, -1, rows * self._views + slots % self._views)

    def _merge_marks(self, marks: npt.NDArray[np.uint8]) -> None:
        has_row_U = self._file_row_U >= 0
        rows = marks[: len(marks) // self._views * self._views].reshape(-1, self._views)
        self._cached.reshape(-1, self._views)[has_row_U] |= rows[self._file_row_U[has_row_U]] == 1

    def _read_files(self, slots_B: Tensor) -> Tensor:
        return torch.from_numpy(np.take(self._file_values, self._file_slots(slots_B.numpy()), axis=0))

    def _write_files(self, slots: npt.NDArray[np.int64], values_B: Tensor) -> None:
        """Write values from the CPU; they are marked in the files by :meth:`flush`."""
        assert self._folder is not None
        file_slots = self._file_slots(slots)
        has_row_B = file_slots >= 0
        numbers_B = values_B.to(self._kind.dtype).numpy()
        with (self._folder / VALUES).open("r+b", buffering=0) as file:
            for slot, numbers in zip(file_slots[has_row_B].tolist(), numbers_B[has_row_B], strict=True):
                file.seek(slot * self._kind.view_bytes)
                _write_all(file, numbers.tobytes())
        self._cached[slots[has_row_B]] = True
        self._unmarked.append(file_slots[has_row_B])

    def _write_device(self, slots_B: Tensor, values_B: Tensor) -> None:
        assert self._device is not None
        self._device_values.index_copy_(0, to_device_async(slots_B, self._device), values_B)
        self._on_device[slots_B.numpy()] = True


def missing_rows(folder: Path, digests: Sequence[bytes]) -> int:
    """Return how many of the images have no row in a folder yet; the folder need not exist."""
    return len(set(digests) - set(_read_digests(folder)))


def _add_rows(folder: Path, kind: StoredKind, digests: Sequence[bytes], new_rows: int | None) -> dict[bytes, int]:
    """Create the files, or extend them for images without a row; return the row of every image in them."""
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / LOCK):
        known = _read_digests(folder)
        row_of = {digest: row for row, digest in enumerate(known)}
        added = [digest for digest in digests if digest not in row_of][:new_rows]
        row_of |= {digest: len(known) + place for place, digest in enumerate(added)}
        # Space first, then the digests that claim it: a crash in between leaves nothing half done.
        slots = len(row_of) * kind.views
        with (folder / VALUES).open("ab") as file:
            file.truncate(max(file.tell(), slots * kind.view_bytes))
        with (folder / SEEN).open("ab") as file:
            # Zeros, not a hole: this file is written through a memory map, which must not run out of disk.
            file.write(bytes(max(0, slots - file.tell())))
        with (folder / IMAGES).open("r+b" if known else "w+b") as file:
            file.truncate(len(known) * DIGEST_BYTES)
            file.seek(0, os.SEEK_END)
            file.write(b"".join(added))
    if not (folder / ABOUT).is_file():
        write_text(folder / ABOUT, json.dumps(kind.about, indent=2) + "\n")
    return row_of


def _read_digests(folder: Path) -> list[bytes]:
    try:
        data = (folder / IMAGES).read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) - len(data) % DIGEST_BYTES  # a crash may leave part of a digest at the end
    return [data[place : place + DIGEST_BYTES] for place in range(0, whole, DIGEST_BYTES)]


def _write_all(file: FileIO, data: bytes) -> None:
    """Write all of ``data``: a disk that fills up meanwhile takes a part of it without an error."""
    done = 0
    while done < len(data):
        done += file.write(data[done:])
