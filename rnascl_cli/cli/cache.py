"""``rnascl cache``: what is kept between runs, and how to be rid of it."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from rnascl_cli import console
from rnascl_cli.cli import options

app = typer.Typer(
    help="Show or clear what rnascl keeps between runs: teachers' outputs, decoded images, data sets, teachers.",
    epilog="Example: rnascl cache show",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("show", epilog="Example: rnascl cache show --json")
def show(json: options.Json = False) -> None:
    """List what is in the cache folder, and how much room it takes."""
    from rnascl_cli.stages.cache_library import inventory, table

    entries = inventory()
    if json:
        console.result(json_module.dumps([entry.to_json() for entry in entries], indent=2))
    else:
        console.stderr.print(table(entries))


@app.command("clear", epilog="Example: rnascl cache clear outputs images")
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND]...",
            help="outputs, images, data, teachers; by default outputs and images, made anew at need.",
        ),
    ] = None,
) -> None:
    """Delete kept outputs and decoded images, or the kinds named. Downloads and teachers go only when named."""
    from rnascl_cli.stages.cache_library import clear as clear_kinds

    freed = clear_kinds(kinds or ["outputs", "images"])
    console.say(f"freed {freed / 1e9:.2f} GB")
