"""Finding run directories and reading what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rnascl_cli.artifacts.documents import (
    DOCUMENTS,
    AdvFinetuneDocument,
    AnyDocument,
    AttackDocument,
    DerivedDocument,
    Document,
    SearchDocument,
    TrainDocument,
)
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.errors import UserError

DOCUMENT_NAMES = {f"{kind}.json": document for kind, document in DOCUMENTS.items()}
STAGE_ENDS = ("search.json", "train.json", "adv-finetune.json", "attack.json")
LEFTOVERS = ("checkpoint.pt", "metrics.jsonl")

D_co = TypeVar("D_co", bound=Document, covariant=True)
D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Artifact(Generic[D_co]):
    """A document and where it was found.

    Attributes:
        run: The run directory's name: its path below the folder that all given runs share.
        folder: The run directory itself; to read files, never to be shown.
        file: The document's file name.
        sha256: Of the file's bytes.
        document: What it holds.
    """

    run: str
    folder: Path
    file: str
    sha256: str
    document: D_co


@dataclass(frozen=True)
class RunSet:
    """Everything that was found.

    Attributes:
        artifacts: All documents, by run name and file name.
        unfinished: Runs that hold a checkpoint or metrics, and no document of a stage that has ended.
    """

    artifacts: tuple[Artifact[AnyDocument], ...]
    unfinished: tuple[str, ...]

    def of(self, kind: type[D]) -> list[Artifact[D]]:
        """Return the artifacts whose document is of this kind."""
        return [
            Artifact(found.run, found.folder, found.file, found.sha256, found.document)
            for found in self.artifacts
            if isinstance(found.document, kind)
        ]

    @property
    def searches(self) -> list[Artifact[SearchDocument]]:
        """The ``search.json`` documents."""
        return self.of(SearchDocument)

    @property
    def derivations(self) -> list[Artifact[DerivedDocument]]:
        """The ``derived.json`` documents."""
        return self.of(DerivedDocument)

    @property
    def trainings(self) -> list[Artifact[TrainDocument]]:
        """The ``train.json`` documents."""
        return self.of(TrainDocument)

    @property
    def finetunings(self) -> list[Artifact[AdvFinetuneDocument]]:
        """The ``adv-finetune.json`` documents."""
        return self.of(AdvFinetuneDocument)

    @property
    def attacks(self) -> list[Artifact[AttackDocument]]:
        """The ``attack.json`` documents."""
        return self.of(AttackDocument)


def collect(paths: Sequence[Path]) -> RunSet:
    """Read the runs at or below ``paths``.

    Args:
        paths: Run directories, or folders of them to any depth; hidden folders and links are not entered.

    Raises:
        UserError: A path is no folder, nothing was found, or a document is damaged.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder; name run directories, or a folder of them")
        if not path.is_dir():
            raise UserError(f"{path}: is a file; name the run directory it lies in")
        folders.update(dict.fromkeys(_walk(path.resolve())))
    with_documents = [folder for folder in folders if _documents(folder)]
    if not with_documents:
        given = ", ".join(str(path) for path in paths)
        raise UserError(f"{given}: no run found; a run directory holds one of {', '.join(sorted(DOCUMENT_NAMES))}")
    unfinished = [folder for folder in folders if _unfinished(folder)]
    names = _names({*with_documents, *unfinished})
    artifacts = [
        Artifact(names[folder], folder, file, sha256_file(folder / file), _read(folder / file))
        for folder in with_documents
        for file in _documents(folder)
    ]
    artifacts.sort(key=lambda found: (found.run, found.file))
    return RunSet(tuple(artifacts), tuple(sorted(names[folder] for folder in unfinished)))


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    for folder, inside, _ in os.walk(root, onerror=refuse):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield Path(folder)


def _documents(folder: Path) -> list[str]:
    return [name for name in DOCUMENT_NAMES if (folder / name).is_file()]


def _unfinished(folder: Path) -> bool:
    started = any((folder / name).is_file() for name in LEFTOVERS)
    return started and not any((folder / name).is_file() for name in STAGE_ENDS)


def _read(path: Path) -> AnyDocument:
    return read_document(path, DOCUMENT_NAMES[path.name])


def _names(folders: set[Path]) -> dict[Path, str]:
    """Return each folder's path below the one they share; machine paths have no place in a report."""
    shared = Path(os.path.commonpath([folder.parent if len(folders) == 1 else folder for folder in folders]))
    return {folder: folder.relative_to(shared).as_posix() if folder != shared else folder.name for folder in folders}
