"""What the teacher said about each view of each image, kept and shared by search, train and every later run.

A pad-4 crop and flip have 162 views, so in 100 epochs of a search and 100 of a training an image is seen 115
times anew and 85 times again. Logits and unit maps are kept under the cache folder, keyed by the teacher's
hash, the precision it runs in, and the settings of the maps; an image is known by its pixels. While a run lasts
they are also kept in the device's memory, where they fit.

Shape suffixes: N images of a set, B images of a batch, K classes, T teacher layers, P pixels of a map.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rnascl_cli.artifacts.store import write_text
from rnascl_cli.core import distributed
from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.data import Augment, Batch, Data, augmentation
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.recipes import AttentionSettings, Recipe, TeacherCacheSettings
from rnascl_cli.teachers.device_store import DeviceStore, OutputStore, free_memory
from rnascl_cli.teachers.disk_store import ArrayRecord, DiskStore, missing_rows
from rnascl_cli.teachers.load import Teacher

ABOUT = "about.json"
GIGABYTE = 10**9
SHARE_OF_FREE_DISK = 0.5  # a cache is never to be what fills a disk
SHARE_OF_FREE_MEMORY = 0.5  # the networks and their activations want theirs

Where = Literal["disk", "device", "both"]
Outputs = tuple[Tensor, Tensor | None]
"""Logits (B, K) and unit maps (B, T, P), or None where no maps are wanted."""


def outputs_dir() -> Path:
    """Return the folder of all kept outputs."""
    return cache_dir() / "teacher-outputs"


def map_dtype(compute: DeviceConfig) -> torch.dtype:
    """Return the precision of the teacher's maps: that of its own arithmetic, or a little better.

    With a bf16 teacher, whose activations have 8 bits, unit maps are float16 (11 bits), kept or not, so that
    a run gives the same numbers with the cache and without.
    """
    return torch.float16 if compute.teacher == "bf16" else torch.float32


@dataclass(frozen=True)
class _Kind:
    """One of the two things kept of a view."""

    about: dict[str, Any]
    record: ArrayRecord

    @property
    def folder(self) -> Path:
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
        return outputs_dir() / f"{self.about['kind']}-{key[:16]}"


class CachedTeacher:
    """The stores of a teacher's outputs for one training set; made by :func:`open_output_cache`."""

    def __init__(self, logits: OutputStore, maps: OutputStore | None) -> None:
        self._logits, self._maps = logits, maps
        self.drawn = self.computed = 0

    def forward(self, batch: Batch, ask: Callable[[Tensor], Outputs]) -> Outputs:
        """Return the teacher's outputs for a batch, asking it only for views not seen before.

        Args:
            batch: The images, and which view of which image each is.
            ask: The teacher: images in [0, 1] to logits and unit maps.

        Raises:
            RunError: The disk is full, or failed.
        """
        cells_B = self._logits.slots(batch.rows_B, batch.views_B)
        map_cells_B = self._maps.slots(batch.rows_B, batch.views_B) if self._maps else cells_B
        known_B = self._logits.is_cached(cells_B)
        if self._maps is not None:
            known_B &= self._maps.is_cached(map_cells_B)
        self.drawn += len(batch)
        asked_B = torch.nonzero(~known_B).flatten()
        if not len(asked_B):
            return self._read(cells_B, map_cells_B, batch.x_BCHW.device)
        if len(asked_B) == 1 and len(batch) > 1:
            # A lone image runs through other kernels than a batch does, with other last digits.
            asked_B = torch.stack([asked_B[0], (asked_B[0] + 1) % len(batch)]).sort().values
        fresh = ask(
            batch.x_BCHW if len(asked_B) == len(batch) else batch.x_BCHW[to_device_async(asked_B, batch.x_BCHW.device)]
        )
        self.computed += len(asked_B)
        with _naming_the_folder():
            self._logits.put(cells_B[asked_B], fresh[0])
            if self._maps is not None and fresh[1] is not None:
                self._maps.put(map_cells_B[asked_B], fresh[1])
        if len(asked_B) == len(batch):
            return fresh
        rest_B = torch.nonzero(known_B).flatten()
        rest_B = rest_B[~torch.isin(rest_B, asked_B)]
        kept = self._read(cells_B[rest_B], map_cells_B[rest_B], batch.x_BCHW.device)
        # Kept and fresh outputs go back to where their images stand in the batch.
        place_B = to_device_async(torch.cat([rest_B, asked_B]).argsort(), batch.x_BCHW.device)
        maps = None if kept[1] is None or fresh[1] is None else torch.cat([kept[1], fresh[1]])[place_B]
        return torch.cat([kept[0], fresh[0]])[place_B], maps

    def _read(self, cells_B: Tensor, map_cells_B: Tensor, device: torch.device) -> Outputs:
        maps = None if self._maps is None else to_device_async(self._maps.read(map_cells_B), device)
        return to_device_async(self._logits.read(cells_B), device), maps

    def flush(self) -> None:
        """Bring what is new to disk; to be called once an epoch.

        Raises:
            RunError: The disk is full, or failed.
        """
        with _naming_the_folder():
            for store in self._stores():
                store.flush()

    def log_hit_rate(self) -> None:
        """Say how much the teacher was spared; of several ranks, on the first one's share of the images."""
        if self.drawn:
            share, whose = self.computed / self.drawn, " of its share" if distributed.size() > 1 else ""
            info(f"teacher: looked at {self.computed} of {self.drawn} views{whose} ({share:.0%}), the rest was kept")

    def _stores(self) -> Iterator[OutputStore]:
        yield self._logits
        if self._maps is not None:
            yield self._maps


