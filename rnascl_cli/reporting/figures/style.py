"""How figures are drawn: themes, colors that color-blind readers can distinguish, reproducible PNG and SVG.

Matplotlib's object interface alone: no pyplot, so no global figure and no display.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

# Okabe and Ito (2008), the strongest contrasts first; yellow is left out, being too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--")
HEAT = "cividis"
MANY_POINTS = 25
PNG_DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colours of the parts that are no data."""

    ink: str
    faint: str
    paper: str


LIGHT = Theme(ink="#1b1f24", faint="#d0d4d9", paper="#ffffff")
DARK = Theme(ink="#e6e6e6", faint="#4a4f57", paper="none")


@dataclass(frozen=True)
class Plot:
    """A figure to be drawn.

    Attributes:
        name: Its file name without ending, and its anchor.
        title: A heading.
        caption: What it shows and how to read it, units included.
        size: Width and height in inches.
        draw: Draws into an empty figure, with the colors of a theme.
    """

    name: str
    title: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Any, Theme], None]


@dataclass(frozen=True)
class Rendered:
    """A drawn figure.

    Attributes:
        plot: What was drawn.
        png: On white, for Markdown and slides.
        svg: On white.
        svg_dark: For dark pages, without a background.
    """

    plot: Plot
    png: bytes
    svg: bytes
    svg_dark: bytes


def render(plot: Plot) -> Rendered:
    """Draw a figure in both themes; the same data gives the same bytes."""
    png, svg = _draw(plot, LIGHT, ("png", "svg"))
    (svg_dark,) = _draw(plot, DARK, ("svg",))
    return Rendered(plot, png, svg, svg_dark)


def _draw(plot: Plot, theme: Theme, formats: Sequence[str]) -> list[bytes]:
    with matplotlib.rc_context(_settings(theme)), warnings.catch_warnings():
        # A run may be named in a script that the font lacks: a box in its place is no reason to stop or to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=plot.size, layout="constrained")
        plot.draw(figure, theme)
        return [_save(figure, form) for form in formats]


def _save(figure: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "svg.hashsalt": "rnascl",
        "text.parse_math": False,  # a run may have $ in its name
        "font.size": 10,
        "axes.titlesize": 11,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": "none",
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "hatch.linewidth": 0.6,
    }


def color_of(index: int) -> str:
    """Return the ``index``-th color."""
    return PALETTE[index % len(PALETTE)]


def shading(count: int) -> list[str]:
    """Return ``count`` colors from dark to bright."""
    scale = matplotlib.colormaps[HEAT]
    return [to_hex(scale(index / max(count - 1, 1))) for index in range(count)]


def marker(index: int) -> str:
    """Return the ``index``-th marker, which differs for repeated colors."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def line(index: int) -> str:
    """Return the ``index``-th line style, so that neighbors differ in more than color."""
    return LINES[index % len(LINES)]


def label(name: str) -> str:
    """Return a legend label that matplotlib shows: it hides those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def plain_log(axis: Any) -> None:
    """Give an axis a logarithmic scale with plain numbers: powers of ten would need the mathematical notation."""
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put one legend under all panels."""
    if not handles:
        return
    longest = max(len(name) for name in labels)
    columns = max(1, min(4, len(labels), int(figure.get_figwidth() * 11) // (longest + 6)))
    figure.legend(handles, [label(name) for name in labels], loc="outside lower center", ncols=columns)
