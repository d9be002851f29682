"""Measured accuracies next to those of the paper, with protocol and difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import DataReference
from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.reporting.data.collect import short_spec
from rnascl_cli.reporting.data.comparable_groups import attack_name
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.published import PUBLISHED_PROTOCOL, TABLES, Dataset, PublishedRow, PublishedTable
from rnascl_cli.reporting.tables.attacks import NONSTANDARD, NONSTANDARD_NOTE
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import EMPTY, Cell, Column, Table, accuracy, number, points, text

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
DIFFERENCE = "Δ"
PROTOCOLS = ("pixel", "paper-code", None)
"""Order of the tables; None for models of which only clean accuracy is known."""


@dataclass(frozen=True)
class PublishedComparison:
    """Accuracies of a model from one document, to compare with a published row.

    Attributes:
        model: The model.
        protocol: Attack protocol; None if only clean accuracy is known.
        n: Number of test images.
        fingerprint: Data fingerprint.
        measures: Accuracy in percent by measure.
        nonstandard: Measures whose attack does not have its published setting.
        href: Link to the provenance.
    """

    model: ReportModel
    protocol: str | None
    n: int
    fingerprint: str
    measures: dict[str, float]
    nonstandard: frozenset[str]
    href: str


def dataset_of(data: DataReference | None) -> Dataset | None:
    """Return the paper's data set with these classes; None for other data."""
    if data is None:
        return None
    if {name.lower() for name in data.classes} == CIFAR10 and len(data.classes) == len(CIFAR10):
        return "cifar10"
    wnids = all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in data.classes)
    if data.spec.startswith("imagenet100") or (wnids and len(data.classes) == 100):
        return "imagenet100"
    if data.spec.startswith("imagenet") or (wnids and len(data.classes) == 1000):
        return "imagenet"
    return None


def _teacher_family(model: ReportModel) -> str | None:
    """Return the paper's short name of the teacher architecture, or the architecture itself."""
    if model.teacher is None:
        return None
    architecture = model.teacher.architecture
    return next((short for short, names in TEACHER_FAMILIES.items() if architecture in names), architecture)


def _measured(model: ReportModel, table: PublishedTable) -> list[PublishedComparison]:
    """Return the accuracies of ``model`` on the data and at the eps of ``table``, one entry per attack document."""
    eps = parse_epsilon(table.eps).value
    measured = []
    for attack in model.attacks:
        document, data = attack.document, attack.document.provenance.data
        if data is None or dataset_of(data) != table.dataset:
            continue
        results = [r for r in document.results if abs(r.eps_value - eps) < TOLERANCE and r.norm == "Linf"]
        results.sort(key=lambda result: result.standard)  # a standard attack overwrites a nonstandard one
        measures = {"clean": 100 * document.clean_accuracy} | {r.attack: 100 * r.accuracy for r in results}
        nonstandard = frozenset(r.attack for r in results) - {r.attack for r in results if r.standard}
        href = provenance_anchor(attack)
        measured.append(
            PublishedComparison(model, document.protocol, document.n, data.fingerprint, measures, nonstandard, href)
        )
    if not measured and (artifact := model.artifact):
        data = artifact.document.provenance.data
        if data and dataset_of(data) == table.dataset:
            clean, href = {"clean": 100 * artifact.document.clean_accuracy}, provenance_anchor(artifact)
            measured.append(
                PublishedComparison(model, None, data.test_images, data.fingerprint, clean, frozenset(), href)
            )
    return [one for one in measured if set(one.measures) & set(table.measures)]


def match(model: ReportModel, table: PublishedTable) -> PublishedRow | None:
    """Return the published row to compare a model with, preferably one with the same teacher.

    Space, paradigm and adversarial fine-tuning must agree, and tutors must be learned; teachers match by architecture.
    Models of a distillation baseline, a robust search or adversarial training from scratch have no row: the paper
    uses no adversarial images before fine-tuning, and prints no numbers for baselines (Figure 11).
    """
    teacher = _teacher_family(model)
    if model.kind == "teacher":
        rows = [row for row in table.rows if row.paradigm is None and row.teacher]
        return next((row for row in rows if row.teacher == teacher), None)
    if model.artifact is None or model.distill or (model.tutors and model.tutors.origin != "searched"):
        return None
    if model.from_scratch or model.robust_search:
        return None
    document = model.artifact.document
    rows = [
        row
        for row in table.rows
        if row.paradigm == document.paradigm
        and row.finetuned == model.finetuned
        and row.space in (document.architecture.space, None)
    ]
    return min(rows, key=lambda row: row.teacher not in (teacher, None), default=None)


