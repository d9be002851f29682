"""Checkpoints: whole or not there, checked before they are believed, and the one before kept.

torch's file format notices no flipped bit in a tensor, so the file ends in a line with its sha256. A new checkpoint
takes the name only once it is on disk; the one before stays under another name until the run ends, and is gone
back to, with a warning, where the newer one turns out damaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rnascl_cli.artifacts.archives import refuse_bomb
from rnascl_cli.artifacts.store import write_with
from rnascl_cli.core import distributed
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.run_directory import CHECKPOINT, PREVIOUS

SEAL = b"\nrnascl-sha256:"
SEAL_BYTES = len(SEAL) + 64 + 1
CHUNK = 2**20


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write ``content``, tensors and plain values, as the folder's checkpoint; of several ranks, the first does.

    Raises:
        WriteError: The disk is full or the folder read-only; the checkpoint before is unchanged.
    """
    if distributed.is_rank_zero():
        write_with(folder / CHECKPOINT, lambda path: _fill(path, content), keep=folder / PREVIOUS)


def read_newest(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]]:
    """Read the folder's checkpoint, or the one before where that is damaged or was not yet in place.

    Of several ranks the first reads it for all: the others need not see the folder.

    Raises:
        UserError: There is none that is whole.
    """
    if distributed.size() == 1:
        return _read_newest(folder, device)
    path, content = distributed.from_rank_zero(lambda: _read_newest(folder, torch.device("cpu")))
    return path, _moved(content, device)


def _read_newest(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]]:
    newest, before = folder / CHECKPOINT, folder / PREVIOUS
    if not newest.is_file() and before.is_file():  # stopped between two renames
        return before, read_checkpoint(before, device)
    try:
        return newest, read_checkpoint(newest, device)
    except UserError as error:
        if not before.is_file():
            raise
        content = read_checkpoint(before, device)
        warning(f"{str(error).partition(';')[0]}; going on from the checkpoint before it")
        return before, content


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without running anything that it might hold.

    Raises:
        UserError: It is damaged: cut short, or not what was written.
    """
    try:
        _check_seal(path)
        refuse_bomb(path)  # a seal can be put on anything
        loaded = torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # torch.load raises many kinds for what is no checkpoint of torch
        reason = str(error) if isinstance(error, _UnsealedError) else type(error).__name__
        raise UserError(f"{path}: damaged checkpoint ({reason}); start again with --force") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a checkpoint of rnascl; start again with --force")
    return loaded


def first_not_finite(state: Any) -> str | None:
    """Return the name of a tensor in nested ``state`` that holds NaN or infinity; None where all are finite."""
    named = [(name, tensor) for name, tensor in _tensors(state, "") if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return None
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_device.setdefault(tensor.device, []).append((name, tensor.isfinite().all()))
    fine = {
        name: whole
        for found in by_device.values()  # one wait for each device
        for (name, _), whole in zip(found, torch.stack([whole for _, whole in found]).tolist(), strict=True)
    }
    return next((name for name, _ in named if not fine[name]), None)


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


class _UnsealedError(ValueError):
    """The seal is not there or not that of the content."""


class _Sealing:
    """A file to write to that adds up the sha256 of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _fill(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        sealing = _Sealing(file)
        try:
            torch.save(content, sealing)  # type: ignore[arg-type]
        except RuntimeError as error:  # what torch makes of a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.write(SEAL + sealing.digest.hexdigest().encode() + b"\n")


def _check_seal(path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = path.stat().st_size - SEAL_BYTES
        if left < 0:
            raise _UnsealedError("cut short")
        while left:
            data = file.read(min(left, CHUNK))
            if not data:
                raise _UnsealedError("cut short while it was read")
            digest.update(data)
            left -= len(data)
        seal = file.read()
    if not seal.startswith(SEAL):
        raise _UnsealedError("cut short, or not written by rnascl")
    if seal != SEAL + digest.hexdigest().encode() + b"\n":
        raise _UnsealedError("its content is not what was written: the sha256 differs")
