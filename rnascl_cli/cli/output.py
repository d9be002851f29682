"""Prints the result of a command on stdout: the artifact, or the run directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnascl_cli.core import console

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import Document


def _json(document: Document) -> str:
    from rnascl_cli.artifacts.store import document_json  # imports pydantic, which --help does without

    return document_json(document)


def print_artifact(document: Document, *, out: str, json: bool) -> None:
    """Print the artifact with ``--json``, else the run directory, so that shells can pass it on."""
    console.print_result(_json(document) if json else out)


def print_artifacts(documents: Sequence[Document], *, out: Sequence[str], json: bool) -> None:
    """Print a JSON list, or one directory per line; for a single model as :func:`print_artifact`."""
    if len(documents) == 1:
        print_artifact(documents[0], out=out[0], json=json)
    elif json:
        console.print_result("[\n" + ",\n".join(_json(document).rstrip() for document in documents) + "\n]")
    else:
        console.print_result("\n".join(out))
