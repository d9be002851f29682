"""``rnascl train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import UserError

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import DerivedDocument

NAME = "train"
EPILOG = "Example: rnascl derive runs/s5 | rnascl train - --out runs/s5-train"


def command(
    derived: Annotated[
        str, typer.Argument(metavar="DERIVED|-", help="A derived document: a file, a run directory, or - for stdin.")
    ],
    teacher: options.Teacher = None,
    paradigm: Annotated[
        str | None,
        typer.Option(
            "--paradigm", metavar="rnas-cl|icc|kl|standard", help="The loss; by default the paradigm of the search."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="trades|mart|pgd-at|fast-at|ard|rslad",
            help="Train on perturbed images; what replaces the cross-entropy.",
        ),
    ] = None,
    average: options.Average = None,
    select: options.Select = None,
    patience: options.Patience = None,
    distill: Annotated[
        str | None,
        typer.Option(
            "--distill",
            metavar="kd|at|sp|vid|rkd|crd|pkt",
            help="A rival distillation loss in place of the paradigm's teacher terms.",
        ),
    ] = None,
    data: options.Data = None,
    limit_train: options.LimitTrain = None,
    limit_test: options.LimitTest = None,
    recipe: options.RecipeFile = None,
    settings: options.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train a derived network from scratch under its tutors, by eq. (3), or under a rival loss."""
    document = distributed.from_rank_zero(lambda: _read(derived))
    resolved = options.build_recipe(
        "train",
        recipe=recipe,
        settings=[
            # First of the settings, so that others may set its keys; and an option, so that none of them renames it.
            *([f"train.distill.name={distill}"] if distill else []),
            *(settings or ()),
        ],
        inherited=document.provenance,
        top={
            "teacher": teacher,
            "seed": seed,
            "device": device,
            "precision": precision,
            "deterministic": deterministic,
        },
        data={"spec": data, "limit_train": limit_train, "limit_test": limit_test},
        own={
            "paradigm": paradigm,
            "method": method,
            "average": options.kind(average),
            "stop": options.choice(select, patience),
            "distill": {"name": distill} if distill else None,
            "epochs": epochs,
            "batch_size": batch_size,
        },
    )
    from rnascl_cli.engine.run_directory import RunDirectory
    from rnascl_cli.stages.training.train import train

    path = out or options.new_run_directory(f"train-{document.architecture.space}")
    trained = train(document, resolved, RunDirectory.open(path, own="train.json", force=force, resume=resume))
    console.info(f"trained {trained.architecture.space}: clean accuracy {trained.clean_accuracy:.2%}; wrote {path}")
    print_artifact(trained, out=str(path), json=json)


def _read(source: str) -> DerivedDocument:
    from rnascl_cli.artifacts.documents import DerivedDocument
    from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES
    from rnascl_cli.artifacts.store import parse_document, read_document

    if source == "-":
        if sys.stdin.isatty():
            raise UserError("train -: nothing is piped in; write 'rnascl derive RUN | rnascl train -'")
        text = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        if not text.strip():
            raise UserError("train -: stdin is empty; did 'rnascl derive' fail?")
        return parse_document(text, DerivedDocument, where="stdin")
    path = Path(source)
    if path.is_dir():
        if (path / "derived.json").is_file():
            return read_document(path / "derived.json", DerivedDocument)
        if (path / "search.json").is_file():
            from rnascl_cli.stages.search.derive import derive

            return derive(path)
        raise UserError(f"{path}: holds neither derived.json nor search.json")
    return read_document(path, DerivedDocument)
