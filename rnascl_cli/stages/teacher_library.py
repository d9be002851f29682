"""The teacher cache: importing, listing and describing teachers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rnascl_cli import __version__
from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.console import warn
from rnascl_cli.data import Data
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.errors import UserError, nearest
from rnascl_cli.models.checkpoints import (
    SUFFIX,
    Checkpoint,
    assemble,
    cached_teachers,
    default_constants,
    read_checkpoint,
    read_teacher,
    teachers_dir,
    write_teacher,
)
from rnascl_cli.models.taps import tappable_layers
from rnascl_cli.models.teachers import ARCHITECTURES
from rnascl_cli.models.teachers.dialects import Constants
from rnascl_cli.models.teachers.public import IDENTITY, PUBLIC, PublicTeacher
from rnascl_cli.stages.teacher import Measured, check_out, check_size, measure
from rnascl_cli.units import parse_epsilon

FAR_APART = 0.1  # a measured accuracy this far from the published one means that something is wrong
CONSTANTS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Imported:
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
        measured: Accuracies of the self-test, where data were given.
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
    measured: Measured | None = None
    published: dict[str, Any] | None = None


def public_named(name: str, *, option: str) -> PublicTeacher:
    """Return one of the public checkpoints.

    Raises:
        UserError: There is none of that name; the nearest is given.
    """
    if name not in PUBLIC:
        raise UserError(f"{option}: no public teacher '{name}'{nearest(name, PUBLIC)}")
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
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    force: bool = False,
) -> Imported:
    """Bring a checkpoint to our names and write it as a teacher file.

    Args:
        source: The checkpoint.
        out: The teacher file.
        architecture: What it is; None to tell it from the tensors.
        public: Which public checkpoint it is: its published normalisation and accuracies are then known.
        constants: Mean and std to put before the network, over what the file holds.
        source_url: Where the checkpoint was downloaded from; kept in the header.
        data: Test images for the self-test; None for none.
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
    chosen = _choose_constants(checkpoint, constants, known, source)
    module = assemble(found, chosen)
    measured = (
        None if data is None else _self_test(module, data, known, compute=resolve_compute(device, "fp32"), seed=seed)
    )
    about = _about(checkpoint, source, known, measured, same_constants=chosen == checkpoint.constants)
    if source_url is not None:
        about["source_url"] = source_url
    module.to("cpu")
    sha256 = write_teacher(out, module, architecture=found.architecture, num_classes=found.num_classes, about=about)
    return Imported(
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
    measured: Measured | None,
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
        about["published"] = _published(known)
    about.setdefault("source", f"RobustBench {known.robustbench}" if known is not None else source.name)
    if measured is not None:
        about["measured"] = asdict(measured)
    return about


def _check_fits(architecture: str, num_classes: int, data: Data) -> None:
    if data.num_classes != num_classes:
        raise UserError(f"--data {data.spec}: has {data.num_classes} classes, the teacher {num_classes}")
    check_size(ARCHITECTURES[architecture], data)


def _choose_constants(
    checkpoint: Checkpoint, given: Constants | None, known: PublicTeacher | None, source: Path
) -> Constants:
    """Take the normalisation that is asked for, else the file's, else the published one, else the default."""
    inside = checkpoint.constants
    if given is not None:
        if inside is not None and not _alike(inside, given):
            warn(f"{source}: holds the normalisation {_text(inside)}; --mean and --std put {_text(given)} in its place")
        return given
    if inside is not None:
        if known is not None and not _alike(inside, known.constants):
            warn(
                f"{source}: holds the normalisation {_text(inside)}, but {known.robustbench} is published with "
                f"{_text(known.constants)}; is it that checkpoint? The file's is used"
            )
        return inside
    if known is not None:
        return known.constants
    default = default_constants(checkpoint.translation.architecture)
    what = "none is put in" if default == IDENTITY else f"ImageNet's {_text(default)} is put in"
    warn(f"{source}: holds no normalisation, and {what}; if it was trained with another, give --mean and --std")
    return default


def _alike(one: Constants, other: Constants) -> bool:
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
    return all(abs(a - b) <= CONSTANTS_TOLERANCE for a, b in pairs)


def _text(constants: Constants) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in part) for part in constants)
    return f"mean {mean}, std {std}"


