"""Run directories: never overwritten by accident, written only once the inputs are known to be good, by one process.

Of several ranks that is the first: the others learn from it what it found there, and need not see the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rnascl_cli.artifacts.documents import Document
from rnascl_cli.artifacts.store import STUDENT, is_temporary, read_document, sha256_file, write_text
from rnascl_cli.core import distributed
from rnascl_cli.core.console import info
from rnascl_cli.core.errors import UserError, WriteError
from rnascl_cli.core.file_lock import LOCK, DirectoryLock, lock_directory, refuse_if_in_use

D = TypeVar("D", bound=Document)

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"  # the one before, while a run lasts
JOURNAL = "attack.partial.jsonl"
STAGE_DOCUMENTS = ("search.json", "train.json", "adv-finetune.json")
DOCUMENTS = (*STAGE_DOCUMENTS, "derived.json", "attack.json")
FRONT = "pareto"  # the folder of a search's derived documents, 1.json and so on
ARTIFACTS = (*DOCUMENTS, STUDENT, METRICS, CHECKPOINT, PREVIOUS, JOURNAL)


@dataclass(frozen=True)
class RunDirectory:
    """A stage's output folder.

    Attributes:
        path: The folder.
        resume: Whether to resume from the checkpoint.
        force: Whether to replace an existing run.
        restart: Whether to restart a run that was stopped before its first checkpoint.
        out: Value of ``--out`` if it is not the folder itself.
    """

    path: Path
    resume: bool = False
    force: bool = False
    restart: bool = False
    out: Path | None = None
    _locks: list[DirectoryLock] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        own: str | None = None,
        force: bool = False,
        resume: bool = False,
        out: Path | None = None,
    ) -> RunDirectory:
        """Check that ``path`` may be written to, without touching it.

        Args:
            path: The folder.
            own: The document that the stage ends with: with ``force`` it replaces a run of its own kind only.
            force: Replace an older run.
            resume: Resume from the checkpoint. A run that was stopped before its first checkpoint starts again.
            out: Value of ``--out`` if it is not the folder itself.

        Raises:
            UserError: It exists and neither ``force`` nor ``resume`` is given, it is no folder, it holds another
                stage's run, there is nothing to resume, or another process is writing there.
        """
        return distributed.from_rank_zero(lambda: cls._claim(path, own=own, force=force, resume=resume, out=out))

    @classmethod
    def _claim(cls, path: Path, *, own: str | None, force: bool, resume: bool, out: Path | None) -> RunDirectory:
        if force and resume:
            raise UserError("--force and --resume exclude each other")
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path}: is a file; name a folder")
        refuse_if_in_use(path)
        restart = resume and not has_checkpoint(path)
        if restart:
            if not _was_begun(path, own):
                raise UserError(f"--resume: no checkpoint in {path}; start without --resume")
            info(f"{path}: was stopped before its first checkpoint; starting from the beginning")
        elif not (resume or force) and is_nonempty(path):
            raise UserError(f"--out {path}: already exists; use another name, --force or --resume")
        foreign = [name for name in STAGE_DOCUMENTS if name != own and (path / name).exists()]
        if foreign and own is not None:
            raise UserError(f"--out {path}: holds {foreign[0]}, the run of another stage; name another folder")
        return cls(path, resume and not restart, force, restart, out)

    def create(self) -> None:
        """Make the folder and lock it for as long as this object lives.

        In a fresh run, drop the artifacts of an older one, so that none outlives its making. What writes that a
        kill cut short have left is dropped in any run.

        Raises:
            UserError: The folder cannot be made, or another process was quicker.
            WriteError: The folder is read-only.
        """
        if not distributed.is_rank_zero():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}") from None
        self._locks.append(lock_directory(self.path))
        came_since = has_checkpoint(self.path) if self.restart else is_nonempty(self.path)
        if came_since and not (self.resume or self.force):
            raise UserError(f"--out {self.path}: already exists; use another name, --force or --resume")
        remove_temporary_files(self.path)
        if not self.resume:
            for name in ARTIFACTS:
                _remove(self.path / name)
            for item in _front(self.path):
                _remove(item)

    def finished(self, kind: type[D], name: str) -> D | None:
        """Return the document of a resumed run that had already finished; None otherwise.

        Call it after the checkpoint has been loaded. The artifact is left as it is, so that later artifacts still have
        its hash.
        """
        if not self.resume:
            return None
        return distributed.from_rank_zero(lambda: self._finished(kind, name))

    def _finished(self, kind: type[D], name: str) -> D | None:
        if not (self.path / name).is_file():
            return None
        info(f"{self.path}: already finished; left unchanged")
        return read_document(self.path / name, kind)

    def sha256(self, name: str) -> str:
        """Return the sha256 of one of its files."""
        return distributed.from_rank_zero(lambda: sha256_file(self.path / name))

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl``: one line per epoch."""
        if distributed.is_rank_zero():
            write_text(self.path / METRICS, "".join(json.dumps(entry) + "\n" for entry in history))

    def remove(self, name: str) -> None:
        """Remove one of its files, if it is there."""
        if distributed.is_rank_zero():
            _remove(self.path / name)


def has_checkpoint(path: Path) -> bool:
    """Return whether a run directory has a checkpoint."""
    return any((path / name).is_file() for name in (CHECKPOINT, PREVIOUS))


def _was_begun(path: Path, own: str | None) -> bool:
    """Return whether a run was stopped in this folder before its first checkpoint.

    A killed run leaves its lock. A run that ended by itself leaves nothing, or its copy of ``derived.json``.
    """
    if (path / LOCK).is_file():
        return True
    copies = ["derived.json"] if own in ("train.json", "adv-finetune.json") else []
    return path.is_dir() and not is_nonempty(path, but_for=copies)


def is_nonempty(path: Path, *, but_for: Iterable[str] = ()) -> bool:
    """Return whether a folder has other files than these, locks and temporary files."""
    passed_over = {LOCK, *but_for}
    return path.is_dir() and any(
        item.name not in passed_over and not _left_behind(item.name) for item in path.iterdir()
    )


def remove_temporary_files(folder: Path, names: Iterable[str] = ARTIFACTS) -> None:
    """Remove temporary files of interrupted writes; the caller holds the lock of the folder.

    Raises:
        WriteError: The folder is read-only.
    """
    names = tuple(names)
    for item in list(folder.iterdir()):
        if _left_behind(item.name, names):
            _remove(item)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from None


def _front(folder: Path) -> list[Path]:
    """Return the documents of an older Pareto front and their temporary files."""
    inside = folder / FRONT
    if inside.is_symlink() or not inside.is_dir():
        return []
    return [item for item in inside.iterdir() if re.fullmatch(r"[0-9]+\.json|\.[0-9]+\.json\..*\.tmp", item.name)]


def _left_behind(name: str, artifacts: Iterable[str] = ARTIFACTS) -> bool:
    """Return whether this is a temporary file of an interrupted write of an artifact."""
    return is_temporary(name) and name.startswith(tuple(f".{artifact}." for artifact in artifacts))