@contextlib.contextmanager
def _naming_the_folder() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{outputs_dir()}: {error.strerror}; go on with --set teacher_cache.mode=off") from None


def open_output_cache(
    recipe: Recipe, teacher: Teacher, *, data: Data, attention: AttentionSettings, maps: bool, compute: DeviceConfig
) -> CachedTeacher | None:
    """Open the stores for a run, or say why there are none.

    Args:
        recipe: For mode, size and place, and for the augmentation.
        teacher: Whose outputs.
        data: Of its training images.
        attention: Settings of the maps.
        maps: Whether maps are wanted beside the logits.
        compute: Device and precision the teacher runs in.

    Returns:
        None where the mode is ``off``, or ``auto`` and it would not fit.

    Raises:
        UserError: The mode is ``on`` and the outputs cannot be kept.
    """
    settings, augment = recipe.teacher_cache, augmentation(recipe.data, data.input_size)
    views, reason = augment.views, None
    if settings.mode == "off":
        return None
    if views is None:
        reason = "random resized crops have no countable views"
    elif maps and attention.norm == "batch":
        reason = "maps normalised over a batch (attention.norm) belong to that batch"
    if views is None or reason is not None:
        if settings.mode == "on":
            raise UserError(f"recipe key 'teacher_cache.mode': {reason}; set it to off or auto")
        return None
    layers = len(attention_layers(teacher.module, attention.tap)) if maps else 0
    kinds = _kinds(teacher, attention, views=views, teacher_layers=layers, augment=augment, compute=compute)
    digests = data.train.digests()
    try:
        with distributed.local_rank_zero_first():  # who makes room changes how much is left
            where = _where(settings, kinds, digests, views=views, device=compute.device)
            stores = _stores(settings, kinds, digests, views=views, where=where, device=compute.device)
    except OSError as error:
        if settings.mode == "on":
            raise UserError(f"{outputs_dir()}: {error.strerror}; set teacher_cache.mode=off") from None
        warning(f"teacher outputs are not kept: {outputs_dir()}: {error.strerror}")
        return None
    except _TooLargeError as reasons:
        info(f"teacher outputs are not kept: {reasons}")
        return None
    return CachedTeacher(stores[0], stores[1] if maps else None)


class _TooLargeError(Exception):
    """The outputs would not fit, and nobody insisted."""


def _kinds(
    teacher: Teacher,
    attention: AttentionSettings,
    *,
    views: int,
    teacher_layers: int,
    augment: Augment,
    compute: DeviceConfig,
) -> list[_Kind]:
    whose = {
        "teacher": teacher.reference.sha256,
        "architecture": teacher.architecture,
        "precision": compute.teacher,
        "device": compute.device.type,
        "augment": repr(augment),
        "views": views,
    }
    kinds = [_Kind({"kind": "logits", **whose}, ArrayRecord((teacher.num_classes,), torch.float32))]
    if teacher_layers:
        shown = {"tap": attention.tap, "map_size": attention.map_size, "layers": teacher_layers}
        record = ArrayRecord((teacher_layers, attention.map_size**2), map_dtype(compute))
        kinds.append(_Kind({"kind": "maps", **whose, **shown}, record))
    return kinds