def _published(known: PublicTeacher) -> dict[str, Any]:
    return {
        "name": known.robustbench,
        "data": known.dataset,
        "eps": known.eps,
        "clean": known.clean,
        "autoattack": known.autoattack,
    }


def _self_test(module: nn.Module, data: Data, known: PublicTeacher | None, *, compute: Compute, seed: int) -> Measured:
    eps = parse_epsilon(known.eps if known is not None else "8/255").value
    measured = measure(module, data, eps=eps, compute=compute, seed=seed)
    if known is not None and known.clean is not None and known.autoattack is not None:
        # AutoAttack is the stronger attack, so PGD-20 should find more images standing, not fewer.
        if abs(measured.clean - known.clean) > FAR_APART or measured.pgd20 < known.autoattack - FAR_APART:
            warn(
                f"measured clean {measured.clean:.3f} and PGD-20 {measured.pgd20:.3f}, published clean "
                f"{known.clean:.3f} and AutoAttack {known.autoattack:.3f}: far apart. "
                "A wrong normalisation is the commonest cause; compare --mean and --std with the checkpoint's page. "
                "Or is it another checkpoint, or other images?"
            )
    elif measured.clean < 2 / data.num_classes:
        warn(f"clean accuracy is {measured.clean:.3f}, close to chance: another data set, or a wrong normalisation?")
    return measured


def list_teachers() -> list[dict[str, Any]]:
    """Describe every file of the teacher cache, and every public teacher that is not in it."""
    rows: list[dict[str, Any]] = []
    for path in cached_teachers():
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            rows.append({"name": path.stem, "path": str(path), "problem": str(error)})
            continue
        header = checkpoint.header
        rows.append(
            {
                "name": path.stem,
                "path": str(path),
                "architecture": checkpoint.translation.architecture,
                "num_classes": checkpoint.translation.num_classes,
                "source": header.get("source"),
                "published": header.get("published"),
                "measured": header.get("measured"),
            }
        )
    names = {row["name"] for row in rows}
    for name, known in PUBLIC.items():
        if name not in names:
            rows.append(
                {
                    "name": name,
                    "path": None,
                    "architecture": known.architecture,
                    "source": f"RobustBench {known.robustbench}",
                    "published": _published(known),
                    "measured": None,
                }
            )
    return rows


def show_teacher(source: str) -> dict[str, Any]:
    """Describe a teacher: where it came from, its size, its convolutions and the sides of their maps.

    Raises:
        UserError: There is no such teacher.
    """
    teacher = read_teacher(source)
    info = ARCHITECTURES[teacher.architecture]
    normalise: Any = teacher.module.normalise
    return {
        "source": teacher.reference.source,
        "path": teacher.reference.path,
        "sha256": teacher.reference.sha256,
        "architecture": teacher.architecture,
        "description": info.description,
        "num_classes": teacher.num_classes,
        "params": sum(parameter.numel() for parameter in teacher.module.parameters()),
        "input_size": info.input_size,
        **normalise.constants(),
        "made_from": teacher.header.get("source"),
        "made_from_sha256": teacher.header.get("source_sha256"),
        "training": teacher.header.get("training"),
        "published": teacher.header.get("published"),
        "measured": teacher.header.get("measured"),
        "layers": layer_table(teacher.architecture, teacher.num_classes),
    }


def layer_table(architecture: str, num_classes: int) -> list[dict[str, Any]]:
    """List the convolutions of an architecture in order, with channels and the side of their output.

    No arithmetic is done: the network runs on shapes alone.
    """
    info = ARCHITECTURES[architecture]
    with torch.device("meta"):
        module = info.build(num_classes=num_classes).eval()
        image = torch.zeros(1, 3, info.input_size, info.input_size)
    rows: list[dict[str, Any]] = []

    def hook_for(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            rows.append({"layer": name, "channels": output.shape[1], "side": output.shape[2]})

        return hook

    for name, layer in tappable_layers(module, "conv").items():
        layer.register_forward_hook(hook_for(name))
    with torch.no_grad():
        module(image)
    return rows
