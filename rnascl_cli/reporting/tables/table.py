"""Tables as data, told once and rendered twice (HTML and Markdown), and how numbers are written in them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rnascl_cli.artifacts.documents import Provenance, TeacherReference

NOTHING = "–"
FULL_TEST = 2000
"""From this many images on, an accuracy is written with two decimals."""
Z_95 = 1.959964


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        value: What the column is sorted by; None sorts last.
        note: A remark, shown when pointed at.
        loud: Whether the reader must not overlook it.
        href: An anchor of the page that tells more.
        share: A share in [0, 1] to be drawn as a bar behind the number.
        tone: ``"good"`` or ``"faint"`` where the cell is a verdict or of lesser weight.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    loud: bool = False
    href: str = ""
    share: float | None = None
    tone: Literal["", "good", "faint"] = ""


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers are right-aligned."""

    label: str
    numeric: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Its anchor.
        title: Its heading.
        columns: Headings, one a cell of each row.
        rows: The cells.
        intro: A sentence over it: what the numbers have in common.
        notes: Footnotes.
        sortable: False where the order of the rows carries meaning.
        emphasised: Indices of rows that stand out (measured ones among published ones).
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    intro: str = ""
    notes: Sequence[str] = field(default=())
    sortable: bool = True
    emphasised: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)


def slug(name: str) -> str:
    """Return a part of a file name or anchor for a run: letters, digits, dots and dashes only."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower() or "run"


def text(value: str | None, *, note: str = "", href: str = "") -> Cell:
    """Return a cell of words; a dash for None."""
    return Cell(NOTHING, None, note) if value is None else Cell(value, value.lower(), note, href=href)


def number(value: float | None, form: str, *, note: str = "", mark: str = "") -> Cell:
    """Return a cell of a number in ``form`` (a format specification); a dash for None."""
    return Cell(NOTHING, None, note) if value is None else Cell(f"{value:{form}}{mark}", value, note)


def percent(fraction: float, n: int) -> str:
    """Write a fraction of ``n`` images in per cent, without the sign, to as many decimals as ``n`` bears."""
    return f"{100 * fraction:.{2 if n >= FULL_TEST else 1}f}"


def accuracy(
    fraction: float | None,
    n: int,
    *,
    interval: tuple[float, float] | None = None,
    note: str = "",
    loud: bool = False,
    mark: str = "",
    bar: bool = False,
) -> Cell:
    """Return a cell of an accuracy in per cent, its interval beside it and, if asked for, a bar behind it."""
    if fraction is None:
        return Cell(NOTHING, None, note)
    shown = percent(fraction, n) + mark
    if interval is not None:
        shown += f" [{percent(interval[0], n)}, {percent(interval[1], n)}]"
    return Cell(shown, 100 * fraction, note, loud, share=fraction if bar else None)


def points(difference: float | None) -> Cell:
    """Return a cell of a difference in percentage points, signed."""
    if difference is None:
        return Cell(NOTHING)
    shown = f"{difference:+.1f}"
    return Cell("±0.0" if float(shown) == 0 else shown.replace("-", "−"), difference)


def wilson(fraction: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of ``n`` images."""
    z = Z_95 * Z_95 / n
    centre = (fraction + z / 2) / (1 + z)
    half = Z_95 / (1 + z) * math.sqrt(fraction * (1 - fraction) / n + z / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def ranges(widths: Sequence[int]) -> str:
    """Write widths with runs folded: ``16 16 16 32`` is ``16×3, 32``."""
    runs: list[list[int]] = []
    for width in widths:
        if runs and runs[-1][0] == width:
            runs[-1][1] += 1
        else:
            runs.append([width, 1])
    return ", ".join(f"{width}×{count}" if count > 1 else str(width) for width, count in runs)


def data_words(provenance: Provenance) -> str:
    """Say which images a document was made with: the spec, and the fingerprint's beginning."""
    data = provenance.data
    return f"{short_spec(data.spec)} (fingerprint {data.fingerprint[:12]})" if data else "unrecorded data"


def short_spec(spec: str) -> str:
    """Write a data spec without the machine's folders: ``folder:/mnt/a/cifar`` is ``folder:cifar``."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{path.rstrip('/').rsplit('/', 1)[-1] or path}" if colon else kind


def teacher_words(teacher: TeacherReference | None) -> str | None:
    """Say which teacher: architecture, file name and the sha256's beginning."""
    if teacher is None:
        return None
    return f"{teacher.architecture} ({teacher.path.rsplit('/', 1)[-1]}, sha256 {teacher.sha256[:12]})"
