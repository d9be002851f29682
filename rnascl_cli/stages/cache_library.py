"""The cache folder's contents: what is kept between runs, by kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from rnascl_cli.cache import cache_dir
from rnascl_cli.engine.view_store import SEEN
from rnascl_cli.errors import RunError, UserError, nearest
from rnascl_cli.stages.teacher_outputs import ABOUT, used_bytes

FOLDERS = {"outputs": "teacher-outputs", "images": "images", "data": "data", "teachers": "teachers"}
"""Kinds, and their folders: teachers' outputs, decoded image folders, downloaded data sets, teacher files."""


@dataclass(frozen=True)
class Entry:
    """One thing kept.

    Attributes:
        kind: One of :data:`FOLDERS`.
        name: Of its file or folder.
        bytes: What it takes on the disk.
        about: In words.
    """

    kind: str
    name: str
    bytes: int
    about: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def inventory() -> list[Entry]:
    """Return what is in the cache folder, kind by kind; empty where there is none."""
    entries = []
    for kind, folder in FOLDERS.items():
        root = cache_dir() / folder
        for path in sorted(root.iterdir()) if root.is_dir() else []:
            size = used_bytes(path) if path.is_dir() else path.stat().st_blocks * 512
            entries.append(Entry(kind, path.name, size, _about_outputs(path) if kind == "outputs" else ""))
    return entries


def _about_outputs(folder: Path) -> str:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
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


def clear(kinds: Sequence[str]) -> int:
    """Delete the kinds named and return how many bytes that freed.

    Raises:
        UserError: There is no such kind.
        RunError: Something could not be deleted.
    """
    for kind in kinds:
        if kind not in FOLDERS:
            raise UserError(f"KIND: no kind '{kind}' in the cache{nearest(kind, FOLDERS)}; known: {', '.join(FOLDERS)}")
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


def table(entries: Sequence[Entry]) -> Table:
    """Return the inventory as a table, with the sum beneath."""
    shown = Table(title=f"{cache_dir()}: {sum(entry.bytes for entry in entries) / 1e9:.2f} GB", title_justify="left")
    for column in ("kind", "name", "MB", "what"):
        shown.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for entry in entries:
        shown.add_row(entry.kind, entry.name, f"{entry.bytes / 1e6:.1f}", entry.about)
    return shown
