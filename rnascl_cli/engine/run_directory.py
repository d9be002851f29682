"""Run directories: never overwritten by accident, written only once the inputs are known to be good."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rnascl_cli.artifacts.documents import Document
from rnascl_cli.artifacts.store import STUDENT, read_document, write_text
from rnascl_cli.console import say
from rnascl_cli.errors import UserError

D = TypeVar("D", bound=Document)

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
JOURNAL = "attack.partial.jsonl"
STAGE_DOCUMENTS = ("search.json", "train.json", "adv-finetune.json")
DOCUMENTS = (*STAGE_DOCUMENTS, "derived.json", "attack.json")
ARTIFACTS = (*DOCUMENTS, STUDENT, METRICS, CHECKPOINT, JOURNAL)


@dataclass(frozen=True)
class RunDirectory:
    """A stage's output folder.

    Attributes:
        path: The folder.
        resume: Whether to go on from its checkpoint.
    """

    path: Path
    resume: bool = False

    @classmethod
    def claim(cls, path: Path, *, own: str | None = None, force: bool = False, resume: bool = False) -> RunDirectory:
        """Check that ``path`` may be written to, without touching it.

        Args:
            path: The folder.
            own: The document that the stage ends with: with ``force`` it replaces a run of its own kind only.
            force: Replace an older run.
            resume: Go on from the checkpoint.

        Raises:
            UserError: It exists and neither ``force`` nor ``resume`` is given, it is no folder, it holds another
                stage's run, or there is nothing to resume.
        """
        if force and resume:
            raise UserError("--force and --resume exclude each other")
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path}: is a file; name a folder")
        if resume:
            if not (path / CHECKPOINT).is_file():
                raise UserError(f"--resume: no checkpoint in {path}; start without --resume")
        elif not force and path.is_dir() and any(path.iterdir()):
            raise UserError(f"--out {path}: already exists; use another name, --force or --resume")
        foreign = [name for name in STAGE_DOCUMENTS if name != own and (path / name).exists()]
        if foreign and own is not None:
            raise UserError(f"--out {path}: holds {foreign[0]}, the run of another stage; name another folder")
        return cls(path, resume)

    def create(self) -> None:
        """Make the folder; in a fresh run, drop the artifacts of an older one, so that none outlives its making.

        Raises:
            UserError: The folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}") from None
        if not self.resume:
            for name in ARTIFACTS:
                (self.path / name).unlink(missing_ok=True)

    def finished(self, kind: type[D], name: str) -> D | None:
        """Return the document of a run that is resumed though it had ended; None where there is something to do.

        To be asked after the checkpoint has been found to fit: the artifact is then left as it is, so that what
        was made from it still names its hash.
        """
        if not self.resume or not (self.path / name).is_file():
            return None
        say(f"{self.path}: had finished already; left as it is")
        return read_document(self.path / name, kind)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl``: a line an epoch."""
        write_text(self.path / METRICS, "".join(json.dumps(entry) + "\n" for entry in history))
