"""Measured numbers beside the paper's, each with its protocol and its difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import DataReference, Provenance
from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.reporting.data.comparable_groups import attack_name
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.published import (
    PUBLISHED_PROTOCOL,
    TABLES,
    Dataset,
    PublishedRow,
    PublishedTable,
)
from rnascl_cli.reporting.tables.attacks import DEPARTED, DEPARTED_NOTE
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import NOTHING, Cell, Column, Table, accuracy, number, points, short_spec, text

CIFAR10 = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
TEACHER_FAMILIES = {
    "wrt34": ("wrt34", "wrn-34-10", "wrn-34-20"),
    "r18": ("r18", "imagenet-r18"),
    "r50": ("r50", "imagenet-r50"),
    "wrt50": ("wrt50", "wrn-50-2", "imagenet-wrn-50-2"),
}
TOLERANCE = 1e-6
UNREPORTED = "-"
DIFFERENCE = "Δ"
PROTOCOLS = ("pixel", "paper-code", None)
"""In the order of their tables; None for models of which only clean accuracy is known."""


@dataclass(frozen=True)
class PublishedComparison:
    """A model's accuracies in per cent, by the published measures' names, of one document.

    Attributes:
        model: Whose.
        protocol: Of the attacks; None where only clean accuracy is known.
        n: Number of test images.
        fingerprint: Of the data.
        measures: Accuracy in per cent by measure.
        departed: The measures whose attack departs from its published setting.
        href: Where the page tells how it was made.
    """

    model: ReportModel
    protocol: str | None
    n: int
    fingerprint: str
    measures: dict[str, float]
    departed: frozenset[str]
    href: str


def dataset_of(data: DataReference | None) -> Dataset | None:
    """Return which of the paper's data sets these are, told by their classes; None for others."""
    if data is None:
        return None
    if {name.lower() for name in data.classes} == CIFAR10 and len(data.classes) == len(CIFAR10):
        return "cifar10"
    if data.spec.startswith("imagenet100") or (_wnids(data.classes) and len(data.classes) == 100):
        return "imagenet100"
    if data.spec.startswith("imagenet") or (_wnids(data.classes) and len(data.classes) == 1000):
        return "imagenet"
    return None


def _wnids(classes: Sequence[str]) -> bool:
    return all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes)


def family(architecture: str | None) -> str | None:
    """Return the paper's short name of a teacher architecture; the name itself where the paper has none."""
    if architecture is None:
        return None
    return next((short for short, names in TEACHER_FAMILIES.items() if architecture in names), architecture)


def readings(model: ReportModel, table: PublishedTable) -> list[PublishedComparison]:
    """Return what was measured of ``model`` on the table's data at the table's eps: one reading an attack document."""
    eps = parse_epsilon(table.eps).value
    found = []
    for attack in model.attacks:
        document, data = attack.document, attack.document.provenance.data
        if data is None or dataset_of(data) != table.dataset:
            continue
        results = [r for r in document.results if abs(r.eps_value - eps) < TOLERANCE and r.norm == "Linf"]
        results.sort(key=lambda result: result.standard)  # of two, the one by the published setting counts
        measures = {"clean": 100 * document.clean_accuracy} | {r.attack: 100 * r.accuracy for r in results}
        departed = {r.attack for r in results} - {r.attack for r in results if r.standard}
        href = provenance_anchor(attack)
        found.append(
            PublishedComparison(
                model, document.protocol, document.n, data.fingerprint, measures, frozenset(departed), href
            )
        )
    if not found and model.made and (data := model.made.document.provenance.data) and dataset_of(data) == table.dataset:
        clean = {"clean": 100 * model.made.document.clean_accuracy}
        href = provenance_anchor(model.made)
        found.append(PublishedComparison(model, None, data.test_images, data.fingerprint, clean, frozenset(), href))
    return [reading for reading in found if set(reading.measures) & set(table.measures)]


def match(model: ReportModel, table: PublishedTable) -> PublishedRow | None:
    """Return the published row a model is to be compared with, the same teacher's before another's.

    Space, paradigm and adversarial fine-tuning must agree, and tutors must be learned ones; a teacher is matched by
    its architecture. The paper perturbs no image before the fine-tuning, and its tables have no rival distillation
    losses: Figure 11, which has them, prints no numbers.
    """
    own = family(model.teacher.architecture if model.teacher else None)
    if model.kind == "teacher":
        rows = [row for row in table.rows if row.paradigm is None and row.teacher]
        return next((row for row in rows if row.teacher == own), None)
    if model.made is None or model.distill or (model.tutors and model.tutors.origin != "searched"):
        return None
    if model.from_scratch or model.robust_search:
        return None
    document = model.made.document
    rows = [
        row
        for row in table.rows
        if row.paradigm == document.paradigm
        and row.finetuned == model.finetuned
        and row.space in (document.architecture.space, None)
    ]
    return min(rows, key=lambda row: row.teacher not in (own, None), default=None)


def beside_published(models: Sequence[ReportModel]) -> list[Table]:
    """Return, for each published table with a matching row, that row with the measured ones and the difference.

    Measurements under different protocols stand in different tables.
    """
    return [
        _filled(published, matched[protocol], protocol, full=False)
        for published in TABLES
        for matched in [_matched(published, models)]
        for protocol in sorted(matched, key=PROTOCOLS.index)
    ]


def paper_tables(models: Sequence[ReportModel]) -> list[Table]:
    """Return all six tables whole, the measured rows under the published ones they are to be compared with.

    A second protocol follows in a table of its own, with the published rows it bears on.
    """
    tables = []
    for published in TABLES:
        matched = _matched(published, models)
        protocols = sorted(matched, key=PROTOCOLS.index) or [None]
        for index, protocol in enumerate(protocols):
            tables.append(_filled(published, matched.get(protocol, {}), protocol, full=index == 0))
    return tables


