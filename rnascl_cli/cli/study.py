"""``rnascl study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.core import console
from rnascl_cli.core.errors import UserError, pluralise, prefix_errors

NAME = "study"
EPILOG = "Example: rnascl study smoke --teacher teacher.safetensors --out runs/study"


def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A study file, or the name of a built-in study.")],
    data: options.Data = None,
    teacher: options.Teacher = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the study, resumed if it exists; by default runs/study-NAME."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Number of steps that run at once, sharing the threads.")
    ] = 1,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Start no further step after this time.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PATTERN",
            help="Run only matching steps, e.g. 's3/seed0/*', and their inputs; may be repeated.",
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the steps as commands without running them.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", metavar="FILE", help="Also write the tables into a Markdown file, between the study's markers."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Run a comparison of several arms and seeds, and tabulate it; the same command resumes it."""
    from rnascl_cli.recipes.study import find_study, read_study
    from rnascl_cli.stages.study.check import check_files, check_teacher
    from rnascl_cli.stages.study.plan import plan_study

    path = find_study(file)
    study = read_study(path)
    with prefix_errors(f"study {path}"):
        steps = plan_study(study, data=data, teacher=teacher)
        try:
            check_teacher(study, teacher)
        except UserError as error:
            if not plan and not only:
                raise
            console.warning(f"study {path}: {error}")  # the selected steps may need no teacher
    folder = out or Path("runs") / f"study-{path.stem}"
    asked = steps.only(only) if only else steps.steps
    if plan:
        console.print_result("\n".join(step.typed(folder) for step in asked))
        return
    from rnascl_cli.stages.study.results import check_into, tell_results
    from rnascl_cli.stages.study.runner import is_complete, run_study

    if into is not None:
        check_into(into, path.stem)
    try:
        with prefix_errors(f"study {path}"):
            check_files(study, data=data, teacher=teacher, all_steps=not only)
    except UserError:
        if not is_complete(steps, asked, folder):
            raise
    progress = run_study(steps, folder, jobs=jobs, minutes=minutes, only=only or ())
    document = tell_results(study, steps, progress, folder, source=path, into=into)
    if progress.minutes_up:
        console.warning(
            f"study: time is up at {document.steps_done} of {document.steps} steps; the same command resumes it"
        )
    console.info(f"study: {pluralise(len(document.rows), 'student')}; wrote {folder}/study.md")
    console.print_result(document.model_dump_json(indent=2) if json else str(folder))
    progress.raise_if_incomplete(steps=document.steps)
