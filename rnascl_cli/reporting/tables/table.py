"""Tables as data, rendered as HTML and Markdown, and the formatting of numbers in them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

EMPTY = "–"
TWO_DECIMALS_FROM = 2000
"""Accuracies on at least this many images are shown with two decimals."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: Displayed text.
        value: Sort key; None sorts last.
        note: Tooltip.
        alert: Whether to highlight the cell as a problem.
        href: Link to an anchor of the page.
        share: Length of a bar behind the text, in [0, 1].
        tone: ``"good"`` for a passed check, ``"faint"`` for less important text.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    alert: bool = False
    href: str = ""
    share: float | None = None
    tone: Literal["", "good", "faint"] = ""


@dataclass(frozen=True)
class Column:
    """A column heading; numeric columns are right-aligned."""

    label: str
    numeric: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Anchor.
        title: Heading.
        columns: Column headings.
        rows: Rows of one cell per column.
        intro: Sentence above the table.
        notes: Footnotes.
        sortable: Whether the reader may sort the rows.
        emphasized: Indices of highlighted rows.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    intro: str = ""
    notes: Sequence[str] = field(default=())
    sortable: bool = True
    emphasized: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)


def slug(name: str) -> str:
    """Return a run name as part of a file name or anchor: letters, digits, dots and dashes only."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower() or "run"


def text(value: str | None, *, note: str = "", href: str = "") -> Cell:
    """Return a text cell; a dash for None."""
    return Cell(EMPTY, None, note) if value is None else Cell(value, value.lower(), note, href=href)


def number(value: float | None, form: str, *, note: str = "", mark: str = "") -> Cell:
    """Return a cell with a number in the format ``form`` and a footnote mark; a dash for None."""
    return Cell(EMPTY, None, note) if value is None else Cell(f"{value:{form}}{mark}", value, note)


def decimals(n: int) -> int:
    """Return the number of decimals of an accuracy in percent on ``n`` images."""
    return 2 if n >= TWO_DECIMALS_FROM else 1


def percent(fraction: float, n: int) -> str:
    """Return an accuracy on ``n`` images in percent, without the sign."""
    return f"{100 * fraction:.{decimals(n)}f}"


def accuracy(
    fraction: float,
    n: int,
    *,
    interval: tuple[float, float] | None = None,
    note: str = "",
    mark: str = "",
    bar: bool = False,
) -> Cell:
    """Return a cell with an accuracy on ``n`` images in percent, its interval and, optionally, a bar."""
    shown = percent(fraction, n) + mark
    if interval is not None:
        shown += f" [{percent(interval[0], n)}, {percent(interval[1], n)}]"
    return Cell(shown, 100 * fraction, note, share=fraction if bar else None)


def points(difference: float | None) -> Cell:
    """Return a cell with a signed difference in percentage points."""
    if difference is None:
        return Cell(EMPTY)
    shown = f"{difference:+.1f}"
    return Cell("±0.0" if float(shown) == 0 else shown.replace("-", "−"), difference)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return ``" ± "`` and the standard deviation of several values; nothing for a single one."""
    return f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""


def compact_widths(widths: Sequence[int]) -> str:
    """Return widths with repetitions folded: ``[16, 16, 16, 32]`` becomes ``"16×3, 32"``."""
    runs = [(width, len(list(repeated))) for width, repeated in groupby(widths)]
    return ", ".join(f"{width}×{count}" if count > 1 else str(width) for width, count in runs)
