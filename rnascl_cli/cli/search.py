"""``rnascl search``."""

from __future__ import annotations

from typing import Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console

NAME = "search"
EPILOG = "Example: rnascl search --space S5 --teacher wrt34 --out runs/s5"


@options.with_shared_options
def command(
    space: Annotated[
        str | None, typer.Option("--space", help="Search space: S3, S5, S7, M, L (CIFAR), IS, IM, I (ImageNet).")
    ] = None,
    robust: Annotated[
        str | None,
        typer.Option(
            "--robust", metavar="trades|fast-at|rslad", help="Adversarial training objective of the supernet."
        ),
    ] = None,
    max_macs: options.MaxMacs = None,
    max_params: options.MaxParams = None,
    pareto: Annotated[
        int | None,
        typer.Option("--pareto", metavar="N", help="Derive N networks (2 to 100) over the range of MACs."),
    ] = None,
    *,
    shared: options.DistillationOptions,
    run: options.RunOptions,
) -> None:
    """Search channel counts and tutors by Gumbel-Softmax on a supernet (eq. 2)."""
    resolved = options.build_recipe(
        "search", shared, space=space, robust=robust, max_macs=max_macs, max_params=max_params, pareto=pareto
    )
    from rnascl_cli.engine.run_directory import RunDirectory
    from rnascl_cli.stages.search.search import search

    path = run.out or options.new_run_directory(f"search-{resolved.space}")
    document = search(resolved, RunDirectory.open(path, own="search.json", force=run.force, resume=run.resume))
    console.info(f"searched space {document.space}: expected MACs {document.expected_macs / 1e6:.2f} M; wrote {path}")
    print_artifact(document, out=str(path), json=run.json)
