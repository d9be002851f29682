"""Importing a checkpoint into the teacher cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.core.version import __version__
from rnascl_cli.data import Data
from rnascl_cli.engine.device import resolve_device
from rnascl_cli.engine.evaluate import TeacherAccuracy
from rnascl_cli.models.input_size import check_input_size
from rnascl_cli.recipes import SELF_TEST_IMAGES
from rnascl_cli.stages.teacher.self_test import default_data, expectation, say_skipped, self_test
from rnascl_cli.stages.teacher.train import check_out, check_size
from rnascl_cli.teachers.architectures import architecture_named
from rnascl_cli.teachers.files import SUFFIX, teachers_dir
from rnascl_cli.teachers.load import Checkpoint, build_teacher_from, default_constants, read_checkpoint, write_teacher
from rnascl_cli.teachers.public_checkpoints import IDENTITY, PUBLIC, PublicTeacher
from rnascl_cli.teachers.state_dict_conversion import Constants

CONSTANTS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ImportResult:
    """What ``teacher import`` made of a checkpoint.

    Attributes:
        path: The teacher file.
        sha256: Of it.
        architecture: Given or told from the tensors.
        num_classes: Number of logits.
        mean: Of the normalisation inside the teacher.
        std: Of the normalisation inside the teacher.
        source: The checkpoint.
        source_sha256: Of it.
        renamed: Tensor names changed, theirs to ours.
        dropped: Tensors left out, and why.
        missed: Names filled in.
        measured: Accuracies of the self-test; None where it was skipped for want of images.
        published: Accuracies published of this checkpoint, where known.
    """

    path: str
    sha256: str
    architecture: str
    num_classes: int
    mean: list[float]
    std: list[float]
    source: str
    source_sha256: str
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    measured: TeacherAccuracy | None = None
    published: dict[str, Any] | None = None


def public_named(name: str, *, option: str) -> PublicTeacher:
    """Return one of the public checkpoints.

    Raises:
        UserError: There is none of that name; the nearest is given.
    """
    if name not in PUBLIC:
        raise UserError(f"{option}: no public teacher '{name}'{did_you_mean(name, PUBLIC)}")
    return PUBLIC[name]


def default_file(stem: str) -> Path:
    """Return where a teacher goes without ``--out``: the teacher cache."""
    return teachers_dir() / f"{stem}{SUFFIX}"


def import_teacher(
    source: Path,
    out: Path,
    *,
    architecture: str | None,
    public: str | None = None,
    constants: Constants | None = None,
    source_url: str | None = None,
    data: Data | None = None,
    limit_test: int = SELF_TEST_IMAGES,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    force: bool = False,
) -> ImportResult:
    """Bring a checkpoint to our names, test it on a few hundred images, and write it as a teacher file.

    Args:
        source: The checkpoint.
        out: The teacher file.
        architecture: What it is; None to tell it from the tensors.
        public: Which public checkpoint it is: its published normalisation and accuracies are then known.
        constants: Mean and std to put before the network, over what the file holds.
        source_url: Where the checkpoint was downloaded from; kept in the header.
        data: Test images for the self-test; None for those of the set that the architecture is for, where they
            are here already. Where they are not, it is said that nothing was tested.
        limit_test: How many images of that set.
        device: Of the self-test.
        seed: Of the self-test's random starts.
        force: Whether to replace ``out``.

    Raises:
        UserError: The checkpoint is unusable, does not fit the data, or ``out`` exists.
    """
    check_out(out, force=force)
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is the file to import; name another")
    known = public_named(public, option="--public") if public is not None else None
    if known is not None and architecture is None:
        architecture = known.architecture
    checkpoint = read_checkpoint(source, architecture=architecture)
    found = checkpoint.translation
    if data is not None:
        _check_fits(found.architecture, found.num_classes, data)
    else:
        data = default_data(found.architecture, found.num_classes, limit=limit_test, seed=seed)
    chosen = _choose_constants(checkpoint, constants, known, source)
    module = build_teacher_from(found, chosen)
    published = published_of(known) if known is not None else checkpoint.header.get("published")
    measured = None
    if data is not None:
        check_input_size(module, str(source), input_size=data.input_size)
        expected = expectation(published, checkpoint.header.get("measured"), data)
        measured = self_test(module, data, expected, compute=resolve_device(device, "fp32"), seed=seed)
    about = _about(checkpoint, source, known, measured, same_constants=chosen == checkpoint.constants)
    if source_url is not None:
        about["source_url"] = source_url
    module.to("cpu")
    sha256 = write_teacher(out, module, architecture=found.architecture, num_classes=found.num_classes, about=about)
    if measured is None:
        say_skipped(found.architecture, out)
    return ImportResult(
        path=str(out),
        sha256=sha256,
        architecture=found.architecture,
        num_classes=found.num_classes,
        mean=list(chosen[0]),
        std=list(chosen[1]),
        source=str(source),
        source_sha256=about["source_sha256"],
        renamed=found.renamed,
        dropped=found.dropped,
        missed=found.missed,
        measured=measured,
        published=about.get("published"),
    )


def _about(
    checkpoint: Checkpoint,
    source: Path,
    known: PublicTeacher | None,
    measured: TeacherAccuracy | None,
    *,
    same_constants: bool,
) -> dict[str, Any]:
    """Return the header's account of where the teacher came from."""
    # What was measured, or published, holds for the same normalisation only.
    kept = ("source", "training") + (("measured", "published") if same_constants else ())
    about: dict[str, Any] = {
        **{key: checkpoint.header[key] for key in kept if key in checkpoint.header},
        "source_file": source.name,
        "source_sha256": sha256_file(source),
        "tool_version": __version__,
    }
    if known is not None:
        about["published"] = published_of(known)
    about.setdefault("source", f"RobustBench {known.robustbench}" if known is not None else source.name)
    if measured is not None:
        about["measured"] = asdict(measured)
    return about


