"""Find run directories and read their documents."""

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
    DataReference,
    DerivedDocument,
    Document,
    SearchDocument,
    TeacherReference,
    TrainDocument,
)
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.core.errors import UserError, printable
from rnascl_cli.engine.run_directory import CHECKPOINT, JOURNAL, METRICS
from rnascl_cli.reporting.data.unfinished_runs import describe_journal, read_metrics

DOCUMENT_NAMES = {f"{kind}.json": document for kind, document in DOCUMENTS.items()}
FINISHED = ("search.json", "train.json", "adv-finetune.json", "attack.json")
"""Documents that a stage writes when it ends."""
STARTED = (CHECKPOINT, METRICS, JOURNAL)
"""Files that a stage writes while it runs."""

D_co = TypeVar("D_co", bound=Document, covariant=True)
D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Artifact(Generic[D_co]):
    """A document and its location.

    Attributes:
        run: Run name: the path of the run directory relative to the common parent of all given runs.
        folder: Run directory; used to read files, never shown.
        file: File name of the document.
        sha256: Hash of the file.
        document: Parsed content.
    """

    run: str
    folder: Path
    file: str
    sha256: str
    document: D_co


@dataclass(frozen=True)
class UnfinishedRun:
    """A run with a checkpoint, metrics or a journal, but no document of a finished stage.

    Attributes:
        run: Run name.
        state: What the run directory contains, in words.
        history: Metrics of the recorded epochs.
    """

    run: str
    state: str
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunSet:
    """All collected runs.

    Attributes:
        artifacts: All documents, sorted by run and file name.
        unfinished: Runs that did not finish.
        damaged: Messages about files that could not be read or contain errors; each starts with the run name.
    """

    artifacts: tuple[Artifact[AnyDocument], ...]
    unfinished: tuple[UnfinishedRun, ...] = ()
    damaged: tuple[str, ...] = ()

    def of(self, kind: type[D]) -> list[Artifact[D]]:
        """Return the artifacts with a document of the given class."""
        return [
            Artifact(artifact.run, artifact.folder, artifact.file, artifact.sha256, artifact.document)
            for artifact in self.artifacts
            if isinstance(artifact.document, kind)
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
    """Read all runs at or below ``paths``.

    Damaged documents are listed in ``damaged`` and skipped.

    Args:
        paths: Run directories, or folders that contain them at any depth. Hidden folders and links are not followed.

    Raises:
        UserError: A path is not a folder, no run was found, or no document could be read.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder; pass run directories or a folder that contains them")
        if not path.is_dir():
            raise UserError(f"{path}: is a file; pass the run directory that contains it")
        folders.update(dict.fromkeys(_walk(path.resolve())))
    with_documents = [folder for folder in folders if _documents(folder)]
    started = [folder for folder in folders if any((folder / name).is_file() for name in STARTED)]
    if not with_documents and not started:
        given = ", ".join(str(path) for path in paths)
        expected = ", ".join(sorted(DOCUMENT_NAMES))
        raise UserError(f"{given}: no run found; a run directory contains one of {expected}")
    names = _run_names({*with_documents, *started})
    artifacts: list[Artifact[AnyDocument]] = []
    damaged: list[str] = []
    first_error: UserError | None = None
    for folder in with_documents:
        for file in _documents(folder):
            path = folder / file
            try:
                document = read_document(path, DOCUMENT_NAMES[file])
            except UserError as error:
                first_error = first_error or error
                reason = str(error).removeprefix(f"{path}: ").replace(str(path), file)  # without machine paths
                damaged.append(f"{names[folder]}: {file} was skipped: {reason}")
            else:
                artifacts.append(Artifact(names[folder], folder, file, sha256_file(path), document))
    if first_error and not artifacts:
        raise first_error
    unfinished = []
    for folder in started:
        if any((folder / name).is_file() for name in FINISHED):
            damaged += _problems(names[folder], folder)
        else:
            unfinished.append(_unfinished(names[folder], folder))
    artifacts.sort(key=lambda artifact: (artifact.run, artifact.file))
    unfinished.sort(key=lambda run: run.run)
    return RunSet(tuple(artifacts), tuple(unfinished), tuple(sorted(damaged)))


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    for folder, subfolders, _ in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder)


def _documents(folder: Path) -> list[str]:
    return [name for name in DOCUMENT_NAMES if (folder / name).is_file()]


def _unfinished(run: str, folder: Path) -> UnfinishedRun:
    if (folder / JOURNAL).is_file() and not (folder / METRICS).is_file():
        return UnfinishedRun(run, f"attack not finished; {describe_journal(folder / JOURNAL)}")
    if not (folder / METRICS).is_file():
        return UnfinishedRun(run, f"not finished; it contains a {CHECKPOINT} and no metrics")
    metrics = read_metrics(folder / METRICS)
    return UnfinishedRun(run, "; ".join(("not finished", metrics.summary, *metrics.problems)), metrics.history)


def _problems(run: str, folder: Path) -> Iterator[str]:
    """Yield the problems of a finished run: damaged metrics, or an attack that was started and not finished."""
    if (folder / METRICS).is_file():
        for problem in read_metrics(folder / METRICS).problems:
            yield f"{run}: {problem}; the curves are taken from the run's document"
    if (folder / JOURNAL).is_file():
        yield f"{run}: an attack was started and not finished; {describe_journal(folder / JOURNAL)}"


def _run_names(folders: set[Path]) -> dict[Path, str]:
    """Return the path of each folder relative to their common parent, since reports must not contain machine paths."""
    parent = Path(os.path.commonpath([folder.parent if len(folders) == 1 else folder for folder in folders]))
    return {
        folder: printable(folder.relative_to(parent).as_posix() if folder != parent else folder.name)
        for folder in folders
    }


def describe_data(data: DataReference | None) -> str:
    """Return the data spec and the start of the fingerprint."""
    return f"{short_spec(data.spec)} (fingerprint {data.fingerprint[:12]})" if data else "unrecorded data"


def short_spec(spec: str) -> str:
    """Return a data spec without machine paths: ``folder:/mnt/a/cifar`` becomes ``folder:cifar``."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{path.rstrip('/').rsplit('/', 1)[-1] or path}" if colon else kind


def describe_teacher(teacher: TeacherReference) -> str:
    """Return the teacher's architecture, file name and the start of its sha256."""
    return f"{teacher.architecture} ({teacher.path.rsplit('/', 1)[-1]}, sha256 {teacher.sha256[:12]})"
