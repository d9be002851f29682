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
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to FILE instead of stdout.")] = None,
    tutors: Annotated[
        str,
        typer.Option(
            "--tutors",
            metavar="searched|random|same-depth|last-layer|FILE",
            help="Tutor map: the searched one, a baseline, or a JSON file with one teacher layer per student layer.",
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
    """Derive the network and its tutor map by argmax of the logits, as a JSON document on stdout.

    The budget of the search applies, unless --max-macs or --max-params overrides it.
    """
    from rnascl_cli.artifacts.store import document_json, write_document
    from rnascl_cli.core.units import parse_count
    from rnascl_cli.spaces import Budget
    from rnascl_cli.stages.search.derive import derive

    if out is not None and out.exists() and not force:
        raise UserError(f"--out {out}: already exists; use another name or --force")
    if out is not None and out.resolve() in (source.resolve(), (source / "search.json").resolve()):
        raise UserError(f"--out {out}: is the input; name another file")
    limits = {"--max-macs": max_macs, "--max-params": max_params}
    budget = Budget(*(None if text is None else parse_count(text, option=name) for name, text in limits.items()))
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
