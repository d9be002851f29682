"""Read what unfinished runs leave behind: metrics and attack journals, possibly damaged."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, holds_too_much, read_bounded
from rnascl_cli.core.errors import UserError, pluralise

MAX_PROBLEMS = 3


@dataclass(frozen=True)
class Metrics:
    """Content of a ``metrics.jsonl``.

    Attributes:
        history: Entries that could be read.
        problems: Messages about damaged lines.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    problems: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Number of recorded epochs and the last loss, in words."""
        if not self.history:
            return "no epoch recorded"
        loss = self.history[-1].get("loss")
        epochs = f"{pluralise(len(self.history), 'epoch')} recorded"
        return f"{epochs}, last loss {loss:.4g}" if isinstance(loss, int | float) and math.isfinite(loss) else epochs


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file; the last one is what follows the last newline.

    Raises:
        OSError: The file cannot be read, or is larger than anything rnascl writes.
    """
    try:
        data = read_bounded(path, MAX_DOCUMENT_BYTES, what="file of rnascl's")
    except UserError:
        raise OSError("it is too large") from None
    if holds_too_much(data):
        raise OSError("it holds too much")
    return data.split(b"\n")


def read_metrics(path: Path) -> Metrics:
    """Read a ``metrics.jsonl``; damaged lines are skipped and listed in ``problems``."""
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
            truncated = number == len(lines)  # no newline after it
            problems.append(f"line {number} of {path.name} is {'truncated' if truncated else 'not JSON'}")
            continue
        if not isinstance(entry, dict):
            problems.append(f"line {number} of {path.name} is not a JSON object")
            continue
        problems += [f"{words} in line {number} of {path.name}" for words in _nonfinite(entry)]
        history.append(entry)
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"and {len(problems) - MAX_PROBLEMS} more"]
    return Metrics(history, tuple(problems))


def _nonfinite(entry: dict[str, Any]) -> list[str]:
    values = {name: value for name, value in entry.items() if isinstance(value, float) and not math.isfinite(value)}
    return [f"{name} is {'NaN' if math.isnan(value) else 'infinite'}" for name, value in values.items()]


def describe_journal(path: Path) -> str:
    """Return what an unfinished attack has completed, in words."""
    try:
        lines = _lines(path)[1:]
    except OSError as error:
        return f"its journal cannot be read: {error.strerror or error}"
    images: dict[str, int] = {}  # by attack and eps
    for line in lines:
        try:
            entry = json.loads(line)
            name, count = f"{entry['attack']} at {entry['eps']}", len(entry["images"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a truncated line
        images[name] = images.get(name, 0) + count
    if not images:
        return "no batch completed"
    return "completed: " + ", ".join(f"{pluralise(count, 'image')} of {name}" for name, count in images.items())
