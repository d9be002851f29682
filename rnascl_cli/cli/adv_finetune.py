"""``rnascl adv-finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console

NAME = "adv-finetune"
EPILOG = "Example: rnascl adv-finetune runs/s5-train --method trades --out runs/s5-trades"


def command(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of train or adv-finetune.")],
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="trades|mart|pgd-at|fast-at|ard|rslad", help="What replaces the cross-entropy."
        ),
    ] = None,
    teacher: options.Teacher = None,
    paradigm: Annotated[
        str | None,
        typer.Option("--paradigm", metavar="rnas-cl|icc|kl|standard", help="By default that of the training."),
    ] = None,
    average: options.Average = None,
    select: options.Select = None,
    patience: options.Patience = None,
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
    """Fine-tune a trained student on adversarial images; the teacher's terms stay (section 4.2)."""
    from rnascl_cli.stages.training.adv_finetune import adv_finetune, source_run

    before, _ = source_run(source)
    resolved = options.build_recipe(
        "adv_finetune",
        recipe=recipe,
        settings=settings,
        inherited=before.provenance,
        top={
            "teacher": teacher,
            "seed": seed,
            "device": device,
            "precision": precision,
            "deterministic": deterministic,
        },
        data={"spec": data, "limit_train": limit_train, "limit_test": limit_test},
        own={
            "method": method,
            "paradigm": paradigm,
            "average": options.kind(average),
            "stop": options.choice(select, patience),
            "epochs": epochs,
            "batch_size": batch_size,
        },
    )
    from rnascl_cli.engine.run_directory import RunDirectory

    path = out or options.new_run_directory(f"{resolved.adv_finetune.method}-{before.architecture.space}")
    document = adv_finetune(
        source, resolved, RunDirectory.open(path, own="adv-finetune.json", force=force, resume=resume)
    )
    console.info(f"fine-tuned by {document.method}: clean accuracy {document.clean_accuracy:.2%}; wrote {path}")
    print_artifact(document, out=str(path), json=json)
