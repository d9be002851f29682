"""The finished batches of an interrupted evaluation, for ``--resume``.

A file of JSON lines: the first is a header that identifies the evaluation, each further one is a finished batch. Each
line is on disk before the next batch begins, so Ctrl-C, a kill or a power cut costs at most one batch; a truncated
last line is dropped. Rank 0 reads and writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, read_bounded
from rnascl_cli.artifacts.store import write_text
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError, WriteError

MAX_JOURNAL_BYTES = 4 * MAX_DOCUMENT_BYTES

Key = tuple[str, str, int]
"""Attack, eps as text, number of the attack's part."""


class FinishedBatch(NamedTuple):
    """A finished batch.

    Attributes:
        broken: Images that the attack broke, test-set indices.
        out_of_ball: Number of perturbed images outside the ball, which do not count as broken.
        seconds: Wall time.
        notes: Warnings of the attack about the model.
    """

    broken: list[int]
    out_of_ball: int
    seconds: float
    notes: list[str]


@dataclass
class Journal:
    """Finished batches of one evaluation.

    Attributes:
        path: The file.
        header: Hashes of model and data, and every setting that verdicts depend on.
    """

    path: Path
    header: Mapping[str, Any]
    _done: dict[tuple[Key, tuple[int, ...]], FinishedBatch] = field(default_factory=dict)

    def start(self) -> None:
        """Begin a new file."""
        if distributed.is_rank_zero():
            write_text(self.path, json.dumps(self.header, sort_keys=True) + "\n")

    def load(self) -> int:
        """Read the finished batches of an earlier run, and return their number.

        Raises:
            UserError: There is no file, it is damaged, or it is of another evaluation.
        """
        self._done = distributed.from_rank_zero(self._read)
        return len(self._done)

    def _read(self) -> dict[tuple[Key, tuple[int, ...]], FinishedBatch]:
        found: dict[tuple[Key, tuple[int, ...]], FinishedBatch] = {}
        if self.path.is_symlink():
            raise UserError(f"--resume: {self.path}: is a link, which rnascl never writes; start without --resume")
        try:
            lines = read_bounded(self.path, MAX_JOURNAL_BYTES, what="journal").split(b"\n")
        except OSError as error:
            raise UserError(f"--resume: {self.path}: {error.strerror}; start without --resume") from None
        whole = lines[:-1]  # what follows the last newline was truncated
        try:
            header, *entries = [json.loads(line) for line in whole]
            if header != json.loads(json.dumps(self.header)):
                others = [name for name in self.header if header.get(name) != self.header[name]]
                raise UserError(
                    f"--resume: {self.path} is of an evaluation with another {', '.join(others) or 'header'}; "
                    "start without --resume"
                )
            for entry in entries:
                key = (entry["attack"], entry["eps"], entry["round"])
                found[key, tuple(entry["images"])] = _checked(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"--resume: {self.path} is damaged; start without --resume") from None
        os.truncate(self.path, sum(len(line) + 1 for line in whole))
        return found

    def find(self, key: Key, images: Sequence[int]) -> FinishedBatch | None:
        """Return a finished batch; None if it is not finished."""
        return self._done.get((key, tuple(images)))

    def record(self, key: Key, images: Sequence[int], done: FinishedBatch) -> None:
        """Append a finished batch.

        Raises:
            WriteError: It cannot be written; earlier batches are kept.
        """
        if not distributed.is_rank_zero():
            return
        attack, eps, number = key
        entry = {"attack": attack, "eps": eps, "round": number, "images": list(images), **done._asdict()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WriteError(self.path, error) from None

    def remove(self) -> None:
        """Delete the file: the evaluation is complete."""
        if distributed.is_rank_zero():
            self.path.unlink(missing_ok=True)


def _checked(entry: Mapping[str, Any]) -> FinishedBatch:
    done = FinishedBatch(entry["broken"], int(entry["out_of_ball"]), float(entry["seconds"]), entry["notes"])
    if not set(done.broken) <= set(entry["images"]) or not all(isinstance(note, str) for note in done.notes):
        raise ValueError("a broken image outside the batch, or a note that is not a string")
    return done