def unmatched(models: Iterable[ReportModel]) -> list[str]:
    """Say why models have no row of the paper to be compared with: a reason, and the models it holds for."""
    reasons: dict[str, list[str]] = {}
    for model in models:
        if any(match(model, table) and readings(model, table) for table in TABLES):
            continue
        provenance = _measured_by(model)
        if provenance is not None and dataset_of(provenance.data) is None:
            data = short_spec(provenance.data.spec) if provenance.data else "unrecorded data"
            reason = f"measured on {data}, which the paper does not use"
        else:
            reason = f"the paper's tables have no row of this kind ({model.trained})"
        reasons.setdefault(reason, []).append(model.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _measured_by(model: ReportModel) -> Provenance | None:
    if model.attacks:
        return model.attacks[0].document.provenance
    return model.made.document.provenance if model.made else None


def _matched(
    published: PublishedTable, models: Sequence[ReportModel]
) -> dict[str | None, dict[int, list[PublishedComparison]]]:
    """Return the readings by protocol, and by the published row they are compared with."""
    matched: dict[str | None, dict[int, list[PublishedComparison]]] = {}
    for model in models:
        row = match(model, published)
        if row is not None:
            for reading in readings(model, published):
                by_row = matched.setdefault(reading.protocol, {})
                by_row.setdefault(published.rows.index(row), []).append(reading)
    return matched


def _filled(
    published: PublishedTable, measured: dict[int, list[PublishedComparison]], protocol: str | None, *, full: bool
) -> Table:
    rows: list[list[Cell]] = []
    emphasised: set[int] = set()
    differences = bool(measured)
    departed = any(reading.departed for found in measured.values() for reading in found)
    for index, row in enumerate(published.rows):
        if not full and index not in measured:
            continue
        rows.append(_published_row(row, published, differences=differences))
        for reading in measured.get(index, ()):
            emphasised.add(len(rows))
            rows.append(_measured_row(reading, row, published))
    under = f"measured under protocol {protocol}" if protocol else "measured without attacks"
    words = f"Accuracy in %; attacks at eps {published.eps}."
    if measured:
        words += f" {DIFFERENCE}: measured minus published, in percentage points."
    return Table(
        f"table-{published.number}-{protocol or 'clean'}",
        f"Table {published.number}: {published.title}{f', {under}' if measured else ''}",
        _columns(published, differences=differences),
        rows,
        intro=words,
        notes=[*published.notes, *([DEPARTED_NOTE] if departed else [])],
        emphasised=frozenset(emphasised),
    )


def _columns(published: PublishedTable, *, differences: bool) -> list[Column]:
    columns = [Column("Method"), Column("Source"), Column("Trained how"), Column("Protocol, images")]
    for name in published.measures:
        heading = "Clean" if name == "clean" else attack_name(name)
        columns.append(Column(heading + published.marks(name), True))
        if differences:
            columns.append(Column(DIFFERENCE, True, f"{heading}: measured minus published, percentage points"))
    if published.sizes:
        columns += [Column(f"Params (M){published.marks('params')}", True)]
        columns += [Column(f"MACs (M){published.marks('macs')}", True)]
    return columns


def _published_row(row: PublishedRow, published: PublishedTable, *, differences: bool) -> list[Cell]:
    cells = [text(row.method), text(row.source or "this paper"), text(row.trained), text(PUBLISHED_PROTOCOL)]
    for name in published.measures:
        cells.append(_printed(row.measures.get(name), ".2f", published.marks(name, row)))
        if differences:
            cells.append(Cell(""))
    if published.sizes:
        star = "*" if row.approximate_macs else ""
        cells += [_printed(row.params_m, "g", published.marks("params", row))]
        cells += [_printed(row.macs_m, "g", star + published.marks("macs", row))]
    return cells


def _printed(value: float | None, form: str, marks: str) -> Cell:
    """Return a published number; a hyphen, as the paper has it, where it has none."""
    return Cell(UNREPORTED, None, "not in the paper") if value is None else number(value, form, mark=marks)


def _measured_row(reading: PublishedComparison, row: PublishedRow, published: PublishedTable) -> list[Cell]:
    model = reading.model
    built = model.architecture
    cells = [
        text(f"measured: {model.name}", href=reading.href),
        text("this tool"),
        text(_how(model, row)),
        text(f"{reading.protocol or 'clean only'}, n = {reading.n:,}, data {reading.fingerprint[:8]}"),
    ]
    for name in published.measures:
        value, printed = reading.measures.get(name), row.measures.get(name)
        mark = DEPARTED if name in reading.departed else ""
        cells.append(Cell(NOTHING) if value is None else accuracy(value / 100, reading.n, mark=mark))
        cells.append(points(None if value is None or printed is None else value - printed))
    if published.sizes:
        cells += [number(built.params / 1e6 if built else None, ".2f")]
        cells += [number(built.macs / 1e6 if built else None, ".2f")]
    return cells


def _how(model: ReportModel, row: PublishedRow) -> str:
    """Say how it was trained, and in what that departs from the published row."""
    if model.made is None:
        return model.trained
    document = model.made.document
    training = model.source.document if model.source else document
    data = training.provenance.data
    images = f", {data.train_images:,} images" if data else ""
    epochs = f"{training.epochs} epochs" + (f" + {document.epochs}" if model.source else "")
    words = f"{model.trained}, {epochs}{images}"
    own = family(model.teacher.architecture if model.teacher else None)
    if row.teacher is not None and own != row.teacher:
        words += f"; teacher {own or 'none'}, not {row.teacher}"
    return words
