"""``rnascl cache``: lists and clears the cache folder."""

from __future__ import annotations

import json as json_module
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.core import console
from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.errors import RunError, UserError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="Show or clear the cache: teacher outputs, decoded images, data sets, teachers.",
    epilog="Example: rnascl cache show",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("show", epilog="Example: rnascl cache show --json")
def show(json: options.Json = False) -> None:
    """List the contents of the cache folder and their sizes."""
    entries = inventory()
    if json:
        console.print_result(json_module.dumps([asdict(entry) for entry in entries], indent=2))
    else:
        console.stderr.print(table(entries))


@app.command("clear", epilog="Example: rnascl cache clear outputs images")
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND]...",
            help="outputs, images, data, teachers; by default outputs and images, which can be recomputed.",
        ),
    ] = None,
) -> None:
    """Delete cached outputs and decoded images, or the given kinds; downloads and teachers only if given."""
    freed = clear_kinds(kinds or ["outputs", "images"])
    console.info(f"freed {freed / 1e9:.2f} GB")


FOLDERS = {"outputs": "teacher-outputs", "images": "images", "data": "data", "teachers": "teachers"}
"""Folder of each kind."""


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder of the cache.

    Attributes:
        kind: One of :data:`FOLDERS`.
        name: Its name.
        bytes: Its size on the disk.
        about: A description.
    """

    kind: str
    name: str
    bytes: int
    about: str


def inventory() -> list[CacheEntry]:
    """Return the contents of the cache folder by kind."""
    from rnascl_cli.teachers.output_cache import used_bytes

    entries = []
    for kind, folder in FOLDERS.items():
        root = cache_dir() / folder
        for path in sorted(root.iterdir()) if root.is_dir() else []:
            size = used_bytes(path) if path.is_dir() else path.stat().st_blocks * 512
            entries.append(CacheEntry(kind, path.name, size, _about_outputs(path) if kind == "outputs" else ""))
    return entries


def _about_outputs(folder: Path) -> str:
    import numpy as np

    from rnascl_cli.teachers.output_store import ABOUT, SEEN

    try:
        about = json_module.loads((folder / ABOUT).read_text(encoding="utf-8"))
        marks = np.fromfile(folder / SEEN, dtype=np.uint8)
        images = len(marks) // int(about["views"])
        what = (
            "logits"
            if about["kind"] == "logits"
            else f"{about['layers']} maps, {about['map_size']}x{about['map_size']}"
        )
        return (
            f"{about['architecture']} {about['teacher'][:12]}, {about['precision']}: {what}; "
            f"{marks.sum()} views of {images} images, {marks.mean() if len(marks) else 0:.0%}"
        )
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return "damaged: rnascl cache clear outputs"


def clear_kinds(kinds: Sequence[str]) -> int:
    """Delete the given kinds and return the number of freed bytes.

    Raises:
        UserError: A kind is unknown.
        RunError: Something could not be deleted.
    """
    from rnascl_cli.teachers.output_cache import used_bytes

    for kind in kinds:
        if kind not in FOLDERS:
            raise UserError(
                f"KIND: no kind '{kind}' in the cache{did_you_mean(kind, FOLDERS)}; known: {', '.join(FOLDERS)}"
            )
    freed = 0
    for kind in dict.fromkeys(kinds):
        root = cache_dir() / FOLDERS[kind]
        if not root.is_dir():
            continue
        freed += used_bytes(root)
        try:
            shutil.rmtree(root)
        except OSError as error:
            raise RunError(f"{root}: {error.strerror}") from None
    return freed


def table(entries: Sequence[CacheEntry]) -> Table:
    """Return the inventory as a table with the total size."""
    from rich.table import Table

    shown = Table(title=f"{cache_dir()}: {sum(entry.bytes for entry in entries) / 1e9:.2f} GB", title_justify="left")
    for column in ("kind", "name", "MB", "what"):
        shown.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for entry in entries:
        shown.add_row(entry.kind, entry.name, f"{entry.bytes / 1e6:.1f}", entry.about)
    return shown
