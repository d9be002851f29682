"""The head of the report: each model with its size, clean and worst-case accuracy and audit, and what stands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import DataReference
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, ComparableResult, usual_eps
from rnascl_cli.reporting.data.lineage import ReportModel, StudentArtifact
from rnascl_cli.reporting.tables.attacks import clean_cell, worst_cell
from rnascl_cli.reporting.tables.audit import audit_cell, unaudited
from rnascl_cli.reporting.tables.pareto import budget_words
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    accuracy,
    data_words,
    number,
    percent,
    ranges,
    teacher_words,
    text,
)


@dataclass(frozen=True)
class SummaryTile:
    """A number at the head of the page.

    Attributes:
        label: What it is.
        value: The number.
        note: Whose, and measured how.
        loud: Whether it is a warning.
    """

    label: str
    value: str
    note: str
    loud: bool = False


def tiles(found: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> list[SummaryTile]:
    """Return what stands out in the first group of measurements."""
    finetuned = sum(model.finetuned is not None for model in found)
    students = sum(model.made is not None for model in found)
    counted = f"{students} trained here, {finetuned} of them fine-tuned with adversarial images"
    shown = [SummaryTile("Models", str(len(found)), counted)]
    if not groups:
        return [*shown, SummaryTile("Under attack", "nothing", "no attack run is given")]
    group = groups[0]
    where = f"{group.n:,} test images, data {group.letter}"
    if best := _highest(group, lambda measured: measured.attack.document.clean_accuracy):
        share, name = best
        shown.append(SummaryTile("Highest clean accuracy", f"{percent(share, group.n)} %", f"{name}; {where}"))
    usual = usual_eps(group)
    if usual and (best := _highest(group, lambda measured: measured.worst_case_at(usual.eps_value))):
        share, name = best
        label = f"Highest worst case at {usual.eps}, {group.protocol}"
        shown.append(SummaryTile(label, f"{percent(share, group.n)} %", f"{name}; {where}"))
    return [*shown, _audit_tile(groups)]


def _highest(group: ComparableGroup, of: Callable[[ComparableResult], float | None]) -> tuple[float, str] | None:
    known = [(share, found.model.name) for found in group.measured if (share := of(found)) is not None]
    return max(known, key=lambda item: item[0], default=None)


def _audit_tile(groups: Sequence[ComparableGroup]) -> SummaryTile:
    cards = {
        (found.model.name, group.letter): all(check.passed for check in found.card)
        for group in groups
        for found in group.measured
        if found.card
    }
    without = len(unaudited(groups))
    note = f"{without} model{'s' * (without != 1)} not audited" if without else "every attacked model is audited"
    if not cards:
        return SummaryTile("Audits for masked gradients", "none", note)
    passed = sum(cards.values())
    return SummaryTile("Audits passed", f"{passed} of {len(cards)}", note, loud=passed < len(cards))


def headline(group: ComparableGroup) -> Table:
    """Return the summary of one group: size, clean accuracy, worst-case robust accuracy and audit of each model."""
    usual = usual_eps(group)
    worst = f"Worst case {usual.eps}" if usual else "Worst case"
    return Table(
        f"summary-{group.letter.lower()}",
        f"Models under attack ({group.letter})",
        [
            Column("Model"),
            Column("Trained with"),
            Column("Space"),
            Column("Params (M)", True),
            Column("MACs (M)", True),
            Column("Clean", True, f"accuracy in % on the same {group.n} images, unperturbed"),
            Column(worst, True, "share of images that no attack of this eps broke"),
            Column("Audit"),
            Column("Warnings", True),
        ],
        [_headline_row(found, usual.eps_value if usual else None) for found in group.measured],
        intro=f"In % of {group.words}.",
    )


def _headline_row(found: ComparableResult, eps: float | None) -> list[Cell]:
    model, built = found.model, found.model.architecture
    warned = found.attack.document.warnings
    return [
        text(model.name, note=model.origin, href=provenance_anchor(model.made or found.attack)),
        text(model.trained),
        text(built.space if built else None),
        number(built.params / 1e6 if built else None, ".3f"),
        number(built.macs / 1e6 if built else None, ".2f"),
        clean_cell(found, bar=True),
        worst_cell(found, eps, bar=True) if eps is not None else Cell(NOTHING, None, "no attack result"),
        audit_cell(found),
        Cell(f"⚠ {len(warned)}", float(len(warned)), "; ".join(warned), True)
        if warned
        else Cell("none", 0.0, tone="faint"),
    ]


def model_tables(models: Sequence[ReportModel]) -> list[Table]:
    """Return the students' sizes and clean accuracies: one table for each set of data they were trained on."""
    found = by_data(models)
    return [_model_table(index, alike, len(found)) for index, alike in enumerate(found, 1)]


