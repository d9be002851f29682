"""Read untrusted files: their size is bounded before they are parsed.

The limits lie far above what rnascl writes itself, and low enough that whatever a file holds costs seconds and a
few hundred megabytes. No torch here.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from rnascl_cli.core.errors import UserError

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_DOCUMENT_VALUES = 4_000_000  # commas and opening brackets; verdicts on 50,000 images take some hundred thousand
LARGEST_INTEGER = 2**63 - 1
MAX_HEADER_BYTES = 2**20  # of safetensors, which takes time by the square of the tensors named there
MAX_WEIGHTS_BYTES = 8 * 2**30
MAX_RECIPE_BYTES = 2**20


def read_bounded(path: Path, limit: int, *, what: str) -> bytes:
    """Read a file of at most ``limit`` bytes; a pipe is read to its end.

    Args:
        path: The file.
        limit: In bytes; not a byte more than one above it is read, whatever size the file claims.
        what: What such a file is, for the error, e.g. ``"rnascl document"``.

    Raises:
        UserError: It is larger.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path}: larger than any {what} ({limit} bytes); name another file")
    return data


def holds_too_much(data: bytes) -> bool:
    """Return whether JSON, or lines of it, would make more than :data:`MAX_DOCUMENT_VALUES` objects."""
    return sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_DOCUMENT_VALUES


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Parse JSON of bounded size; NaN, infinity and integers beyond 64 bits are refused.

    Args:
        text: The text, or its bytes in UTF-8.
        where: What to call the source in an error.

    Raises:
        UserError: It is no such JSON.
    """
    if holds_too_much(text.encode(errors="surrogatepass") if isinstance(text, str) else text):
        raise UserError(
            f"{where}: holds more than {MAX_DOCUMENT_VALUES} values, as no rnascl document does; make it again"
        )
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{where}: not a JSON document ({reason}); copy or make it again") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) > LARGEST_INTEGER:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is infinite")
    return value


def refuse_oversized_weights(path: Path) -> None:
    """Look at the size of a safetensors file and of its header, before the header is read.

    Raises:
        UserError: Too large, or the header claims more than there is.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
    claimed = struct.unpack("<Q", first)[0] if len(first) == 8 else None
    if claimed is None or claimed > size - 8:
        claim = "it is cut short" if claimed is None else f"its header claims {claimed} bytes, the file has {size}"
        raise UserError(f"{path}: damaged or not a safetensors file ({claim}); copy or make it again")
    for what, found, limit in (("the file", size, MAX_WEIGHTS_BYTES), ("its header", claimed, MAX_HEADER_BYTES)):
        if found > limit:
            reason = f"{what} has {found} bytes, above {limit}"
            raise UserError(f"{path}: larger than any network rnascl knows ({reason}); name another file")
