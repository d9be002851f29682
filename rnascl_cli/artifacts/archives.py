"""Pickled checkpoints, looked at before they are loaded: how large they would be, without unpickling anything.

That no code runs is the reader's affair (``torch.load(..., weights_only=True)``); here it is about memory alone. A
kilobyte of zip can unpack to gigabytes, and a byte of pickle makes a list of 56.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

from rnascl_cli.artifacts.reading import MAX_WEIGHTS_BYTES
from rnascl_cli.core.errors import UserError

UNPACKED_LIMIT = 4  # times the archive: torch writes its archives uncompressed
SMALL_ARCHIVE = 64 * 2**20  # unpacked; below it no ratio is suspicious
MAX_PICKLE_BYTES = 64 * 2**20  # of the description; the tensors lie outside
MAX_OPCODES = 300_000  # a tensor takes about sixty
ZIP = b"PK\x03\x04"
MARK = -1  # on the stack of sizes
OLD_FORMAT_PICKLES = 5  # torch before 1.6: magic number, version, system, object, storage keys; then raw bytes


def refuse_bomb(path: Path) -> None:
    """Refuse a checkpoint that would take far more memory than its tensors do.

    Raises:
        UserError: It is too large, unpacks to far more than it is, or its pickle makes a million objects.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise UserError(f"{path}: larger than any network rnascl knows ({size} bytes); name another file")
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:  # as torch tells the formats apart
            file.seek(0)
            _count_opcodes(path, file, pickles=OLD_FORMAT_PICKLES)
            return
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive, size)
    except UserError:
        raise
    except Exception as error:  # BadZipFile, OSError, ValueError, NotImplementedError, ...
        # Not left to torch: its reader of archives is another, and may see more in it.
        raise UserError(f"{path}: damaged or not a checkpoint ({error}); copy it again") from None


def _check_archive(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(SMALL_ARCHIVE, UNPACKED_LIMIT * size):
        raise UserError(
            f"{path}: refused as an archive bomb ({size} bytes on disk, {unpacked} unpacked); torch.save does not "
            "compress: save it again with it, where you trust it"
        )
    for entry in entries:
        if entry.filename.endswith(".pkl"):
            if entry.file_size > MAX_PICKLE_BYTES:
                raise _too_much(path)
            with archive.open(entry) as file:
                _count_opcodes(path, file, pickles=1)


def _count_opcodes(path: Path, file: IO[bytes], *, pickles: int) -> None:
    """Walk through the pickles at the head of a file, as far as they are any.

    Raises:
        UserError: They have too many opcodes, or a tuple unfolds to too many parts.
    """
    count = 0
    try:
        for _ in range(pickles):
            sizes = _TupleSizes()
            for opcode, argument, _ in pickletools.genops(file):
                count += 1
                if count > MAX_OPCODES or sizes.after(opcode, argument) > MAX_OPCODES:
                    raise _too_much(path)
    except UserError:
        raise
    except (ValueError, IndexError, OverflowError, MemoryError, zipfile.BadZipFile):
        pass  # no pickle, or a damaged one: the reader says so


class _TupleSizes:
    """Into how many parts the tuples on a pickle's stack unfold.

    Thirty opcodes make a tuple of two tuples of two tuples ..., which takes no memory and, as the key of a
    dictionary, an hour to hash. No object is made here: the stack holds sizes, 1 for what is no tuple.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._memo: dict[Any, int] = {}

    def after(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Do what an opcode does to the stack, and return the size of what lies on top.

        Raises:
            IndexError: The stack is empty where it may not be.
        """
        name, stack = opcode.name, self._stack
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            return stack[-1]
        size = self._memo.get(argument, 1) if name in ("GET", "BINGET", "LONG_BINGET") else 1
        if pickletools.markobject in opcode.stack_before:
            while (part := stack.pop()) != MARK:
                size += part if name == "TUPLE" else 0
            taken = opcode.stack_before.index(pickletools.markobject)
        else:
            taken = len(opcode.stack_before)
        for _ in range(taken):
            part = stack.pop()
            size = max(size, part) if name == "DUP" else size + part if name.startswith("TUPLE") else size
        if name == "MARK":
            stack.append(MARK)
        else:
            stack.extend([size] * len(opcode.stack_after))
        return size


def _too_much(path: Path) -> UserError:
    return UserError(f"{path}: describes more objects than any network has; save its state dict alone, if you trust it")