def by_data(models: Sequence[ReportModel]) -> list[list[ReportModel]]:
    """Sort the students by their data: in each list all have the same test images, and train on as many of one set.

    Each seed draws its own images to hold out, so among seeds the fingerprint may differ; within one it may not.
    """
    kinds: dict[str, list[tuple[StudentArtifact, ReportModel]]] = {}
    for model in models:
        if model.made:
            kinds.setdefault(_kind_of_data(model.made.document.provenance.data), []).append((model.made, model))
    found: dict[tuple[str, str], list[ReportModel]] = {}
    for kind, students in kinds.items():
        drawn: dict[int, set[str]] = {}
        for made, _ in students:
            drawn.setdefault(made.document.provenance.seed, set()).add(_fingerprint(made))
        changed = any(len(fingerprints) > 1 for fingerprints in drawn.values())
        for made, model in students:
            found.setdefault((kind, _fingerprint(made) if changed else ""), []).append(model)
    return list(found.values())


def _fingerprint(made: StudentArtifact) -> str:
    data = made.document.provenance.data
    return data.fingerprint if data else ""


def _kind_of_data(data: DataReference | None) -> str:
    """Return what tells sets of data apart but for the seed; a drawn test set is of its seed alone."""
    if data is None:
        return ""
    return data.model_dump_json() if data.limit_test is not None else data.model_dump_json(exclude={"fingerprint"})


def _model_table(index: int, models: Sequence[ReportModel], of: int) -> Table:
    columns = [
        Column("Model"),
        Column("Space"),
        Column("Trained with"),
        Column("Teacher"),
        Column("Widths", note="output channels of each block; 16×3 is three blocks of 16"),
        Column("Params (M)", True),
        Column("MACs (M)", True),
        Column("Epochs", True),
        Column("Seed", True),
        Column("Clean (%)", True, "on all test images of the run"),
        Column("Made from"),
    ]
    first = models[0].made
    assert first is not None
    data = first.document.provenance.data
    counts = (
        f"; {data.train_images:,} images to train on, {data.holdout_images:,} held out, {data.test_images:,} to test on"
        if data
        else ""
    )
    drawn = {_fingerprint(model.made) for model in models if model.made}
    each = f" (the first of {len(drawn)}: each seed holds out images of its own)" if len(drawn) > 1 else ""
    return Table(
        f"models-{index}",
        "Students" if of == 1 else f"Students, data {index} of {of}",
        columns,
        [_model_row(model) for model in models],
        intro=f"Trained on {data_words(first.document.provenance)}{each}{counts}. Clean accuracy in %, on the latter.",
    )


def _teacher_cell(model: ReportModel) -> Cell:
    if model.teacher is None:
        return Cell(NOTHING)
    return text(f"{model.teacher.architecture} ({model.teacher.sha256[:8]})", note=teacher_words(model.teacher) or "")


def _model_row(model: ReportModel) -> list[Cell]:
    assert model.made is not None
    document = model.made.document
    data = document.provenance.data
    built = document.architecture
    return [
        text(model.name, href=provenance_anchor(model.made)),
        text(built.space),
        text(model.trained),
        _teacher_cell(model)
        if document.paradigm != "standard" or document.provenance.teacher or model.distill
        else Cell(NOTHING),
        Cell(ranges(built.widths), float(sum(built.widths))),
        number(built.params / 1e6, ".3f"),
        number(built.macs / 1e6, ".2f", note=budget_words(model.derived.document.budget) if model.derived else ""),
        number(document.epochs, "d"),
        number(document.provenance.seed, "d"),
        accuracy(document.clean_accuracy, data.test_images if data else 0, bar=True),
        text(model.origin),
    ]
