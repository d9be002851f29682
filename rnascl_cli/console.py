"""One place for what people see: progress, tables and logs on stderr, results on stdout.

``console.stderr`` is rich's console, made when it is first asked for: rich takes longer to read than ``--help`` to
print.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnascl_cli import ranks
from rnascl_cli.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from rnascl_cli.artifacts.documents import Document

    stderr: Console


@functools.cache
def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def __getattr__(name: str) -> Console:
    if name == "stderr":
        return _console()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def say(message: str) -> None:
    """Print a line of information on stderr."""
    _print("", message)


def warn(message: str) -> None:
    """Print a warning line on stderr."""
    _print("[bold yellow]warning:[/] ", message)


def _print(label: str, message: str) -> None:
    from rich.markup import escape

    _console().print(f"{label}{escape(printable(message))}", highlight=False)


def result(text: str) -> None:
    """Print a result on stdout, where the next command of a pipe reads it; of several ranks, the first does."""
    if not ranks.is_first():
        return
    text = printable(text)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def _json(document: Document) -> str:
    from rnascl_cli.artifacts.store import document_json  # it reads pydantic, which --help can do without

    return document_json(document)


def finish(document: Document, *, out: str, json: bool) -> None:
    """End a stage: the artifact on stdout with ``--json``, else the run directory, so that shells can pass it on."""
    result(_json(document) if json else out)


def finish_all(documents: Sequence[Document], *, out: Sequence[str], json: bool) -> None:
    """End a command on several models: a JSON list, or a directory a line; for one model as :func:`finish`."""
    if len(documents) == 1:
        finish(documents[0], out=out[0], json=json)
    elif json:
        result("[\n" + ",\n".join(_json(document).rstrip() for document in documents) + "\n]")
    else:
        result("\n".join(out))
