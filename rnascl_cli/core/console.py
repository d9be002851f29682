"""One place for what people see: progress, tables and logs on stderr, results on stdout.

``console.stderr`` is rich's console, made when it is first asked for: rich takes longer to read than ``--help`` to
print.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    stderr: Console


@functools.cache
def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def __getattr__(name: str) -> Console:
    if name == "stderr":
        return _console()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def info(message: str) -> None:
    """Print a line of information on stderr."""
    _print("", message)


def warning(message: str) -> None:
    """Print a warning line on stderr."""
    _print("[bold yellow]warning:[/] ", message)


def _print(label: str, message: str) -> None:
    from rich.markup import escape

    _console().print(f"{label}{escape(printable(message))}", highlight=False)


def print_result(text: str) -> None:
    """Print a result on stdout, where the next command of a pipe reads it; of several ranks, the first does."""
    if not distributed.is_rank_zero():
        return
    text = printable(text)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()
