"""The image files of one split, and what is kept about them between runs: decoded pixels, digests of their bytes.

Shape suffix: N files of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rnascl_cli.artifacts.store import write_with
from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.progress import progress
from rnascl_cli.data.decode import CHUNK, Shape, decode, threads

CACHE_VERSION = 1  # raise it when decoding changes
DIGEST_BYTES = 16
MANY = 1024  # files, from which on reading them all is worth a word


@dataclass(frozen=True, slots=True)
class Listed:
    """One image file: its path under the split's folder, and what tells that it changed."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files of a split, as listed.

    Attributes:
        root: The split's folder.
        listed: Every file, in the order of the split.
        shape: What the decoded images look like.
        what: What to call the split in messages.
    """

    root: Path
    listed: list[Listed]
    shape: Shape
    what: str

    def paths(self, positions: Tensor) -> list[Path]:
        """Return the files at some positions."""
        return [self.root / self.listed[position].name for position in positions.tolist()]

    def read(self, positions: Tensor) -> Tensor:
        """Return the pixels at ascending positions, uint8 ``(n, 3, side, side)``, from the cache or decoded and kept.

        Raises:
            UserError: A file does not decode (named), or the images would not fit in memory.
        """
        if len(positions) == len(self.listed):
            return self._decode_once(self.listed)
        pixels = _read_cache(self._kept("images", self.listed)).get("pixels")
        if self._fits(pixels, len(self.listed)):
            return pixels[positions]
        return self._decode_once([self.listed[position] for position in positions.tolist()])

    def digests(self, positions: Tensor) -> list[bytes]:
        """Return a 16-byte digest (BLAKE2b) of the bytes of each file at some positions.

        Every file is read once; what was found is kept until the split's listing changes.

        Raises:
            UserError: A file cannot be read (named).
        """
        kept = self._kept("digests", self.listed)
        found = _read_cache(kept)
        digest_N, known_N = found.get("digest"), found.get("known")
        count = len(self.listed)
        if not (_is(digest_N, torch.uint8, (count, DIGEST_BYTES)) and _is(known_N, torch.bool, (count,))):
            digest_N = torch.zeros(len(self.listed), DIGEST_BYTES, dtype=torch.uint8)
            known_N = torch.zeros(len(self.listed), dtype=torch.bool)
        missing = positions[~known_N[positions]]
        if len(missing):
            read = _digests(self.paths(missing), what=self.what)
            digest_N, known_N = digest_N.clone(), known_N.clone()  # what is mapped from a file is not written to
            digest_N[missing] = torch.frombuffer(bytearray(b"".join(read)), dtype=torch.uint8).view(-1, DIGEST_BYTES)
            known_N[missing] = True
            _keep(kept, {"digest": digest_N, "known": known_N}, what="digests of the files")
        return [row.tobytes() for row in digest_N[positions].numpy()]

    def _decode_once(self, files: Sequence[Listed]) -> Tensor:
        kept = self._kept("images", files)
        pixels = _read_cache(kept).get("pixels")
        if self._fits(pixels, len(files)):
            return pixels
        pixels = decode([self.root / item.name for item in files], self.shape, what=self.what)
        _keep(kept, {"pixels": pixels}, what="decoded images")
        return pixels

    def _fits(self, pixels: Tensor | None, count: int) -> TypeGuard[Tensor]:
        return _is(pixels, torch.uint8, (count, 3, self.shape.side, self.shape.side))

    def _kept(self, folder: str, files: Sequence[Listed]) -> Path:
        """Name a cache file after everything its content depends on: the files, as listed, and the decoding."""
        key = hashlib.sha256(repr((CACHE_VERSION, str(self.root.resolve()), self.shape)).encode())
        key.update(
            "\n".join(f"{item.name}\0{item.size}\0{item.mtime_ns}" for item in files).encode(errors="surrogateescape")
        )
        return cache_dir() / folder / f"{key.hexdigest()[:32]}.safetensors"


def _is(kept: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> TypeGuard[Tensor]:
    """Return whether what a cache file holds is what belongs there."""
    return kept is not None and kept.dtype == dtype and kept.shape == shape


def _digests(paths: Sequence[Path], *, what: str) -> list[bytes]:
    def digests(start: int) -> list[bytes]:
        return [_digest(path) for path in paths[start : start + CHUNK]]

    if len(paths) >= MANY:
        info(f"reading {len(paths):,} files of {what} for their fingerprint; it is kept for the next time")
    found: list[bytes] = []
    with progress(f"fingerprint of {what}", len(paths)) as advance, ThreadPoolExecutor(threads()) as pool:
        try:
            for some in pool.map(digests, range(0, len(paths), CHUNK)):
                found.extend(some)
                advance(len(some))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend its permissions or remove it") from None


def _read_cache(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors kept in a file, mapped rather than copied; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        warning(f"{path}: damaged cache file, making it again ({error})")
        return {}


def _keep(path: Path, tensors: Mapping[str, Tensor], *, what: str) -> None:
    try:
        write_with(path, lambda temporary: save_file(dict(tensors), temporary))
    except (OSError, SafetensorError) as error:
        warning(f"{what} are not kept for the next time: {error}")
