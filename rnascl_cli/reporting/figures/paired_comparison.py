"""Figure of students under learned tutors and under control maps."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rnascl_cli.reporting.data.lineage import TUTOR_NAMES
from rnascl_cli.reporting.data.paired_comparison import ORIGINS, Measure, TutorComparison, fractions
from rnascl_cli.reporting.figures.style import Plot, Theme, color_of, legend_below, marker
from rnascl_cli.reporting.tables.paired_comparison import measure_columns
from rnascl_cli.reporting.tables.table import Column

MAX_PANELS = 6
COLUMNS = 3
ORDER = ("Clean", "AutoAttack", "PGD-20", "CW", "MI-FGSM", "FGSM")


def comparison_plot(comparison: TutorComparison) -> Plot:
    """Return the accuracy under each kind of tutor map, one panel per measure: each seed and the mean."""
    shown = _panels(comparison)
    given = {run.variant for run in comparison.runs}
    origins = [origin for origin in ORIGINS if origin in given]
    rows, columns = math.ceil(len(shown) / COLUMNS), min(COLUMNS, len(shown))

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
        handles: dict[str, Any] = {}
        for axis, (measure, column) in zip(axes, shown.items(), strict=False):
            for index, label in enumerate(comparison.labels):
                shift = (index - (len(comparison.labels) - 1) / 2) * min(0.22, 0.7 / len(comparison.labels))
                for place, origin in enumerate(origins):
                    values = [100 * value for value in fractions(comparison.of(label, origin), measure)]
                    if values:
                        handles.setdefault(label, _seeds(axis, place + shift, values, index, theme))
            axis.set_title(column.label)
            axis.set_xticks(range(len(origins)), [TUTOR_NAMES[origin].replace(" ", "\n") for origin in origins])
            axis.set_xlim(-0.6, len(origins) - 0.4)
            axis.margins(y=0.2)
            axis.grid(visible=False, axis="x")
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for row in range(rows):
            axes[row * columns].set_ylabel("Accuracy (%)")
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"tutor-comparison-{comparison.name}",
        f"Learned tutors and control maps ({comparison.name})",
        f"Accuracy of students that differ only in their tutor map; {comparison.description}. A marker is one student "
        "(one seed), a bar the mean over seeds. Each panel has its own scale.",
        (1.0 + 3.4 * columns, 1.2 + 2.9 * rows),
        draw,
    )


def _panels(comparison: TutorComparison) -> dict[Measure, Column]:
    """Return the measures to draw: clean accuracy, then the strongest attacks."""
    columns = measure_columns(comparison)

    def rank(measure: Measure) -> int:
        label = columns[measure].label
        return next((index for index, name in enumerate(ORDER) if label.startswith(name)), len(ORDER))

    kept = sorted(columns, key=rank)[:MAX_PANELS]
    return {measure: column for measure, column in columns.items() if measure in kept}


def _seeds(axis: Any, place: float, values: list[float], index: int, theme: Theme) -> Any:
    mean = statistics.fmean(values)
    axis.hlines(mean, place - 0.09, place + 0.09, color=theme.ink, linewidth=2.2, zorder=3)
    style = {"marker": marker(index), "color": color_of(index), "edgecolors": theme.ink, "linewidths": 0.5}
    return axis.scatter([place] * len(values), values, s=42, **style)
