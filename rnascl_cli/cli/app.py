"""The ``rnascl`` command: subcommands, exit codes, and errors as one clear line.

Exit codes: 0 success, 1 failure while running, 2 bad usage or input, 130 on Ctrl-C, 143 on SIGTERM.
``RNASCL_DEBUG=1`` adds the traceback.

Under torchrun the commands of :data:`TOGETHER` share their work; any other runs in the first process alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer

from rnascl_cli.cli import adv_finetune, attack, cache, derive, quickstart, report, search, study, teacher, train
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import Interrupted, RunError, UserError, one_line
from rnascl_cli.core.version import __version__
from rnascl_cli.engine.interrupts import raise_on_signal
from rnascl_cli.engine.parent_death import end_with_parent
from rnascl_cli.engine.resume_command import recorded_command

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
INTERRUPTED = "interrupted; where a checkpoint was written, the same command with --resume goes on from it"
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
    warnings.showwarning = lambda message, *_, **__: console.warning(one_line(str(message)))  # a line like any other
    arguments = sys.argv[1:]
    together = distributed.is_distributed_launch() and _is_shared(arguments)
    sys.exit(run(arguments, together=together) if together or distributed.is_launch_rank_zero() else 0)


def _is_shared(arguments: list[str]) -> bool:
    """Return whether several processes share the work of a command."""
    return "--help" not in arguments and any(arguments[: len(words)] == words for words in TOGETHER)


def run(arguments: list[str], *, together: bool = False) -> int:
    """Run the command line on ``arguments`` and return the exit code.

    Args:
        arguments: Without the program's name.
        together: Join the processes that torchrun has started with this one.
    """
    try:
        _refuse_what_is_no_text(arguments)
        with recorded_command(arguments), raise_on_signal(), _joined() if together else contextlib.nullcontext():
            outcome: Any = app(args=arguments, prog_name="rnascl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(INTERRUPTED, EXIT_INTERRUPTED)
    except Interrupted as stop:
        return _stopped(str(stop) or INTERRUPTED, stop.exit_code)
    except UserError as error:
        return _complain(str(error), EXIT_USAGE)
    except BrokenPipeError:
        # The reader of our stdout has gone (| head): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        # Usage errors of typer (and of click, which it wraps or carries) know their message and exit code.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _usage_error(error)
        kind = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
        return _complain(f"{kind}{error}" if str(error) else type(error).__name__, EXIT_FAILED)
    if outcome == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        return _stopped(INTERRUPTED, EXIT_INTERRUPTED)
    return outcome if isinstance(outcome, int) else 0


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """Join the other ranks, of which only the first one shows what it does."""
    with distributed.process_group():
        console.stderr.quiet = not distributed.is_rank_zero()
        yield


def _refuse_what_is_no_text(arguments: list[str]) -> None:
    """Refuse names that are not UTF-8 at once: they go into documents, where they would fail after hours of training.

    Raises:
        UserError: Such an argument, shown with escapes.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{argument}: is not UTF-8, and cannot be recorded; rename the file or folder") from None


def _usage_error(error: Any) -> int:
    message, code = error.format_message(), int(error.exit_code)
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help page: shown as it is
        print(message, file=sys.stderr)
        return code
    return _complain(message, code) if message else code


def _stopped(message: str, code: int) -> int:
    """Say how to go on; every rank was stopped, and the first knows what was kept."""
    return _complain(message, code) if distributed.is_rank_zero() else code


def _complain(message: str, code: int = EXIT_FAILED) -> int:
    if os.environ.get("RNASCL_DEBUG"):
        traceback.print_exc()
    if distributed.claim_error_report():
        print(f"rnascl: {one_line(message)}", file=sys.stderr)
    return code
