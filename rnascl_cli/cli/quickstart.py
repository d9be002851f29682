"""``rnascl quickstart``: the whole chain on scikit-learn's digits, command by command."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.run import run_command
from rnascl_cli.core import console
from rnascl_cli.core.errors import Interrupted, UserError
from rnascl_cli.engine.interrupts import STOPPING

NAME = "quickstart"
EPILOG = "Example: rnascl quickstart --out runs/quickstart"
RECIPE = "smoke/quickstart"


def command(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")] = Path("runs/quickstart"),
    recipe: Annotated[str, typer.Option("--recipe", metavar="FILE", help="Recipe of the chain.")] = RECIPE,
    seed: options.Seed = None,
    device: options.Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier quickstart in DIR.")] = False,
) -> None:
    """Run the whole chain on 8x8 digits with a small robust teacher, from training the teacher to a report."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"--out {out}: already exists; use another name or --force")
    options.build_recipe(
        None, options.RecipeOptions(recipe=recipe, seed=seed, device=device)
    )  # errors before the start
    for arguments in chain(out, recipe, seed=seed, device=device, force=force):
        _run(context.find_root().command, arguments)
    console.info(f"done: open {out / 'report' / 'report.html'}")
    console.print_result(str(out / "report" / "report.html"))


def chain(out: Path, recipe: str, *, seed: int | None, device: str | None, force: bool) -> list[list[str]]:
    """Return the commands of the chain, each as its arguments."""
    teacher, runs = str(out / "teacher.safetensors"), out / "runs"
    search, derived = str(runs / "search"), str(runs / "search" / "derived.json")
    trained, finetuned = str(runs / "train"), str(runs / "trades")
    computing = ["--recipe", recipe, *(["--device", device] if device else []), *(["--force"] if force else [])]
    first = [*computing, *(["--seed", str(seed)] if seed is not None else [])]
    return [
        ["teacher", "train", *first, "--out", teacher],
        ["search", *first, "--teacher", teacher, "--out", search],
        ["derive", search, "--out", derived, *(["--force"] if force else [])],
        ["train", derived, *computing, "--out", trained],
        ["adv-finetune", trained, *computing, "--out", finetuned],
        *(["attack", model, *computing] for model in (trained, finetuned)),
        ["report", str(runs), "--out", str(out / "report"), *(["--force"] if force else [])],
    ]


def _run(root: Any, arguments: list[str]) -> None:
    console.info(f"\n$ rnascl {shlex.join(arguments)}")
    with contextlib.redirect_stdout(io.StringIO()):  # stdout is for the result of quickstart alone
        code = run_command(root, arguments)
    for signum in STOPPING:
        if code == 128 + signum:
            raise Interrupted(signum, "quickstart: stopped; rerun the command with --force")
    if code != 0:  # the step has printed its error
        raise typer.Exit(code)
