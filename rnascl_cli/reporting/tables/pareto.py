"""Networks that ``derive`` takes from a search under a budget or a Pareto search, and the students of a front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rnascl_cli.artifacts.documents import BudgetRecord, FrontPoint, SearchDocument
from rnascl_cli.reporting.data.lineage import ReportModel, StudentArtifact
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import EMPTY, Cell, Column, Table, accuracy, number, text
from rnascl_cli.spaces import SPACES, Budget, NetworkSpace


def derived_widths(search: SearchDocument) -> list[int]:
    """Return the widths that ``derive`` takes: the most likely ones, within the budget of the search if any."""
    space = SPACES.get(search.space)
    if search.budget is not None and space is not None:
        budget = Budget(search.budget.max_macs, search.budget.max_params)
        if [list(choices) for choices in space.block_choices] == search.width_choices:
            networks = NetworkSpace(space, num_classes=search.num_classes, input_size=search.input_size)
            if budget.keeps(networks.smallest):
                return networks.most_likely(search.width_logits, budget).widths
    return [
        choices[logits.index(max(logits))]
        for choices, logits in zip(search.width_choices, search.width_logits, strict=True)
    ]


def budget_words(budget: BudgetRecord | None) -> str:
    """Return a budget in words; nothing for None."""
    if budget is None:
        return ""
    limits = ((budget.max_macs, "MACs"), (budget.max_params, "params"))
    return "budget: at most " + " and ".join(f"{limit:,} {what}" for limit, what in limits if limit is not None)


class FrontStudent(NamedTuple):
    """A student that is a point of a front.

    Attributes:
        front: Label of the front: the search and the training method.
        point: Index of the point.
        budget: Budget of the network.
        model: The model.
        artifact: Document of its training.
    """

    front: str
    point: FrontPoint
    budget: BudgetRecord | None
    model: ReportModel
    artifact: StudentArtifact

    @property
    def macs(self) -> float:
        """MACs in millions."""
        return self.artifact.document.architecture.macs / 1e6


def front_students(models: Sequence[ReportModel]) -> list[FrontStudent]:
    """Return the students that are points of a front (``search --pareto``), by front and point."""
    students = []
    for model in models:
        if model.artifact and model.derived and (point := model.derived.document.point):
            front = f"{model.search.run if model.search else 'unknown search'}, {model.trained}"
            students.append(FrontStudent(front, point, model.derived.document.budget, model, model.artifact))
    return sorted(students, key=lambda student: (student.front, student.point.index, student.artifact.run))


def front_table(students: Sequence[FrontStudent]) -> Table:
    """Return size and clean accuracy of the students, by front."""
    columns = [
        Column("Front", note="the search and the training method"),
        Column("Point", True, "numbered by increasing MACs"),
        Column("Model"),
        Column("Params (M)", True),
        Column("MACs (M)", True),
        Column("Clean (%)", True, "on all test images of the run"),
    ]
    intro = "Students of one search over a range of MACs (search --pareto). Clean accuracy in %."
    return Table("fronts", "Pareto fronts", columns, [_row(student) for student in students], intro=intro)


def _row(student: FrontStudent) -> list[Cell]:
    document = student.artifact.document
    data = document.provenance.data
    return [
        text(student.front),
        Cell(f"{student.point.index} of {student.point.of}", float(student.point.index)),
        text(student.model.name, href=provenance_anchor(student.artifact)),
        number(document.architecture.params / 1e6, ".3f"),
        number(student.macs, ".2f", note=budget_words(student.budget)),
        accuracy(document.clean_accuracy, data.test_images, bar=True) if data else Cell(EMPTY),
    ]
