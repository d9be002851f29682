"""Figure 1 of the paper, from its tables and from measured runs: each protocol in a panel of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.figures.attacks import TEACHER_AREA, PlotStyle, above_zero, area, plot_styles, scatter
from rnascl_cli.reporting.figures.style import PALETTE, Plot, Theme, legend_below
from rnascl_cli.reporting.published import TABLE_1, TABLE_3, WITHOUT, PublishedRow, PublishedTable
from rnascl_cli.reporting.tables.published import dataset_of

PANELS = 4
# Marker and color of the published rows: the paper's own and others', without and with adversarial training.
KINDS = {
    (True, True): ("published: RNAS-CL", "o", PALETTE[0]),
    (True, False): ("published: RNAS-CL + TRADES", "s", PALETTE[1]),
    (False, True): ("published: others", "^", "#7F7F7F"),
    (False, False): ("published: others, adversarially trained", "D", PALETTE[2]),
}


def published_plots(groups: Sequence[ComparableGroup], models: Sequence[ReportModel]) -> list[Plot]:
    """Return published and measured points, one figure for each data set of the paper that has measurements."""
    plots = []
    for table in (TABLE_1, TABLE_3):
        eps = parse_epsilon(table.eps).value
        fitting = [
            group
            for group in groups
            if group.norm == "Linf"
            and dataset_of(group.measurements[0].attack.document.provenance.data) == table.dataset
            and any(found.result_at("pgd20", eps) for found in group.measurements)
        ]
        if fitting:
            plots.append(_plot(table, fitting[: PANELS - 1], models))
    return plots


def _plot(table: PublishedTable, groups: Sequence[ComparableGroup], models: Sequence[ReportModel]) -> Plot:
    styles = [plot_styles(group, models) for group in groups]

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(1, 1 + len(groups), sharex=True, sharey=True)
        handles = _published(axes[0], table)
        axes[0].set_title("As published,\nprotocol not stated")
        for axis, group, own in zip(axes[1:], groups, styles, strict=True):
            _measured(axis, group, own, table, theme, handles)
        for axis in axes:
            axis.set_xlabel("Clean accuracy (%)")
            axis.margins(0.1)
        axes[0].set_ylabel(f"Accuracy under PGD-20, eps {table.eps} (%)")
        above_zero(axes[0])
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"published-and-measured-{table.dataset}",
        f"Clean and robust accuracy, published and measured (Table {table.number})",
        f"Left: Table {table.number} as printed, hollow. Right: measured, filled, one panel per protocol and "
        "set of images. Marker area grows with the square root of the params. The published protocol is not stated; "
        "the authors' public code is consistent with paper-code. Points of different protocols are not comparable.",
        (4.2 * (1 + len(groups)), 5.4),
        draw,
    )


def _published(axis: Any, table: PublishedTable) -> dict[str, Any]:
    shown = {KINDS[row.paradigm is not None, row.trained == WITHOUT][0] for row in table.rows}
    handles = {
        name: axis.scatter([], [], s=60, marker=shape, color="none", edgecolors=ink, linewidths=1.4)
        for name, shape, ink in KINDS.values()
        if name in shown
    }
    for row in table.rows:
        if not {"clean", "pgd20"} <= set(row.measures):
            continue
        _, shape, ink = KINDS[row.paradigm is not None, row.trained == WITHOUT]
        size = TEACHER_AREA if row.params_m is None else area(round(row.params_m * 1e6))
        axis.scatter(
            row.measures["clean"],
            row.measures["pgd20"],
            s=size,
            marker=shape,
            color="none",
            edgecolors=ink,
            linewidths=1.4,
        )
        if row.paradigm is not None:
            _name(axis, row, ink)
    return handles


def _name(axis: Any, row: PublishedRow, ink: str) -> None:
    words = (row.teacher or "").upper() if row.space == "I" else row.space  # in Table 3 the teacher tells rows apart
    axis.annotate(
        words,
        (row.measures["clean"], row.measures["pgd20"]),
        (6, -11),
        textcoords="offset points",
        fontsize=7,
        color=ink,
    )


def _measured(
    axis: Any,
    group: ComparableGroup,
    styles: Sequence[PlotStyle],
    table: PublishedTable,
    theme: Theme,
    handles: dict[str, Any],
) -> None:
    found: dict[str, Any] = {}
    scatter(axis, group, styles, "pgd20", parse_epsilon(table.eps).value, theme, found)
    handles.update({name: handle for name, handle in found.items() if name not in handles})
    axis.set_title(f"Measured under {group.protocol},\n{group.n:,} images (data {group.letter})")
