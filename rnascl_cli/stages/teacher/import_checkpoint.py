"""``teacher import``: convert a checkpoint, test it, and write it as a teacher file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.core.version import __version__
from rnascl_cli.engine.evaluate import TeacherAccuracy
from rnascl_cli.stages.teacher.self_test import SelfTestSettings, expected_accuracy, self_test, warn_untested
from rnascl_cli.stages.teacher.train import check_out
from rnascl_cli.teachers.load import Checkpoint, build_teacher_from, default_constants, read_checkpoint, write_teacher
from rnascl_cli.teachers.public_checkpoints import IDENTITY, PUBLIC, NormalisationConstants, PublicTeacher

CONSTANTS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ImportResult:
    """The outcome of ``teacher import``.

    Attributes:
        path: The teacher file.
        sha256: Its sha256.
        architecture: As given, or inferred from the tensors.
        num_classes: Number of logits.
        mean: Of the normalisation inside the teacher.
        std: Of the normalisation inside the teacher.
        source: The checkpoint.
        source_sha256: Its sha256.
        renamed: Tensor names that changed: theirs to ours.
        dropped: Tensors left out, and why.
        missed: Names filled in.
        measured: Accuracies of the self-test; None where there were no images for it.
        published: Published accuracies of this checkpoint; None where unknown.
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


def import_teacher(
    source: Path,
    out: Path,
    *,
    architecture: str | None = None,
    public: str | None = None,
    constants: NormalisationConstants | None = None,
    source_url: str | None = None,
    settings: SelfTestSettings | None = None,
    force: bool = False,
) -> ImportResult:
    """Convert a checkpoint to our tensor names, test it on a few hundred images, and write it as a teacher file.

    Args:
        source: The checkpoint.
        out: The teacher file.
        architecture: Its architecture; None to infer it from the tensors.
        public: Name of the public checkpoint that it is, whose normalisation and accuracies are known.
        constants: Normalisation to use instead of the file's own.
        source_url: Where the checkpoint was downloaded from, for the header.
        settings: Of the self-test. Where there are no images for it, a warning says so.
        force: Whether to replace ``out``.

    Raises:
        UserError: The checkpoint is unusable, does not fit the data, or ``out`` exists.
    """
    check_out(out, force=force)
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is the file to import; name another")
    if public is not None and public not in PUBLIC:
        raise UserError(f"--public: no public teacher '{public}'{did_you_mean(public, PUBLIC)}")
    known = PUBLIC[public] if public is not None else None
    if known is not None and architecture is None:
        architecture = known.architecture
    checkpoint = read_checkpoint(source, architecture=architecture)
    converted = checkpoint.converted
    settings = settings or SelfTestSettings()
    data = settings.data_for(converted)
    chosen = _choose_constants(checkpoint, constants, known, source)
    module = build_teacher_from(converted, chosen)
    published = known.published if known is not None else checkpoint.header.get("published")
    measured = None
    if data is not None:
        expected = expected_accuracy(published, checkpoint.header.get("measured"), data)
        measured = self_test(module, data, expected, settings, what=str(source))
    about = _header_fields(checkpoint, source, known, same_constants=chosen == checkpoint.constants)
    if measured is not None:
        about["measured"] = asdict(measured)
    if source_url is not None:
        about["source_url"] = source_url
    module.to("cpu")
    sha256 = write_teacher(
        out, module, architecture=converted.architecture, num_classes=converted.num_classes, about=about
    )
    if measured is None:
        warn_untested(converted.architecture, out)
    return ImportResult(
        path=str(out),
        sha256=sha256,
        architecture=converted.architecture,
        num_classes=converted.num_classes,
        mean=list(chosen.mean),
        std=list(chosen.std),
        source=str(source),
        source_sha256=about["source_sha256"],
        renamed=converted.renamed,
        dropped=converted.dropped,
        missed=converted.missed,
        measured=measured,
        published=about.get("published"),
    )


def _header_fields(
    checkpoint: Checkpoint, source: Path, known: PublicTeacher | None, *, same_constants: bool
) -> dict[str, Any]:
    """Return the header fields that say where the teacher came from."""
    # Accuracies hold for the same normalisation only.
    copied = ("source", "training") + (("measured", "published") if same_constants else ())
    about: dict[str, Any] = {
        **{key: checkpoint.header[key] for key in copied if key in checkpoint.header},
        "source_file": source.name,
        "source_sha256": sha256_file(source),
        "tool_version": __version__,
    }
    if known is not None:
        about["published"] = known.published
    about.setdefault("source", f"RobustBench {known.robustbench}" if known is not None else source.name)
    return about


def _choose_constants(
    checkpoint: Checkpoint, given: NormalisationConstants | None, known: PublicTeacher | None, source: Path
) -> NormalisationConstants:
    """Return the normalisation given by option, else the file's, else the published one, else the default."""
    stored = checkpoint.constants
    if given is not None:
        if stored is not None and not _almost_equal(stored, given):
            warning(f"{source}: holds the normalisation {stored}; --mean and --std replace it by {given}")
        return given
    if stored is not None:
        if known is not None and not _almost_equal(stored, known.constants):
            warning(
                f"{source}: holds the normalisation {stored}, but {known.robustbench} is published with "
                f"{known.constants}; is it that checkpoint? The file's is used"
            )
        return stored
    if known is not None:
        return known.constants
    default = default_constants(checkpoint.converted.architecture)
    used = "none is applied" if default == IDENTITY else f"the usual {default} is applied"
    warning(f"{source}: holds no normalisation, and {used}; if it was trained with another, give --mean and --std")
    return default


def _almost_equal(first: NormalisationConstants, second: NormalisationConstants) -> bool:
    pairs = zip((*first.mean, *first.std), (*second.mean, *second.std), strict=True)
    return all(abs(a - b) <= CONSTANTS_TOLERANCE for a, b in pairs)
