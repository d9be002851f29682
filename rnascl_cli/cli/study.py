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
    file: Annotated[str, typer.Argument(metavar="FILE", help="A study: a TOML file, or a name under recipes/studies.")],
    data: options.Data = None,
    teacher: options.Teacher = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The study's folder; by default runs/study-NAME. Gone on with."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many steps run at once, sharing the threads.")] = 1,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Begin no further step after so many minutes.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Steps like 's3/seed0/*', and what they need; may be repeated."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the steps as commands, and run nothing.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", metavar="FILE", help="Put the tables between the study's marks in a Markdown file, too."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Run a whole comparison, arm by arm and seed by seed, and tabulate it; the same command goes on with it."""
    from rnascl_cli.recipes.study import find_study, read_study
    from rnascl_cli.stages.study.check import check_images, check_teacher, check_teacher_file
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
            console.warning(f"study {path}: {error}")  # the teacher may be elsewhere, or the steps asked for need none
    folder = out or Path("runs") / f"study-{path.stem}"
    asked = steps.only(only) if only else steps.steps
    if plan:
        console.print_result("\n".join(step.typed(folder) for step in asked))
        return
    from rnascl_cli.stages.study.results import check_into, tell_results
    from rnascl_cli.stages.study.runner import end, has_ended, run_study

    if into is not None:
        check_into(into, path.stem)
    try:
        with prefix_errors(f"study {path}"):
            check_images(study, data=data)
            if not only:  # the steps asked for may need none
                check_teacher_file(study, teacher=teacher)
    except UserError:
        if not has_ended(steps, asked, folder):  # which reads every result, as the run does again
            raise
    progress = run_study(steps, folder, jobs=jobs, minutes=minutes, only=only or ())
    document = tell_results(study, steps, progress, folder, source=path, into=into)
    if progress.minutes_up:
        console.warning(
            f"study: time is up at {document.steps_done} of {document.steps} steps; the same command goes on"
        )
    console.info(f"study: {pluralise(len(document.rows), 'student')}; wrote {folder}/study.md")
    console.print_result(document.model_dump_json(indent=2) if json else str(folder))
    end(progress, steps=document.steps)
