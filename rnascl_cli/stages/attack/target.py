"""What ``attack`` works on: the model, the images that go with it, and where the result may be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, Provenance, TrainDocument
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data
from rnascl_cli.engine.lock import refuse_if_in_use
from rnascl_cli.engine.run_directory import JOURNAL, is_nonempty
from rnascl_cli.loading import LoadedModel, resolve_model
from rnascl_cli.models.input_size import check_input_size

ATTACK_JSON = "attack.json"
MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar")


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        name: As given.
        loaded: The model.
        provenance: How it was made, where it is a run's student; its data and seed are used again.
        inputs: sha256 of what was read, by file name.
    """

    name: str
    loaded: LoadedModel
    provenance: Provenance | None
    inputs: dict[str, str]

    @property
    def own_directory(self) -> Path | None:
        """The run directory that ``attack.json`` belongs to; None for a teacher or a bare file."""
        return self.loaded.run if self.provenance else None


def find_target(name: str) -> Target:
    """Read the model to attack.

    Args:
        name: A run directory with a student, a teacher's name, or a file.

    Raises:
        UserError: There is no such model, or the run's document is of another student.
    """
    loaded = resolve_model(name)
    inputs = {loaded.path.name: loaded.sha256}
    if loaded.run is None:
        return Target(name, loaded, None, inputs)
    document: TrainDocument | AdvFinetuneDocument
    if (loaded.run / "adv-finetune.json").is_file():
        document = read_document(loaded.run / "adv-finetune.json", AdvFinetuneDocument)
    elif (loaded.run / "train.json").is_file():
        document = read_document(loaded.run / "train.json", TrainDocument)
    else:
        return Target(name, loaded, None, inputs)
    if document.student_sha256 != loaded.sha256:
        raise UserError(
            f"{loaded.path}: not the student that {document.kind}.json beside it describes (other sha256); "
            "attack the file itself with --data, or make the run again"
        )
    source = loaded.run / f"{document.kind}.json"
    return Target(name, loaded, document.provenance, {**inputs, source.name: sha256_file(source)})


def folders_in(out: Path, names: Sequence[str]) -> list[Path]:
    """Return a folder in ``out`` for each of several models, called after the model.

    Models that would be called alike are called by their whole path.

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
    """Return the parts of a path, or of a model's name, without a suffix and without what is no folder name."""
    path = Path(name)
    if path.suffix in MODEL_SUFFIXES:
        path = path.with_suffix("")
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    return tuple(part.replace(":", "-") for part in (parts or path.resolve().parts[-1:]))


def claim_directory(target: Target, out: Path, *, force: bool, resume: bool) -> None:
    """Check that ``attack.json`` may be written to ``out``, without touching anything; the first rank does.

    The model's own run directory takes it beside its other artifacts. No file but ``attack.json`` is ever
    replaced.

    Raises:
        UserError: The result, or somebody else's folder, is there already, or another process is writing there.
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
        raise UserError(f"{out}: holds an interrupted attack; go on with --resume, or start over with --force")
    if (out / ATTACK_JSON).exists():
        raise UserError(f"{out / ATTACK_JSON}: already exists; name another --out, or replace it with --force")
    own = target.loaded.run is not None and out.resolve() == target.loaded.run.resolve()
    if not own and is_nonempty(out):
        raise UserError(f"--out {out}: already exists; use another name or --force")


def check_fit(target: Target, data: Data) -> None:
    """Check that the model takes these images and knows as many classes.

    Raises:
        UserError: It does not.
    """
    classes = target.loaded.num_classes
    if classes != data.num_classes:
        raise UserError(
            f"{target.name}: has {classes} classes and --data {data.spec} has {data.num_classes}; "
            "name the data it was trained on"
        )
    check_input_size(target.loaded.module, target.name, input_size=data.input_size)
