"""Searches under a budget or for many sizes: what derive takes of them, and the students of a front side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rnascl_cli.artifacts.documents import BudgetRecord, FrontPoint, SearchDocument
from rnascl_cli.reporting.data.lineage import ReportModel, StudentArtifact
from rnascl_cli.reporting.figures.style import Plot, Theme, colour, legend_below, line, marker
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import NOTHING, Cell, Column, Table, accuracy, number, text
from rnascl_cli.spaces import SPACES, Budget, NetworkSpace


def derived_widths(found: SearchDocument) -> list[int]:
    """Return the widths that derive takes: the most likely ones, within the search's budget where it has one."""
    space = SPACES.get(found.space)
    if found.budget is not None and space is not None:
        budget = Budget(found.budget.max_macs, found.budget.max_params)
        if [list(choices) for choices in space.block_choices] == found.width_choices:
            networks = NetworkSpace(space, num_classes=found.num_classes, input_size=found.input_size)
            if budget.keeps(networks.smallest):
                return networks.most_likely(found.width_logits, budget).widths
    return [choices[row.index(max(row))] for choices, row in zip(found.width_choices, found.width_logits, strict=True)]


def budget_words(budget: BudgetRecord | None) -> str:
    """Say what a network was kept under; nothing where there was no budget."""
    if budget is None:
        return ""
    limits = ((budget.max_macs, "MACs"), (budget.max_params, "params"))
    return "budget: at most " + " and ".join(f"{limit:,} {what}" for limit, what in limits if limit is not None)


class _Student(NamedTuple):
    front: str  # the search, and how the students of one line were trained
    point: FrontPoint
    budget: BudgetRecord | None
    model: ReportModel
    made: StudentArtifact

    @property
    def macs(self) -> float:
        return self.made.document.architecture.macs / 1e6


def fronts(models: Sequence[ReportModel]) -> tuple[list[Table], list[Plot]]:
    """Return the students that are points of a front as a table and a figure; nothing where there are none."""
    students = [found for model in models if (found := _student(model)) is not None]
    if not students:
        return [], []
    students.sort(key=lambda found: (found.front, found.point.index, found.made.run))
    columns = [
        Column("Front", note="the search, and how its students were trained"),
        Column("Point", True, "of how many, by rising MACs"),
        Column("Model"),
        Column("Params (M)", True),
        Column("MACs (M)", True),
        Column("Clean (%)", True, "on all test images of the run"),
    ]
    intro = "Students of one search over a range of MACs (search --pareto). Clean accuracy in %."
    return [Table("fronts", "Fronts", columns, list(map(_row, students)), intro=intro)], [_plot(students)]


def _student(model: ReportModel) -> _Student | None:
    if model.made is None or model.derived is None or (point := model.derived.document.point) is None:
        return None
    searched = model.search.run if model.search else "unknown search"
    return _Student(f"{searched}, {model.trained}", point, model.derived.document.budget, model, model.made)


def _row(found: _Student) -> list[Cell]:
    document = found.made.document
    data = document.provenance.data
    return [
        text(found.front),
        Cell(f"{found.point.index} of {found.point.of}", float(found.point.index)),
        text(found.model.name, href=provenance_anchor(found.made)),
        number(document.architecture.params / 1e6, ".3f"),
        number(found.macs, ".2f", note=budget_words(found.budget)),
        accuracy(document.clean_accuracy, data.test_images, bar=True) if data else Cell(NOTHING),
    ]


def _plot(students: Sequence[_Student]) -> Plot:
    lines = list(dict.fromkeys(found.front for found in students))

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        handles = []
        for index, front in enumerate(lines):
            line_up = (found for found in students if found.front == front)
            own = sorted((found.macs, 100 * found.made.document.clean_accuracy) for found in line_up)
            look = {"color": colour(index), "linestyle": line(index), "marker": marker(index)}
            handles += axis.plot([macs for macs, _ in own], [clean for _, clean in own], **look)
        axis.set_xlabel("MACs (M)")
        axis.set_ylabel("Clean accuracy (%)")
        axis.margins(0.1)
        legend_below(figure, handles, lines)

    return Plot(
        "fronts",
        "Accuracy over MACs",
        "Clean accuracy of students that come from one search, over the MACs of their networks; a line a front.",
        (5.2, 3.6 + 0.22 * len(lines)),
        draw,
    )
