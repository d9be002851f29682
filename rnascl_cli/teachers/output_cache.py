"""Cache of the teacher's outputs for each view of each training image, shared by search, train and later runs.

A pad-4 crop and flip has 162 views: in 100 epochs of search and 100 of training, the teacher sees a new view of an
image 115 times and a known one 85 times. Logits and unit maps are stored under the cache folder by the teacher's hash,
its precision and the settings of the maps; an image is identified by its pixels. On a GPU with enough free memory they
are also kept there while the run lasts.

Shape suffixes: B images of a batch, K classes, T teacher layers, P pixels of a map, N images of the set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rnascl_cli.core import distributed
from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.data import Augment, Batch, ImageSet
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.recipes.settings import AttentionSettings, TeacherCacheSettings
from rnascl_cli.teachers.load import Teacher
from rnascl_cli.teachers.output_store import OutputStore, StoredKind, missing_rows

GIGABYTE = 10**9
SHARE_OF_FREE_DISK = 0.5  # the cache never fills a disk
SHARE_OF_FREE_MEMORY = 0.5  # the rest is for the networks and their activations

Outputs = tuple[Tensor, Tensor | None]
"""Logits (B, K) and unit maps (B, T, P), or None where no maps are wanted."""


def outputs_dir() -> Path:
    """Return the folder of all cached outputs."""
    return cache_dir() / "teacher-outputs"


def map_dtype(compute: DeviceConfig) -> torch.dtype:
    """Return the precision of the teacher's maps, cached or not, so that a run gives the same numbers either way.

    With a bf16 teacher, whose activations have 8 significant bits, unit maps are float16 (11 bits).
    """
    return torch.float16 if compute.teacher == "bf16" else torch.float32


class CachedTeacher:
    """A teacher's outputs for one training set; made by :func:`open_output_cache`.

    Args:
        digests: The training images, by :meth:`ImageSet.digests`.
        views: Number of views of an image.
        logits: The store of the logits, for these images and views.
        maps: The store of the unit maps; None where none are wanted.

    Attributes:
        drawn: Views that were requested so far.
        computed: Views among them that the teacher computed.
    """

    def __init__(self, digests: Sequence[bytes], *, views: int, logits: OutputStore, maps: OutputStore | None) -> None:
        row_of = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
        self._row_N = torch.tensor([row_of[digest] for digest in digests], dtype=torch.int64)
        self._views, self._logits, self._maps = views, logits, maps
        self.drawn = self.computed = 0

    def forward(self, batch: Batch, compute_outputs: Callable[[Tensor], Outputs]) -> Outputs:
        """Return the teacher's outputs for a batch; the teacher computes only what is not cached.

        Args:
            batch: The images, and which view of which image each is.
            compute_outputs: The teacher: images in [0, 1] to logits and unit maps.

        Raises:
            RunError: The disk is full, or failed.
        """
        x_BCHW, device = batch.x_BCHW, batch.x_BCHW.device
        slots_B = self._row_N[batch.rows_B] * self._views + batch.views_B
        cached_B = self._logits.is_cached(slots_B)
        if self._maps is not None:
            cached_B &= self._maps.is_cached(slots_B)
        self.drawn += len(batch)
        new_B = torch.nonzero(~cached_B).flatten()
        if not len(new_B):
            return self._read(slots_B, device)
        if len(new_B) == 1 and len(batch) > 1:
            # A single image runs through other kernels than a batch does, with other last digits.
            new_B = torch.stack([new_B[0], (new_B[0] + 1) % len(batch)]).sort().values
        logits_BK, maps_BTP = compute_outputs(
            x_BCHW if len(new_B) == len(batch) else x_BCHW[to_device_async(new_B, device)]
        )
        self.computed += len(new_B)
        with _disk_errors():
            self._logits.put(slots_B[new_B], logits_BK)
            if self._maps is not None and maps_BTP is not None:
                self._maps.put(slots_B[new_B], maps_BTP)
        if len(new_B) == len(batch):
            return logits_BK, maps_BTP
        old_B = torch.nonzero(cached_B).flatten()
        old_B = old_B[~torch.isin(old_B, new_B)]
        old_logits_BK, old_maps_BTP = self._read(slots_B[old_B], device)
        # Cached and new outputs return to the positions of their images in the batch.
        order_B = to_device_async(torch.cat([old_B, new_B]).argsort(), device)
        if old_maps_BTP is not None and maps_BTP is not None:
            maps_BTP = torch.cat([old_maps_BTP, maps_BTP])[order_B]
        return torch.cat([old_logits_BK, logits_BK])[order_B], maps_BTP

    def _read(self, slots_B: Tensor, device: torch.device) -> Outputs:
        maps_BTP = None if self._maps is None else to_device_async(self._maps.read(slots_B), device)
        return to_device_async(self._logits.read(slots_B), device), maps_BTP

    def flush(self) -> None:
        """Write new outputs to disk; to be called once an epoch.

        Raises:
            RunError: The disk is full, or failed.
        """
        with _disk_errors():
            self._logits.flush()
            if self._maps is not None:
                self._maps.flush()

    def log_hit_rate(self) -> None:
        """Print how many views were reused; on several ranks, of rank zero's share of the images."""
        if self.drawn:
            whose = " of this rank" if distributed.size() > 1 else ""
            info(f"Teacher cache: {self.drawn - self.computed} of {self.drawn} views{whose} reused")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{outputs_dir()}: {error.strerror}; make room, or resume with --set teacher_cache.mode=off"
        ) from None


