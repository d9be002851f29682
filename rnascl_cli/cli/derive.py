"""``rnascl derive``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.core import console
from rnascl_cli.core.errors import UserError

NAME = "derive"
EPILOG = "Example: rnascl derive runs/s5 | rnascl train - --out runs/s5-train"


def command(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_SEARCH_JSON", help="A run of search, or its search.json.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write here instead of to stdout.")] = None,
    tutors: Annotated[
        str,
        typer.Option(
            "--tutors",
            metavar="searched|random|same-depth|last-layer|FILE",
            help="The tutor map: the search's, a control, or a JSON file with one teacher layer a student layer.",
        ),
    ] = "searched",
    max_macs: options.MaxMacs = None,
    max_params: options.MaxParams = None,
    point: Annotated[
        int | None, typer.Option("--point", metavar="K", min=1, help="Point K of a search with --pareto, from 1.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json: options.Json = False,
) -> None:
    """Derive the slim network and its tutor map: argmax of the logits, one JSON document on stdout.

    The budget of the search is kept; --max-macs and --max-params put another limit in the place of the search's own.
    """
    from rnascl_cli.artifacts.store import document_json, write_document
    from rnascl_cli.spaces import Budget
    from rnascl_cli.stages.search.derive import derive

    if out is not None and out.exists() and not force:
        raise UserError(f"--out {out}: already exists; use another name or --force")
    if out is not None and out.resolve() in (source.resolve(), (source / "search.json").resolve()):
        raise UserError(f"--out {out}: is the search to derive from; name another file")
    budget = Budget(options.count(max_macs, "--max-macs"), options.count(max_params, "--max-params"))
    document = derive(source, tutors=tutors, budget=budget, point=point)
    architecture = document.architecture
    console.info(
        f"derived {architecture.space}: widths {' '.join(map(str, architecture.widths))}, "
        f"{architecture.params / 1e6:.3f} M params, {architecture.macs / 1e6:.2f} M MACs"
        + (f"; tutors: {document.tutors.origin}" if document.tutors else "")
    )
    if out is not None:
        write_document(out, document)
    if out is None or json:
        console.print_result(document_json(document))