def _check_fits(architecture: str, num_classes: int, data: Data) -> None:
    if data.num_classes != num_classes:
        raise UserError(f"--data {data.spec}: has {data.num_classes} classes, the teacher {num_classes}")
    check_size(architecture_named(architecture), data)


def _choose_constants(
    checkpoint: Checkpoint, given: Constants | None, known: PublicTeacher | None, source: Path
) -> Constants:
    """Take the normalisation that is asked for, else the file's, else the published one, else the default."""
    inside = checkpoint.constants
    if given is not None:
        if inside is not None and not _alike(inside, given):
            warning(
                f"{source}: holds the normalisation {_text(inside)}; --mean and --std put {_text(given)} in its place"
            )
        return given
    if inside is not None:
        if known is not None and not _alike(inside, known.constants):
            warning(
                f"{source}: holds the normalisation {_text(inside)}, but {known.robustbench} is published with "
                f"{_text(known.constants)}; is it that checkpoint? The file's is used"
            )
        return inside
    if known is not None:
        return known.constants
    default = default_constants(checkpoint.translation.architecture)
    what = "none is put in" if default == IDENTITY else f"the usual {_text(default)} is put in"
    warning(f"{source}: holds no normalisation, and {what}; if it was trained with another, give --mean and --std")
    return default


def _alike(one: Constants, other: Constants) -> bool:
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
    return all(abs(a - b) <= CONSTANTS_TOLERANCE for a, b in pairs)


def _text(constants: Constants) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in part) for part in constants)
    return f"mean {mean}, std {std}"


def published_of(known: PublicTeacher) -> dict[str, Any]:
    """Return what is published of a checkpoint, as it stands in a teacher's header."""
    return {
        "name": known.robustbench,
        "data": known.dataset,
        "eps": known.eps,
        "clean": known.clean,
        "autoattack": known.autoattack,
    }
