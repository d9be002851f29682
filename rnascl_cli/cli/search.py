"""``rnascl search``."""

from __future__ import annotations

from typing import Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console

NAME = "search"
EPILOG = "Example: rnascl search --space S5 --teacher wrt34 --out runs/s5"


def command(
    space: Annotated[
        str | None, typer.Option("--space", help="Search space: S3, S5, S7, M, L (CIFAR), IS, IM, I (ImageNet).")
    ] = None,
    teacher: options.Teacher = None,
    paradigm: Annotated[
        str | None, typer.Option("--paradigm", metavar="rnas-cl|icc|kl|standard", help="Section 4.3's four losses.")
    ] = None,
    robust: Annotated[
        str | None,
        typer.Option(
            "--robust",
            metavar="trades|fast-at|rslad",
            help="Search on images perturbed against the supernet; what replaces the cross-entropy.",
        ),
    ] = None,
    max_macs: options.MaxMacs = None,
    max_params: options.MaxParams = None,
    pareto: Annotated[
        int | None,
        typer.Option("--pareto", metavar="N", help="Derive N networks (2 to 100) over the range of MACs."),
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
    """Search channel counts and tutors by Gumbel-Softmax on a supernet (eq. 2)."""
    resolved = options.build_recipe(
        "search",
        recipe=recipe,
        settings=settings,
        top={
            "space": space,
            "teacher": teacher,
            "seed": seed,
            "device": device,
            "precision": precision,
            "deterministic": deterministic,
        },
        data={"spec": data, "limit_train": limit_train, "limit_test": limit_test},
        own={
            "paradigm": paradigm,
            "robust": None if robust is None else {"method": robust},
            "epochs": epochs,
            "batch_size": batch_size,
            "max_macs": options.count(max_macs, "--max-macs"),
            "max_params": options.count(max_params, "--max-params"),
            "pareto": pareto,
        },
    )
    from rnascl_cli.engine.run_directory import RunDirectory
    from rnascl_cli.stages.search.search import search

    path = out or options.new_run_directory(f"search-{resolved.space}")
    document = search(resolved, RunDirectory.open(path, own="search.json", force=force, resume=resume))
    console.info(f"searched space {document.space}: expected MACs {document.expected_macs / 1e6:.2f} M; wrote {path}")
    print_artifact(document, out=str(path), json=json)
