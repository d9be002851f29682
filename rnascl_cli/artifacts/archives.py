"""Limits on pickled checkpoints, checked before they are loaded and without unpickling anything.

That no code runs is the reader's job (``torch.load(..., weights_only=True)``). These limits bound memory: a kilobyte of
zip can unpack to gigabytes, and one byte of pickle makes a list of 56 bytes.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, NoReturn

from rnascl_cli.artifacts.reading import MAX_WEIGHTS_BYTES
from rnascl_cli.core.errors import UserError

MAX_RATIO = 4  # torch.save does not compress
SMALL_ARCHIVE = 64 * 2**20  # unpacked bytes; any ratio is allowed below
MAX_PICKLE_BYTES = 64 * 2**20  # the tensors are outside of the pickle
MAX_OPCODES = 300_000  # about 60 per tensor
ZIP = b"PK\x03\x04"
OLD_FORMAT_PICKLES = 5  # torch before 1.6: magic number, version, system, object, storage keys; then raw bytes


def refuse_bomb(path: Path) -> None:
    """Refuse a checkpoint that would take far more memory than its tensors do.

    Raises:
        UserError: It is too large, unpacks to much more than its size, or its pickle is too long.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise UserError(f"{path}: larger than the limit ({size} bytes); use another file")
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
        # torch's own reader may accept more, so the file is refused here.
        raise UserError(f"{path}: damaged or not a checkpoint ({error}); copy it again") from None


def _check_archive(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(SMALL_ARCHIVE, MAX_RATIO * size):
        raise UserError(
            f"{path}: refused as an archive bomb ({size} bytes on disk, {unpacked} unpacked); torch.save does not "
            "compress: if you trust the file, save it again"
        )
    for entry in entries:
        if entry.filename.endswith(".pkl"):
            if entry.file_size > MAX_PICKLE_BYTES:
                _refuse_length(path)
            with archive.open(entry) as file:
                _count_opcodes(path, file, pickles=1)


def _count_opcodes(path: Path, file: IO[bytes], *, pickles: int) -> None:
    """Count the opcodes of the pickles at the start of a file.

    Raises:
        UserError: There are too many.
    """
    count = 0
    try:
        for _ in range(pickles):
            for _ in pickletools.genops(file):
                count += 1
                if count > MAX_OPCODES:
                    _refuse_length(path)
    except UserError:
        raise
    except (ValueError, IndexError, OverflowError, MemoryError, zipfile.BadZipFile):
        pass  # not a pickle, or damaged: the reader reports it


def _refuse_length(path: Path) -> NoReturn:
    raise UserError(f"{path}: describes more objects than any network has; if you trust it, save its state dict alone")
