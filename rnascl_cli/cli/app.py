"""The ``rnascl`` command and its subcommands.

Under torchrun the commands in :data:`TOGETHER` share their work; all others run in the first process alone.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, NoReturn

import typer

from rnascl_cli.cli import adv_finetune, attack, cache, derive, quickstart, report, search, study, teacher, train
from rnascl_cli.cli.run import run_command
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import one_line
from rnascl_cli.core.version import __version__
from rnascl_cli.engine.parent_death import end_with_parent

TOGETHER = (
    ["search"],
    ["train"],
    ["adv-finetune"],
    ["attack"],
    ["teacher", "train"],
    ["teacher", "measure"],
)

app = typer.Typer(
    name="rnascl",
    help="Robust neural architecture search by cross-layer knowledge distillation (RNAS-CL).",
    epilog="Example: rnascl search --space S5 --teacher wrt34 --out runs/s5 && "
    "rnascl derive runs/s5 | rnascl train - --out runs/s5-train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for module in (search, derive, train, adv_finetune, attack, report, study, quickstart):
    app.command(module.NAME, epilog=module.EPILOG)(module.command)
app.add_typer(teacher.app, name="teacher")
app.add_typer(cache.app, name="cache")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"rnascl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    end_with_parent()
    warnings.showwarning = lambda message, *_, **__: console.warning(one_line(str(message)))
    arguments = sys.argv[1:]
    together = distributed.is_distributed_launch() and _is_shared(arguments)
    sys.exit(run(arguments, together=together) if together or distributed.is_launch_rank_zero() else 0)


def _is_shared(arguments: list[str]) -> bool:
    """Return whether several processes share the work of a command."""
    return "--help" not in arguments and any(arguments[: len(words)] == words for words in TOGETHER)


def run(arguments: list[str], *, together: bool = False) -> int:
    """Run ``rnascl`` on arguments and return the exit code; see :func:`rnascl_cli.cli.run.run_command`."""
    return run_command(typer.main.get_command(app), arguments, together=together)