def _where(
    settings: TeacherCacheSettings, kinds: list[_Kind], digests: list[bytes], *, views: int, device: torch.device
) -> Where:
    """Return where the outputs are to be kept: ``auto`` is decided, and it is seen whether they fit.

    Raises:
        _TooLargeError: They do not fit into the device's memory alone, and the mode is ``auto``.
        UserError: The memory was asked for, it is too small, and the mode is ``on``.
    """
    if settings.where == "disk" or (settings.where == "auto" and device.type != "cuda"):
        return "disk"
    needed = len(set(digests)) * views * sum(kind.record.bytes for kind in kinds)
    room = SHARE_OF_FREE_MEMORY * free_memory(device)
    if needed <= room:
        return "both" if settings.where == "auto" else settings.where
    if settings.where == "auto":
        return "disk"
    reason = f"they would take {needed / GIGABYTE:.1f} GB of memory, half of what is free is {room / GIGABYTE:.1f} GB"
    if settings.mode == "on":
        raise UserError(f"recipe key 'teacher_cache.where': {reason}; set it to disk or auto")
    if settings.where == "device":
        raise _TooLargeError(f"{reason}; teacher_cache.where=disk keeps them in files")
    info(f"teacher outputs are kept on the disk only: {reason}")
    return "disk"


def _stores(
    settings: TeacherCacheSettings,
    kinds: list[_Kind],
    digests: list[bytes],
    *,
    views: int,
    where: Where,
    device: torch.device,
) -> list[OutputStore]:
    """Open a store for each kind.

    Raises:
        OSError: The folder cannot be written to.
        _TooLargeError: As in :func:`_room`.
    """
    files: list[DiskStore | None] = [None] * len(kinds)
    if where != "device":
        new_rows = _room(settings, kinds, digests, views=views)
        files = [_open(kind, views=views, digests=digests, new_rows=new_rows) for kind in kinds]
    if where == "disk":
        return [store for store in files if store is not None]
    return [
        DeviceStore(kind.record, views=views, digests=digests, device=device, behind=store)
        for kind, store in zip(kinds, files, strict=True)
    ]


def _room(settings: TeacherCacheSettings, kinds: list[_Kind], digests: list[bytes], *, views: int) -> int | None:
    """Return how many new images fit; None for all.

    Raises:
        _TooLargeError: Not all of them do, and the mode is ``auto``.
    """
    outputs_dir().mkdir(parents=True, exist_ok=True)
    room = min(
        settings.limit_gb * GIGABYTE - reserved_bytes(outputs_dir()),
        SHARE_OF_FREE_DISK * shutil.disk_usage(outputs_dir()).free,
    )
    needed = sum(missing_rows(kind.folder, digests) * views * kind.record.bytes for kind in kinds)
    if needed <= room:
        return None
    if settings.mode == "auto":
        raise _TooLargeError(
            f"they would take {needed / GIGABYTE:.1f} GB and {max(room, 0) / GIGABYTE:.1f} GB are free for them "
            "(teacher_cache.limit_gb, half of the free disk); 'rnascl cache clear' makes room"
        )
    return max(int(room // (views * sum(kind.record.bytes for kind in kinds))), 0)


def _open(kind: _Kind, *, views: int, digests: list[bytes], new_rows: int | None) -> DiskStore:
    store = DiskStore.open(kind.folder, kind.record, views=views, digests=digests, new_rows=new_rows)
    if not (kind.folder / ABOUT).is_file():
        write_text(kind.folder / ABOUT, json.dumps(kind.about, indent=2) + "\n")
    return store


def reserved_bytes(folder: Path) -> int:
    """Return what the files under a folder will take once their holes are filled."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def used_bytes(folder: Path) -> int:
    """Return what the files under a folder take on the disk; holes of sparse files take nothing."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
