"""Summary of the report: key numbers, and the size, accuracy and audit of each model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import DataReference
from rnascl_cli.core.errors import pluralise
from rnascl_cli.reporting.data.collect import describe_data, describe_teacher
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, ComparableResult, common_eps
from rnascl_cli.reporting.data.lineage import ReportModel, StudentArtifact
from rnascl_cli.reporting.tables.attacks import WORST_CASE_NOTE, clean_cell, worst_case_cell
from rnascl_cli.reporting.tables.audit import audit_cell, unaudited
from rnascl_cli.reporting.tables.pareto import budget_words
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import (
    EMPTY,
    Cell,
    Column,
    Table,
    accuracy,
    compact_widths,
    number,
    percent,
    text,
)


@dataclass(frozen=True)
class SummaryTile:
    """A key number at the top of the page.

    Attributes:
        label: What the number is.
        value: The number.
        note: Model and conditions.
        alert: Whether to highlight it as a problem.
    """

    label: str
    value: str
    note: str
    alert: bool = False


def tiles(models: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> list[SummaryTile]:
    """Return the key numbers of the first group of measurements."""
    finetuned = sum(model.finetuned is not None for model in models)
    students = sum(model.artifact is not None for model in models)
    trained = f"{students} trained by the given runs, {finetuned} of them adversarially fine-tuned"
    shown = [SummaryTile("Models", str(len(models)), trained)]
    if not groups:
        return [*shown, SummaryTile("Robust accuracy", "unknown", "no attack run is given")]
    group = groups[0]
    images = f"{group.n:,} test images, data {group.letter}"
    if best := _best(group, lambda one: one.attack.document.clean_accuracy):
        fraction, name = best
        shown.append(SummaryTile("Best clean accuracy", f"{percent(fraction, group.n)} %", f"{name}; {images}"))
    common = common_eps(group)
    if common and (best := _best(group, lambda one: one.worst_case_at(common.eps_value))):
        fraction, name = best
        norm = "L-inf" if group.norm == "Linf" else group.norm
        protocol = "" if group.protocol == "pixel" else f", {group.protocol}"
        label = f"Best robust accuracy ({norm}, {common.eps}{protocol})"
        note = f"worst case of {name}; {images}"
        shown.append(SummaryTile(label, f"{percent(fraction, group.n)} %", note))
    return [*shown, _audit_tile(groups)]


def _best(group: ComparableGroup, read: Callable[[ComparableResult], float | None]) -> tuple[float, str] | None:
    known = [(fraction, one.model.name) for one in group.measurements if (fraction := read(one)) is not None]
    return max(known, key=lambda item: item[0], default=None)


def _audit_tile(groups: Sequence[ComparableGroup]) -> SummaryTile:
    audits = {
        (one.model.name, group.letter): one.passed_audit for group in groups for one in group.measurements if one.audit
    }
    missing = len(unaudited(groups))
    note = f"{pluralise(missing, 'model')} not audited" if missing else "all attacked models are audited"
    if not audits:
        return SummaryTile("Gradient-masking audits", "none", note)
    passed = sum(audits.values())
    return SummaryTile("Audits passed", f"{passed} of {len(audits)}", note, alert=passed < len(audits))


def headline(group: ComparableGroup) -> Table:
    """Return size, clean accuracy, worst-case accuracy and audit of each model of a group."""
    common = common_eps(group)
    return Table(
        f"summary-{group.letter.lower()}",
        f"Attacked models ({group.letter})",
        [
            Column("Model"),
            Column("Training"),
            Column("Space"),
            Column("Params (M)", True),
            Column("MACs (M)", True),
            Column("Clean", True, f"accuracy in % on the same {group.n} images, unperturbed"),
            Column(f"Worst case {common.eps}" if common else "Worst case", True, WORST_CASE_NOTE),
            Column("Audit"),
            Column("Warnings", True),
        ],
        [_headline_row(one, common.eps_value if common else None) for one in group.measurements],
        intro=f"Accuracy in % on {group.description}.",
    )


def _headline_row(measurement: ComparableResult, eps: float | None) -> list[Cell]:
    model, architecture = measurement.model, measurement.model.architecture
    warnings = measurement.attack.document.warnings
    return [
        text(model.name, note=model.origin, href=provenance_anchor(model.artifact or measurement.attack)),
        text(model.trained),
        text(architecture.space if architecture else None),
        number(architecture.params / 1e6 if architecture else None, ".3f"),
        number(architecture.macs / 1e6 if architecture else None, ".2f"),
        clean_cell(measurement, bar=True),
        worst_case_cell(measurement, eps, bar=True) if eps is not None else Cell(EMPTY, None, "no attack result"),
        audit_cell(measurement),
        Cell(f"⚠ {len(warnings)}", float(len(warnings)), "; ".join(warnings), True)
        if warnings
        else Cell("none", 0.0, tone="faint"),
    ]


def model_tables(models: Sequence[ReportModel]) -> list[Table]:
    """Return size and clean accuracy of the students, one table per training data set."""
    parts = by_data(models)
    return [_model_table(index, part, len(parts)) for index, part in enumerate(parts, 1)]


def by_data(models: Sequence[ReportModel]) -> list[list[ReportModel]]:
    """Group the students by data: same test images, and equally many training images of the same set.

    Each seed draws its own held-out images, so fingerprints may differ between seeds, but not within a seed.
    """
    by_kind: dict[str, list[tuple[StudentArtifact, ReportModel]]] = {}
    for model in models:
        if model.artifact:
            kind = _kind_of_data(model.artifact.document.provenance.data)
            by_kind.setdefault(kind, []).append((model.artifact, model))
    parts: dict[tuple[str, str], list[ReportModel]] = {}
    for kind, students in by_kind.items():
        by_seed: dict[int, set[str]] = {}
        for artifact, _ in students:
            by_seed.setdefault(artifact.document.provenance.seed, set()).add(_fingerprint(artifact))
        ambiguous = any(len(fingerprints) > 1 for fingerprints in by_seed.values())
        for artifact, model in students:
            parts.setdefault((kind, _fingerprint(artifact) if ambiguous else ""), []).append(model)
    return list(parts.values())


def _fingerprint(artifact: StudentArtifact) -> str:
    data = artifact.document.provenance.data
    return data.fingerprint if data else ""


def _kind_of_data(data: DataReference | None) -> str:
    """Return what identifies the data apart from the seed; a drawn test set depends on the seed."""
    if data is None:
        return ""
    return data.model_dump_json() if data.limit_test is not None else data.model_dump_json(exclude={"fingerprint"})


def _model_table(index: int, models: Sequence[ReportModel], count: int) -> Table:
    columns = [
        Column("Model"),
        Column("Space"),
        Column("Training"),
        Column("Teacher"),
        Column("Widths", note="output channels of each block; 16×3 means three blocks of 16"),
        Column("Params (M)", True),
        Column("MACs (M)", True),
        Column("Epochs", True),
        Column("Seed", True),
        Column("Clean (%)", True, "on all test images of the run"),
        Column("Lineage"),
    ]
    artifacts = [model.artifact for model in models if model.artifact]
    data = artifacts[0].document.provenance.data
    counts = (
        f": {data.train_images:,} training images, {data.holdout_images:,} held out, {data.test_images:,} test images"
        if data
        else ""
    )
    variants = len({_fingerprint(artifact) for artifact in artifacts})
    first = f" (the first of {variants}: each seed draws its own held-out images)" if variants > 1 else ""
    return Table(
        f"models-{index}",
        "Students" if count == 1 else f"Students, data {index} of {count}",
        columns,
        [_model_row(model) for model in models],
        intro=f"Trained on {describe_data(data)}{first}{counts}. Clean accuracy in % on the test images.",
    )


def _model_row(model: ReportModel) -> list[Cell]:
    assert model.artifact is not None
    document, teacher = model.artifact.document, model.teacher
    data = document.provenance.data
    architecture = document.architecture
    uses_teacher = document.paradigm != "standard" or document.provenance.teacher or model.distill
    return [
        text(model.name, href=provenance_anchor(model.artifact)),
        text(architecture.space),
        text(model.trained),
        text(f"{teacher.architecture} ({teacher.sha256[:8]})", note=describe_teacher(teacher))
        if teacher and uses_teacher
        else Cell(EMPTY),
        Cell(compact_widths(architecture.widths), float(sum(architecture.widths))),
        number(architecture.params / 1e6, ".3f"),
        number(
            architecture.macs / 1e6, ".2f", note=budget_words(model.derived.document.budget) if model.derived else ""
        ),
        number(document.epochs, "d"),
        number(document.provenance.seed, "d"),
        accuracy(document.clean_accuracy, data.test_images if data else 0, bar=True),
        text(model.origin),
    ]
