"""``rnascl report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rnascl_cli.core import console

NAME = "report"
EPILOG = "Example: rnascl report runs --out report"


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or a folder of them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Output folder; by default report/ next to the first RUN."),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Include the paper's Tables 1 to 6 in full, with the measured rows.")
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Include attention maps of students and tutors for this image."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing report.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Turn runs into report.html (one self-contained file), report.md and figures/."""
    from rnascl_cli.stages.report.report import report

    summary = report(runs, out=out, force=force, paper=paper, image=image)
    for warning in summary.warnings:
        console.warning(warning)
    remarks = f", caveats: {len(summary.gaps)}" if summary.gaps else ""
    console.info(
        f"models: {len(summary.models)}, warnings: {len(summary.warnings)}{remarks}; wrote {summary.out}/report.html"
    )
    console.print_result(summary.model_dump_json(indent=2) if json else summary.out)
