"""Checkpoints: written atomically, checked when they are read, with the previous one kept.

``torch.load`` does not check the CRCs that ``torch.save`` writes, so they are checked first, which finds flipped bits.
The previous checkpoint is kept until the run ends, and is used with a warning if the newest one is damaged.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnascl_cli.artifacts.archives import refuse_bomb
from rnascl_cli.artifacts.store import write_with
from rnascl_cli.core import distributed
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.run_directory import CHECKPOINT, PREVIOUS


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values as the checkpoint of a folder, on rank zero.

    Raises:
        WriteError: The disk is full or the folder is read-only; the previous checkpoint is unchanged.
    """
    if distributed.is_rank_zero():
        write_with(folder / CHECKPOINT, lambda path: _save(path, content), keep=folder / PREVIOUS)


def read_newest(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]]:
    """Read the newest intact checkpoint of a folder. Rank zero reads it for all ranks.

    Raises:
        UserError: There is no intact checkpoint.
    """
    if distributed.size() == 1:
        return _read_newest(folder, device)
    path, content = distributed.from_rank_zero(lambda: _read_newest(folder, torch.device("cpu")))
    return path, _moved(content, device)


def _read_newest(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]]:
    newest, before = folder / CHECKPOINT, folder / PREVIOUS
    if not newest.is_file() and before.is_file():  # the process stopped between two renames
        return before, read_checkpoint(before, device)
    try:
        return newest, read_checkpoint(newest, device)
    except UserError as error:
        if not before.is_file():
            raise
        content = read_checkpoint(before, device)
        warning(f"{str(error).partition(';')[0]}; resuming from the previous checkpoint")
        return before, content


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        UserError: It is damaged, truncated, or not a checkpoint of rnascl.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("truncated, or not written by rnascl")
        refuse_bomb(path)
        _check_crc(path)
        loaded = torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # zipfile and torch raise many types for damaged files
        reason = str(error) if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        raise UserError(f"{path}: damaged checkpoint ({reason}); start again with --force") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a checkpoint of rnascl; start again with --force")
    return loaded


def first_not_finite(state: Any) -> str | None:
    """Return the name of a tensor in nested ``state`` with NaN or infinity; None if all are finite."""
    named = [(name, tensor) for name, tensor in _tensors(state, "") if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return None
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_device.setdefault(tensor.device, []).append((name, tensor.isfinite().all()))
    finite = {
        name: value
        for found in by_device.values()  # one synchronization per device
        for (name, _), value in zip(found, torch.stack([value for _, value in found]).tolist(), strict=True)
    }
    return next((name for name, _ in named if not finite[name]), None)


def _tensors(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _moved(state: Any, device: torch.device) -> Any:
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _moved(value, device) for key, value in state.items()}
    return [_moved(value, device) for value in state] if isinstance(state, list) else state


def _save(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's error for a failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _check_crc(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} has a wrong CRC")
