"""Runs a command line: exit codes, and errors as one clear line.

Exit codes: 0 success, 1 failure while running, 2 bad usage or input, 130 on Ctrl-C, 143 on SIGTERM.
``RNASCL_DEBUG=1`` adds the traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import typer

from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import Interrupted, RunError, UserError, one_line
from rnascl_cli.engine.interrupts import raise_on_signal
from rnascl_cli.engine.resume_command import recorded_command

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
INTERRUPTED = "interrupted; where a checkpoint was written, the same command with --resume continues from it"


def run_command(command: Any, arguments: list[str], *, together: bool = False) -> int:
    """Run ``arguments`` and return the exit code.

    Args:
        command: The root command of typer.
        arguments: Without the program's name.
        together: Join the other processes of torchrun.
    """
    try:
        _refuse_undecodable(arguments)
        with recorded_command(arguments), raise_on_signal(), _joined() if together else contextlib.nullcontext():
            outcome = command.main(args=arguments, prog_name="rnascl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(INTERRUPTED, EXIT_INTERRUPTED)
    except Interrupted as stop:
        return _interrupted(str(stop) or INTERRUPTED, stop.exit_code)
    except UserError as error:
        return _complain(str(error), EXIT_USAGE)
    except BrokenPipeError:
        # The reader of stdout has gone (| head): there is nothing left to print.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        # Usage errors of typer (and of click, which it wraps or carries) know their message and exit code.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _usage_error(error)
        kind = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
        return _complain(f"{kind}{error}" if str(error) else type(error).__name__, EXIT_FAILED)
    if outcome == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this code without a message
        return _interrupted(INTERRUPTED, EXIT_INTERRUPTED)
    return outcome if isinstance(outcome, int) else 0


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """Join the other ranks; only rank zero prints progress."""
    with distributed.process_group():
        console.stderr.quiet = not distributed.is_rank_zero()
        yield


def _refuse_undecodable(arguments: list[str]) -> None:
    """Refuse names that are not UTF-8 at once: they are recorded in documents, which would fail after the training.

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
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help page
        print(message, file=sys.stderr)
        return code
    return _complain(message, code) if message else code


def _interrupted(message: str, code: int) -> int:
    """Print how to continue, on rank zero only: every rank was stopped."""
    return _complain(message, code) if distributed.is_rank_zero() else code


def _complain(message: str, code: int) -> int:
    if os.environ.get("RNASCL_DEBUG"):
        traceback.print_exc()
    if distributed.claim_error_report():
        print(f"rnascl: {one_line(message)}", file=sys.stderr)
    return code
