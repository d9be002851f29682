"""The figure of learned tutors against controls."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rnascl_cli.reporting.data.lineage import TUTOR_WORDS
from rnascl_cli.reporting.figures.style import Plot, Theme, colour, legend_below, marker
from rnascl_cli.reporting.tables.paired_comparison import ORIGINS, Comparison, Read, ReportColumn

PANELS = 6
ACROSS = 3


def comparison_plot(comparison: Comparison) -> Plot:
    """Return accuracy under each kind of map, a panel a measure: each seed's students and their mean."""
    shown = _chosen(comparison)
    given = {trial.origin for trial in comparison.trials}
    origins = [origin for origin in ORIGINS if origin in given]
    families = list(comparison.families)

    def draw(figure: Any, theme: Theme) -> None:
        down = math.ceil(len(shown) / ACROSS)
        axes = figure.subplots(down, min(ACROSS, len(shown)), squeeze=False, sharex=True).flatten()
        handles: dict[str, Any] = {}
        for axis, measure in zip(axes, shown, strict=False):
            for index, family in enumerate(families):
                shift = (index - (len(families) - 1) / 2) * min(0.22, 0.7 / len(families))
                for place, origin in enumerate(origins):
                    values = _values(comparison, family, origin, measure.read)
                    if values:
                        drawn = _column(axis, place + shift, values, index, theme)
                        handles.setdefault(comparison.families[family], drawn)
            axis.set_title(measure.column.label)
            axis.set_xticks(range(len(origins)), [TUTOR_WORDS[origin].replace(" ", "\n") for origin in origins])
            axis.set_xlim(-0.6, len(origins) - 0.4)
            axis.margins(y=0.2)
            axis.grid(visible=False, axis="x")
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for row in range(down):
            axes[row * min(ACROSS, len(shown))].set_ylabel("Accuracy (%)")
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"tutor-comparison-{comparison.name}",
        f"Learned tutors against controls ({comparison.name})",
        f"Accuracy of students that differ in their tutor map alone; {comparison.words}. A marker is a student (one "
        "seed), a bar the mean over seeds. The panels have scales of their own.",
        (1.0 + 3.4 * min(ACROSS, len(shown)), 1.2 + 2.9 * math.ceil(len(shown) / ACROSS)),
        draw,
    )


def _chosen(comparison: Comparison) -> list[ReportColumn]:
    """Return the measures to draw: clean accuracy, and the attacks that say most."""
    order = ("Clean", "AutoAttack", "PGD-20", "CW", "MI-FGSM", "FGSM")

    def rank(measure: ReportColumn) -> int:
        label = measure.column.label
        return next((index for index, name in enumerate(order) if label.startswith(name)), len(order))

    wanted = sorted(comparison.measures, key=rank)[:PANELS]
    return [measure for measure in comparison.measures if measure in wanted]


def _values(comparison: Comparison, family: str, origin: Any, read: Read) -> list[float]:
    found = (read(trial.measured) for trial in comparison.of(family, origin))
    return [100 * value for value in found if value is not None]


def _column(axis: Any, place: float, values: list[float], look: int, theme: Theme) -> Any:
    mean = statistics.fmean(values)
    axis.hlines(mean, place - 0.09, place + 0.09, color=theme.ink, linewidth=2.2, zorder=3)
    where = [place] * len(values)
    return axis.scatter(
        where, values, s=42, marker=marker(look), color=colour(look), edgecolors=theme.ink, linewidths=0.5
    )
