"""Numbers kept for every view of every image in the memory of the device that asks for them.

A :class:`~rnascl_cli.teachers.disk_store.DiskStore` reads files: a step on a GPU then waits for pages, and for copies
over the bus. Here values stay where they were made. Which cells are filled is known on the CPU, where images are drawn,
so nothing in a step waits for the device. With files behind it, values found there are copied in when they are first
asked for, and new ones are brought there once an epoch.

Shape suffixes: N images of a set, B cells asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.teachers.disk_store import ArrayRecord, DiskStore


class OutputStore(Protocol):
    """What keeps numbers for views of images, wherever."""

    def slots(self, rows_B: Tensor, views_B: Tensor) -> Tensor:
        """As :meth:`DiskStore.cells`."""
        ...

    def is_cached(self, cells_B: Tensor) -> Tensor:
        """As :meth:`DiskStore.seen`."""
        ...

    def read(self, cells_B: Tensor) -> Tensor:
        """As :meth:`DiskStore.read`; on any device."""
        ...

    def put(self, cells_B: Tensor, values_B: Tensor) -> None:
        """As :meth:`DiskStore.put`."""
        ...

    def flush(self) -> None:
        """As :meth:`DiskStore.settle`."""
        ...


class DeviceStore:
    """Values of all views of a set's images, in a device's memory, which is taken at once and filled as they come.

    Args:
        record: What is kept for a view.
        views: Number of views of an image.
        digests: The images, by :meth:`ImageSet.digests`; twins share their cells.
        device: Where the values are kept.
        behind: The files, opened for the same images; None to forget everything at the end of the run.
    """

    def __init__(
        self,
        record: ArrayRecord,
        *,
        views: int,
        digests: Sequence[bytes],
        device: torch.device,
        behind: DiskStore | None = None,
    ) -> None:
        self._record, self._views, self._device, self._behind = record, views, device, behind
        row_of = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
        self.rows_N = torch.tensor([row_of[digest] for digest in digests], dtype=torch.int64)
        cells = len(row_of) * views
        self._values = torch.empty((cells, *record.shape), dtype=record.dtype, device=device)
        self._here: npt.NDArray[np.bool_] = np.zeros(cells, dtype=np.bool_)
        # Of the files, whose rows are also other sets' images: -1 where they had no room.
        self._row_behind: npt.NDArray[np.int64] = np.full(len(row_of), -1, dtype=np.int64)
        if behind is not None:
            self._row_behind[self.rows_N.numpy()] = behind.rows_N.numpy()
        self._fresh: list[Tensor] = []

    def slots(self, rows_B: Tensor, views_B: Tensor) -> Tensor:
        """Return the cell of each view of each image, as :meth:`DiskStore.cells` does; every image has a row."""
        return self.rows_N[rows_B] * self._views + views_B

    def is_cached(self, cells_B: Tensor) -> Tensor:
        """Return which cells are filled, here or in the files, as booleans on the CPU."""
        here_B = torch.from_numpy(self._here[cells_B.numpy()])
        return here_B if self._behind is None else here_B | self._behind.is_cached(self._cells_behind(cells_B))

    def read(self, cells_B: Tensor) -> Tensor:
        """Return the values of filled cells, on the device."""
        if self._behind is not None:
            away_B = cells_B[torch.from_numpy(~self._here[cells_B.numpy()])]
            if len(away_B):
                self._keep(away_B, to_device_async(self._behind.read(self._cells_behind(away_B)), self._device))
        return self._values.index_select(0, to_device_async(cells_B, self._device))

    def put(self, cells_B: Tensor, values_B: Tensor) -> None:
        """Keep values that lie on the device."""
        self._keep(cells_B, values_B.to(self._record.dtype))
        if self._behind is not None:
            self._fresh.append(cells_B)

    def flush(self) -> None:
        """Bring what is new to the files, where there are any; the only time that the device is waited for.

        Raises:
            OSError: The disk is full, or failed.
        """
        if self._behind is None:
            return
        for cells_B in self._fresh:
            self._behind.put(
                self._cells_behind(cells_B), self._values.index_select(0, to_device_async(cells_B, self._device)).cpu()
            )
        self._fresh.clear()
        self._behind.flush()

    def _keep(self, cells_B: Tensor, values_B: Tensor) -> None:
        self._values.index_copy_(0, to_device_async(cells_B, self._device), values_B)
        self._here[cells_B.numpy()] = True

    def _cells_behind(self, cells_B: Tensor) -> Tensor:
        rows_B = torch.from_numpy(self._row_behind[(cells_B // self._views).numpy()])
        return torch.where(rows_B < 0, -1, rows_B * self._views + cells_B % self._views)


def free_memory(device: torch.device) -> int:
    """Return how many bytes of a device's memory are free; of the machine's, for a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
