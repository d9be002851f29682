"""Budgets and Pareto fronts in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.artifacts.documents import BudgetRecord, DerivedDocument, FrontPoint, SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document, sha256_file, write_document
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.figures.search import front_plot
from rnascl_cli.reporting.figures.style import render
from rnascl_cli.reporting.sections import sections
from rnascl_cli.reporting.tables.pareto import budget_words, derived_widths, front_students, front_table
from rnascl_cli.spaces import SPACES, Budget, NetworkSpace
from rnascl_cli.stages.search.derive import derive
from tests.reporting.factories import write_derived, write_search, write_train

pytestmark = pytest.mark.unit

BUDGET = BudgetRecord(max_macs=5_500_000)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A search for a front of three, two of whose points were trained, and a student of no front."""
    write_search(tmp_path / "search")
    search = read_document(tmp_path / "search" / "search.json", SearchDocument)
    write_document(tmp_path / "search" / "search.json", search.model_copy(update={"pareto": 3, "budget": BUDGET}))
    networks = NetworkSpace(SPACES["S3"], num_classes=10)
    for index, clean in ((3, 0.9), (1, 0.8)):
        run = tmp_path / f"train-{index}"
        found = networks.point(search.width_logits, index, 3, Budget(BUDGET.max_macs))
        document = derive(tmp_path / "search", point=index)
        assert document.architecture.widths == found.widths
        write_document(run / "derived.json", document)
        train_of(run, document, clean)
    write_train(tmp_path / "other", student="o", derived_sha256=write_derived(tmp_path / "other", "0" * 64))
    return tmp_path


def train_of(run: Path, derived: DerivedDocument, clean: float) -> None:
    """A training of a derived document, with its network."""
    write_train(run, student=run.name, derived_sha256=sha256_file(run / "derived.json"), clean=clean)
    trained = read_document(run / "train.json", TrainDocument)
    write_document(run / "train.json", trained.model_copy(update={"architecture": derived.architecture}))


def test_the_points_of_a_front_stand_together(runs: Path) -> None:
    students = front_students(models(collect([runs])))
    table, plot = front_table(students), front_plot(students)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [(row[0], row[1], row[2], row[5]) for row in rows] == [
        ("search, rnas-cl", "1 of 3", "train-1", "80.00"),
        ("search, rnas-cl", "3 of 3", "train-3", "90.00"),
    ]
    assert [float(row[4]) for row in rows] == sorted(float(row[4]) for row in rows)
    assert {row[4].note for row in table.rows} == {"budget: at most 5,500,000 MACs"}
    assert render(plot).png.startswith(b"\x89PNG")


def test_without_a_front_there_is_nothing(tmp_path: Path) -> None:
    write_train(tmp_path / "other", student="o", derived_sha256=write_derived(tmp_path / "other", "0" * 64))
    assert front_students(models(collect([tmp_path]))) == []


def test_the_report_holds_it(runs: Path) -> None:
    found = collect([runs])
    part = next(part for part in sections(found, models(found), [], [], paper=False) if part.name == "runs")
    assert [table.title for table in part.tables if table.name == "fronts"] == ["Pareto fronts"]
    assert [plot.name for plot in part.plots] == ["fronts"]
    captions = [plot.caption for plot in part.all_plots if plot.name.startswith("widths-")]
    assert captions[0].endswith("the one that derive takes (budget: at most 5,500,000 MACs).")


def test_the_frame_is_around_what_derive_takes(runs: Path) -> None:
    found = read_document(runs / "search" / "search.json", SearchDocument)
    assert derived_widths(found) == derive(runs / "search").architecture.widths
    argmax = [
        choices[row.index(max(row))] for choices, row in zip(found.width_choices, found.width_logits, strict=True)
    ]
    assert derived_widths(found) != argmax
    for change in ({"budget": None}, {"budget": BudgetRecord(max_macs=9)}, {"space": "elsewhere"}, {"space": "M"}):
        assert derived_widths(found.model_copy(update=change)) == argmax


def test_words_for_a_budget() -> None:
    assert budget_words(None) == ""
    assert budget_words(BudgetRecord(max_macs=8_000_000, max_params=200_000)) == (
        "budget: at most 8,000,000 MACs and 200,000 params"
    )
    assert FrontPoint(index=2, of=2).of == 2
    with pytest.raises(ValueError, match="index 3 is beyond the 2 points"):
        FrontPoint(index=3, of=2)