def open_output_cache(
    settings: TeacherCacheSettings,
    teacher: Teacher,
    *,
    images: ImageSet,
    augment: Augment,
    attention: AttentionSettings,
    maps: bool,
    compute: DeviceConfig,
) -> CachedTeacher | None:
    """Open the cache for a run, or print why there is none.

    Args:
        settings: Settings of the cache.
        teacher: The teacher.
        images: The training images.
        augment: Their augmentation.
        attention: Settings of the maps.
        maps: Whether maps are cached beside the logits.
        compute: Device and precision of the teacher.

    Returns:
        None where the mode is ``off``, or ``auto`` and the outputs would not fit.

    Raises:
        UserError: The mode is ``on`` and the outputs cannot be cached.
    """
    if settings.mode == "off":
        return None
    if augment.views is None or (maps and attention.norm == "batch"):
        if settings.mode == "on":
            reason = "maps normalized over a batch (attention.norm) belong to that batch"
            if augment.views is None:
                reason = "random resized crops have no countable views"
            raise UserError(f"recipe key 'teacher_cache.mode': {reason}; set it to off or auto")
        return None
    kinds = _kinds(teacher, attention, maps=maps, augment=augment, compute=compute)
    digests = images.digests()
    try:
        with distributed.local_rank_zero_first():  # it makes the files, which changes how much disk is free
            stores = _open_stores(settings, kinds, digests, compute.device)
    except OSError as error:
        if settings.mode == "on":
            raise UserError(f"{outputs_dir()}: {error.strerror}; set teacher_cache.mode=off") from None
        warning(f"teacher outputs are not cached: {outputs_dir()}: {error.strerror}")
        return None
    except _TooLargeError as error:
        info(f"teacher outputs are not cached: {error}")
        return None
    return CachedTeacher(digests, views=augment.views, logits=stores[0], maps=stores[1] if maps else None)


class _TooLargeError(Exception):
    """The outputs would not fit, and the mode is ``auto``."""