def published_tables(models: Sequence[ReportModel], *, full: bool) -> list[Table]:
    """Return the published tables with the measured rows below the published ones, one table per protocol.

    Args:
        models: The models.
        full: Whether to include all six tables with all their rows, rather than only the rows that have a measured
            counterpart. Further protocols always have only those rows.
    """
    tables = []
    for published in TABLES:
        matched = _matched(published, models)
        protocols: list[str | None] = sorted(matched, key=PROTOCOLS.index)
        for index, protocol in enumerate(protocols or ([None] if full else [])):
            tables.append(_table(published, matched.get(protocol, {}), protocol, full=full and index == 0))
    return tables


def unmatched(models: Iterable[ReportModel]) -> list[str]:
    """Return the models without a published row, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for model in models:
        if any(match(model, table) and _measured(model, table) for table in TABLES):
            continue
        measured_by = model.attacks[0] if model.attacks else model.artifact
        data = measured_by.document.provenance.data if measured_by else None
        if measured_by and dataset_of(data) is None:
            reason = f"measured on {short_spec(data.spec) if data else 'unrecorded data'}, which the paper does not use"
        else:
            reason = f"the paper's tables have no row of this kind ({model.trained})"
        reasons.setdefault(reason, []).append(model.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _matched(
    published: PublishedTable, models: Sequence[ReportModel]
) -> dict[str | None, dict[int, list[PublishedComparison]]]:
    """Return the measured accuracies by protocol and by the index of the published row."""
    matched: dict[str | None, dict[int, list[PublishedComparison]]] = {}
    for model in models:
        row = match(model, published)
        if row is not None:
            for measured in _measured(model, published):
                by_row = matched.setdefault(measured.protocol, {})
                by_row.setdefault(published.rows.index(row), []).append(measured)
    return matched


def _table(
    published: PublishedTable, matched: dict[int, list[PublishedComparison]], protocol: str | None, *, full: bool
) -> Table:
    rows: list[list[Cell]] = []
    emphasized: set[int] = set()
    for index, row in enumerate(published.rows):
        if not full and index not in matched:
            continue
        rows.append(_published_row(row, published, differences=bool(matched)))
        for measured in matched.get(index, ()):
            emphasized.add(len(rows))
            rows.append(_measured_row(measured, row, published))
    title = f"Table {published.number}: {published.title}"
    intro = f"Accuracy in %; attacks at eps {published.eps}."
    if matched:
        title += f", measured under protocol {protocol}" if protocol else ", measured without attacks"
        intro += f" {DIFFERENCE}: measured minus published, in percentage points."
    nonstandard = any(measured.nonstandard for found in matched.values() for measured in found)
    return Table(
        f"table-{published.number}-{protocol or 'clean'}",
        title,
        _columns(published, differences=bool(matched)),
        rows,
        intro=intro,
        notes=[*published.notes, *([NONSTANDARD_NOTE] if nonstandard else [])],
        emphasized=frozenset(emphasized),
    )


def _columns(published: PublishedTable, *, differences: bool) -> list[Column]:
    columns = [Column("Method"), Column("Source"), Column("Training"), Column("Protocol, images")]
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
    """Return a published number, or a hyphen like the paper's."""
    return Cell("-", None, "not in the paper") if value is None else number(value, form, mark=marks)


def _measured_row(measured: PublishedComparison, row: PublishedRow, published: PublishedTable) -> list[Cell]:
    model, architecture = measured.model, measured.model.architecture
    cells = [
        text(f"measured: {model.name}", href=measured.href),
        text("this tool"),
        text(_training(model, row)),
        text(f"{measured.protocol or 'clean only'}, n = {measured.n:,}, data {measured.fingerprint[:8]}"),
    ]
    for name in published.measures:
        value, printed = measured.measures.get(name), row.measures.get(name)
        mark = NONSTANDARD if name in measured.nonstandard else ""
        cells.append(Cell(EMPTY) if value is None else accuracy(value / 100, measured.n, mark=mark))
        cells.append(points(None if value is None or printed is None else value - printed))
    if published.sizes:
        cells += [number(architecture.params / 1e6 if architecture else None, ".2f")]
        cells += [number(architecture.macs / 1e6 if architecture else None, ".2f")]
    return cells


def _training(model: ReportModel, row: PublishedRow) -> str:
    """Return the training of a model in words, and how its teacher differs from that of the published row."""
    if model.artifact is None:
        return model.trained
    document = model.artifact.document
    training = model.source.document if model.source else document
    data = training.provenance.data
    epochs = f"{training.epochs} epochs" + (f" + {document.epochs}" if model.source else "")
    words = f"{model.trained}, {epochs}" + (f", {data.train_images:,} images" if data else "")
    teacher = _teacher_family(model)
    if row.teacher is not None and teacher != row.teacher:
        words += f"; teacher {teacher or 'none'}, not {row.teacher}"
    return words
