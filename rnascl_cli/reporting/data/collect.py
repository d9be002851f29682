"""Finding run directories and reading what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from rnascl_cli.core.errors import UserError, printable
from rnascl_cli.engine.run_directory import CHECKPOINT, JOURNAL, METRICS
from rnascl_cli.reporting.data.unfinished_runs import journal_words, read_metrics

DOCUMENT_NAMES = {f"{kind}.json": document for kind, document in DOCUMENTS.items()}
STAGE_ENDS = ("search.json", "train.json", "adv-finetune.json", "attack.json")
LEFTOVERS = (CHECKPOINT, METRICS, JOURNAL)

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
class Unfinished:
    """A run that left a checkpoint, metrics or a journal, and no document of a stage that has ended.

    Attributes:
        run: Its name.
        words: What it holds.
        history: The epochs it recorded.
    """

    run: str
    words: str
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunSet:
    """Everything that was found.

    Attributes:
        artifacts: All documents, by run name and file name.
        unfinished: Runs that did not end.
        damaged: Files that could not be read or hold something amiss, in words that begin with the run's name.
    """

    artifacts: tuple[Artifact[AnyDocument], ...]
    unfinished: tuple[Unfinished, ...] = ()
    damaged: tuple[str, ...] = ()

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

    A damaged document is named in ``damaged`` and left out: the other runs are still worth a report.

    Raises:
        UserError: A path is no folder, no run was found, or no document of any could be read.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder; name run directories, or a folder of them")
        if not path.is_dir():
            raise UserError(f"{path}: is a file; name the run directory it lies in")
        folders.update(dict.fromkeys(_walk(path.resolve())))
    with_documents = [folder for folder in folders if _documents(folder)]
    started = [folder for folder in folders if any((folder / name).is_file() for name in LEFTOVERS)]
    if not with_documents and not started:
        given = ", ".join(str(path) for path in paths)
        raise UserError(f"{given}: no run found; a run directory holds one of {', '.join(sorted(DOCUMENT_NAMES))}")
    names = _names({*with_documents, *started})
    artifacts: list[Artifact[AnyDocument]] = []
    refused: list[tuple[str, UserError]] = []
    for folder in with_documents:
        for file in _documents(folder):
            try:
                document = read_document(folder / file, DOCUMENT_NAMES[file])
            except UserError as error:
                refused.append((f"{names[folder]}: {file} is left out: {_without(folder / file, error)}", error))
            else:
                artifacts.append(Artifact(names[folder], folder, file, sha256_file(folder / file), document))
    if refused and not artifacts:
        raise refused[0][1]
    artifacts.sort(key=lambda found: (found.run, found.file))
    unfinished = [_unfinished(names[folder], folder) for folder in started if not _ended(folder)]
    damaged = [*(words for words, _ in refused), *_amiss(names, [folder for folder in started if _ended(folder)])]
    return RunSet(tuple(artifacts), tuple(sorted(unfinished, key=lambda found: found.run)), tuple(sorted(damaged)))


def _without(path: Path, error: UserError) -> str:
    """Return what is wrong without the machine's folders."""
    return str(error).removeprefix(f"{path}: ").replace(str(path), path.name)


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    for folder, inside, _ in os.walk(root, onerror=refuse):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield Path(folder)


def _documents(folder: Path) -> list[str]:
    return [name for name in DOCUMENT_NAMES if (folder / name).is_file()]


def _ended(folder: Path) -> bool:
    return any((folder / name).is_file() for name in STAGE_ENDS)


def _unfinished(run: str, folder: Path) -> Unfinished:
    if (folder / JOURNAL).is_file() and not (folder / METRICS).is_file():
        return Unfinished(run, f"the attack was not finished; {journal_words(folder / JOURNAL)}")
    if not (folder / METRICS).is_file():
        return Unfinished(run, f"not finished; it holds a {CHECKPOINT} and no metrics")
    metrics = read_metrics(folder / METRICS)
    return Unfinished(run, "; ".join(("not finished", metrics.state, *metrics.problems)), metrics.history)


def _amiss(names: dict[Path, str], folders: Sequence[Path]) -> Iterator[str]:
    """Say what is amiss with what lies beside the documents of runs that ended."""
    for folder in folders:
        if (folder / METRICS).is_file():
            for problem in read_metrics(folder / METRICS).problems:
                yield f"{names[folder]}: {problem}; the curves are those of the run's document"
        if (folder / JOURNAL).is_file():
            yield f"{names[folder]}: an attack was begun and not finished; {journal_words(folder / JOURNAL)}"


def _names(folders: set[Path]) -> dict[Path, str]:
    """Return each folder's path below the one they share; machine paths have no place in a report."""
    shared = Path(os.path.commonpath([folder.parent if len(folders) == 1 else folder for folder in folders]))
    return {
        folder: printable(folder.relative_to(shared).as_posix() if folder != shared else folder.name)
        for folder in folders
    }