def _kinds(
    teacher: Teacher, attention: AttentionSettings, *, maps: bool, augment: Augment, compute: DeviceConfig
) -> list[StoredKind]:
    views = augment.views
    assert views is not None
    common = {
        "teacher": teacher.reference.sha256,
        "architecture": teacher.architecture,
        "precision": compute.teacher,
        "device": compute.device.type,
        "augment": repr(augment),
        "views": views,
    }
    kinds = [StoredKind({"kind": "logits", **common}, views, (teacher.num_classes,), torch.float32)]
    if maps:
        layers = len(attention_layers(teacher.module, attention.source))
        about = {"kind": "maps", **common, "tap": attention.source, "map_size": attention.map_size, "layers": layers}
        kinds.append(StoredKind(about, views, (layers, attention.map_size**2), map_dtype(compute)))
    return kinds


def _folder(kind: StoredKind) -> Path:
    key = hashlib.sha256(json.dumps(kind.about, sort_keys=True).encode()).hexdigest()
    return outputs_dir() / f"{kind.about['kind']}-{key[:16]}"


def _open_stores(
    settings: TeacherCacheSettings, kinds: list[StoredKind], digests: list[bytes], device: torch.device
) -> list[OutputStore]:
    """Open a store for each kind.

    Raises:
        OSError: The folder cannot be written to.
        _TooLargeError: The outputs do not fit, and the mode is ``auto``.
        UserError: They were to be in the device's memory, do not fit there, and the mode is ``on``.
    """
    view_bytes = sum(kind.view_bytes for kind in kinds)
    on_device = _use_device(settings, len(set(digests)) * kinds[0].views * view_bytes, device)
    memory = device if on_device else None
    if settings.where == "device":
        return [OutputStore(kind, digests, device=memory) for kind in kinds]
    new_rows = _new_rows(settings, kinds, digests)
    return [OutputStore(kind, digests, folder=_folder(kind), new_rows=new_rows, device=memory) for kind in kinds]


def _use_device(settings: TeacherCacheSettings, needed: int, device: torch.device) -> bool:
    """Return whether to keep ``needed`` bytes in the device's memory while the run lasts."""
    if settings.where == "disk" or (settings.where == "auto" and device.type != "cuda"):
        return False
    room = SHARE_OF_FREE_MEMORY * free_memory(device)
    if needed <= room or settings.where == "auto":
        return needed <= room
    reason = f"they would take {needed / GIGABYTE:.1f} GB of memory, half of what is free is {room / GIGABYTE:.1f} GB"
    if settings.mode == "on":
        raise UserError(f"recipe key 'teacher_cache.where': {reason}; set it to disk or auto")
    raise _TooLargeError(f"{reason}; teacher_cache.where=disk keeps them in files")


def _new_rows(settings: TeacherCacheSettings, kinds: list[StoredKind], digests: list[bytes]) -> int | None:
    """Return for how many new images there is room on the disk; None for all."""
    outputs_dir().mkdir(parents=True, exist_ok=True)
    room = min(
        settings.limit_gb * GIGABYTE - reserved_bytes(outputs_dir()),
        SHARE_OF_FREE_DISK * shutil.disk_usage(outputs_dir()).free,
    )
    needed = sum(missing_rows(_folder(kind), digests) * kind.views * kind.view_bytes for kind in kinds)
    if needed <= room:
        return None
    if settings.mode == "auto":
        raise _TooLargeError(
            f"they would take {needed / GIGABYTE:.1f} GB and {max(room, 0) / GIGABYTE:.1f} GB are free for them "
            "(teacher_cache.limit_gb, half of the free disk); 'rnascl cache clear' makes room"
        )
    return max(int(room // sum(kind.views * kind.view_bytes for kind in kinds)), 0)


def free_memory(device: torch.device) -> int:
    """Return how many bytes of a device's memory are free; of the machine's, for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # macOS has no first one
    return os.sysconf(free) * os.sysconf("SC_PAGE_SIZE")


def reserved_bytes(folder: Path) -> int:
    """Return how many bytes the files under a folder will take once their holes are filled."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def used_bytes(folder: Path) -> int:
    """Return how many bytes the files under a folder take on the disk; holes of sparse files take nothing."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
