"""What unfinished and broken-off runs leave behind: metrics without a document, an attack's journal, damaged lines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, holds_too_much, read_bounded
from rnascl_cli.core.errors import UserError

MAX_SHOWN = 3


@dataclass(frozen=True)
class Metrics:
    """The lines of a ``metrics.jsonl``.

    Attributes:
        history: The entries that could be read.
        problems: What is wrong with the file, in words; empty when nothing is.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    problems: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """How far it got, in words."""
        if not self.history:
            return "no epoch is recorded"
        loss = self.history[-1].get("loss")
        words = f"{len(self.history)} epoch{'s' * (len(self.history) != 1)} recorded"
        known = isinstance(loss, int | float) and math.isfinite(loss)
        return f"{words}, the last with a loss of {loss:.4g}" if known else words


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file of bounded size; what follows the last newline is the last.

    Raises:
        OSError: It cannot be read, or holds more than rnascl writes.
    """
    try:
        data = read_bounded(path, MAX_DOCUMENT_BYTES, what="file of rnascl's")
    except UserError:
        raise OSError("it is too large") from None
    if holds_too_much(data):
        raise OSError("it holds too much")
    return data.split(b"\n")


def read_metrics(path: Path) -> Metrics:
    """Read a ``metrics.jsonl`` as far as it can be read; a damaged line is named and passed over."""
    try:
        lines = _lines(path)
    except OSError as error:
        return Metrics(problems=(f"{path.name} cannot be read: {error.strerror or error}",))
    history, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            cut = number == len(lines)  # what follows the last newline
            problems.append(f"line {number} of {path.name} is {'cut short' if cut else 'not JSON'}")
            continue
        if not isinstance(entry, dict):
            problems.append(f"line {number} of {path.name} is no JSON object")
            continue
        if bad := _not_finite(entry):
            problems.append(f"{', '.join(bad)} in line {number} of {path.name}")
        history.append(entry)
    if len(problems) > MAX_SHOWN:
        problems = [*problems[:MAX_SHOWN], f"and {len(problems) - MAX_SHOWN} more"]
    return Metrics(history, tuple(problems))


def _not_finite(entry: dict[str, Any]) -> list[str]:
    found = [(name, value) for name, value in entry.items() if isinstance(value, float) and not math.isfinite(value)]
    return [f"{name} is {'NaN' if math.isnan(value) else 'infinite'}" for name, value in found[:MAX_SHOWN]]


def journal_words(path: Path) -> str:
    """Say what an attack that stopped part way has done, by its journal."""
    try:
        lines = _lines(path)[1:]
    except OSError as error:
        return f"its journal cannot be read: {error.strerror or error}"
    batches: dict[str, int] = {}  # images by attack and eps
    for line in lines:
        try:
            entry = json.loads(line)
            name, images = f"{entry['attack']} at {entry['eps']}", len(entry["images"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # the line it was cut off in
        batches[name] = batches.get(name, 0) + images
    if not batches:
        return "no batch was finished"
    return "finished: " + ", ".join(f"{images:,} images of {name}" for name, images in batches.items())
