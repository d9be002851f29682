"""The model that ``attack`` runs on, and where its result may be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rnascl_cli.artifacts.documents import Provenance
from rnascl_cli.artifacts.runs import refuse_changed_student, student_document
from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.file_lock import refuse_if_in_use
from rnascl_cli.engine.run_directory import JOURNAL, is_nonempty
from rnascl_cli.loading import LoadedModel, resolve_model

ATTACK_JSON = "attack.json"
MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar")


@dataclass(frozen=True)
class Target:
    """The model under attack.

    Attributes:
        name: As given.
        loaded: The model.
        provenance: Of the student of a run, whose data and seed are the defaults; None for other models.
        inputs: sha256 of the files read, by file name.
    """

    name: str
    loaded: LoadedModel
    provenance: Provenance | None
    inputs: dict[str, str]

    @property
    def own_directory(self) -> Path | None:
        """The run directory of a student; None for a teacher or a model file."""
        return self.loaded.run if self.provenance else None


def find_target(name: str) -> Target:
    """Read the model to attack.

    Args:
        name: A run directory with a student, a teacher's name, or a file.

    Raises:
        UserError: There is no such model, or the run's document describes another student.
    """
    loaded = resolve_model(name)
    inputs = {loaded.path.name: loaded.sha256}
    document = None if loaded.run is None else student_document(loaded.run)
    if loaded.run is None or document is None:
        return Target(name, loaded, None, inputs)
    refuse_changed_student(loaded.run, document, found=loaded.sha256)
    source = loaded.run / f"{document.kind}.json"
    return Target(name, loaded, document.provenance, {**inputs, source.name: sha256_file(source)})


def folders_in(out: Path, names: Sequence[str]) -> list[Path]:
    """Return a folder in ``out`` for each model, named after the model, or after its whole path if names collide.

    Raises:
        UserError: A model is given twice.
    """
    if twice := [name for name, count in Counter(_path_words(name) for name in names).items() if count > 1]:
        raise UserError(f"attack: {'/'.join(twice[0])} is given twice; name each model once")
    short = [_path_words(name)[-1] for name in names]
    counts = Counter(short)
    return [
        out / (brief if counts[brief] == 1 else "-".join(_path_words(name)))
        for name, brief in zip(names, short, strict=True)
    ]


def _path_words(name: str) -> tuple[str, ...]:
    """Return the parts of a path, or of a model's name, that are valid folder names, without suffix."""
    path = Path(name)
    if path.suffix in MODEL_SUFFIXES:
        path = path.with_suffix("")
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    return tuple(part.replace(":", "-") for part in (parts or path.resolve().parts[-1:]))


def claim_directory(target: Target, out: Path, *, force: bool, resume: bool) -> None:
    """Check on rank 0 that ``attack.json`` may be written to ``out``, without changing anything.

    ``out`` may be the model's own run directory. Only ``attack.json`` is ever replaced.

    Raises:
        UserError: There is a result or another folder already, or another process is writing there.
    """
    if not distributed.is_rank_zero():
        return
    if force and resume:
        raise UserError("--force and --resume exclude each other")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    refuse_if_in_use(out)
    if force or resume or not out.is_dir():
        return
    if (out / JOURNAL).exists():
        raise UserError(f"{out}: holds an interrupted attack; resume it with --resume, or start over with --force")
    if (out / ATTACK_JSON).exists():
        raise UserError(f"{out / ATTACK_JSON}: already exists; name another --out, or replace it with --force")
    own = target.loaded.run is not None and out.resolve() == target.loaded.run.resolve()
    if not own and is_nonempty(out):
        raise UserError(f"--out {out}: already exists; use another name or --force")
