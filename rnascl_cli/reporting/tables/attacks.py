"""Tables of accuracy under attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rnascl_cli.artifacts.documents import AttackResult
from rnascl_cli.core.errors import pluralise
from rnascl_cli.reporting.data.comparable_groups import (
    TOLERANCE,
    ComparableGroup,
    ComparableResult,
    attack_name,
    common_eps,
)
from rnascl_cli.reporting.data.merge_attacks import AttackSetting
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import EMPTY, Cell, Column, Table, accuracy, text

NONSTANDARD = "†"
NONSTANDARD_NOTE = f"{NONSTANDARD} Not the attack's published setting."
WORST_CASE_NOTE = (
    "Worst case: an image counts as correct only if it is classified correctly under every attack at that eps."
)


def attack_columns(group: ComparableGroup) -> dict[AttackSetting, Column]:
    """Return a column for each attack setting of a group, by eps and then in the usual order of attacks."""
    labels = Counter(key[:3] for key in group.settings)
    return {key: _column(result, spell_out=labels[key[:3]] > 1) for key, result in group.settings.items()}


def _column(result: AttackResult, *, spell_out: bool) -> Column:
    step = f", step {result.step_size:.4g}" if result.step_size is not None else ""
    settings = f"{result.steps} steps{step}, {pluralise(result.restarts, 'restart')}"
    norm = "" if result.norm == "Linf" else f" {result.norm}"
    label = f"{attack_name(result.attack)}{norm} {result.eps}"
    note = settings if result.steps is not None else ""
    return Column(f"{label} ({settings})" if spell_out else label, True, note)


def attack_tables(group: ComparableGroup) -> list[Table]:
    """Return the accuracies of a group, one row per model and one column per attack, eps and attack setting.

    The first table has the most common eps and the worst case; a second one has all other eps.
    """
    columns = attack_columns(group)
    common = common_eps(group)
    first = [key for key in columns if common is not None and key[1] == common.eps_value]
    others = [key for key in columns if key not in first]
    name, title = f"attacks-{group.letter.lower()}", f"Accuracy under attack ({group.letter})"
    tables = [_table(name, title, group, {key: columns[key] for key in first}, common)]
    if others:
        tables.append(
            _table(f"{name}-other", f"{title}: other eps", group, {key: columns[key] for key in others}, None)
        )
    return tables


def _table(
    name: str, title: str, group: ComparableGroup, columns: dict[AttackSetting, Column], common: AttackResult | None
) -> Table:
    shown = [one for one in group.measurements if common or not columns or any(map(one.result_with, columns))]
    headings = [Column("Model"), Column("Clean", True, f"accuracy in % on the same {group.n} images, unperturbed")]
    if common:
        headings.append(Column(f"Worst case {common.eps}", True, WORST_CASE_NOTE))
    rows = [
        [
            text(one.model.name, note=one.model.trained, href=provenance_anchor(one.attack)),
            clean_cell(one),
            *([worst_case_cell(one, common.eps_value)] if common else []),
            *(_result_cell(one, key) for key in columns),
        ]
        for one in shown
    ]
    notes = _notes(shown)
    intro = f"Accuracy in % on {group.description}."
    return Table(name, title, [*headings, *columns.values()], rows, intro=intro, notes=notes)


def clean_cell(measurement: ComparableResult, *, bar: bool = False) -> Cell:
    """Return the clean accuracy."""
    document = measurement.attack.document
    interval = measurement.interval(document.clean_accuracy)
    return accuracy(document.clean_accuracy, document.n, interval=interval, bar=bar)


def worst_case_cell(measurement: ComparableResult, eps: float, *, bar: bool = False) -> Cell:
    """Return the worst-case accuracy at an eps."""
    fraction = measurement.worst_case_at(eps)
    if fraction is None:
        return Cell(EMPTY, None, "not attacked at this eps")
    document = measurement.attack.document
    attacks = {result.attack for result in document.results if abs(result.eps_value - eps) < TOLERANCE}
    note = f"over {pluralise(len(attacks), 'attack')}"
    return accuracy(fraction, document.n, interval=measurement.interval(fraction), note=note, bar=bar)


def _result_cell(measurement: ComparableResult, key: AttackSetting) -> Cell:
    result = measurement.result_with(key)
    if result is not None:
        return accuracy(
            result.accuracy,
            measurement.attack.document.n,
            interval=result.confidence_interval,
            mark="" if result.standard else NONSTANDARD,
            note=f"attack run {measurement.attack.run_of(result)}; "
            f"{result.seconds:.1f} s, {result.images_per_second:.0f} images/s",
        )
    if any(name == key[0] and abs(eps - key[1]) < TOLERANCE for name, eps in measurement.missing):
        return Cell("no result", None, "requested, but not in attack.json", True)
    return Cell(EMPTY)


def _notes(measurements: Sequence[ComparableResult]) -> list[str]:
    notes = []
    if any(one.attack.document.results and one.interval(0.5) for one in measurements):
        notes.append(
            "In brackets: 95 % Wilson interval over the choice of test images; it does not cover the variation between "
            "training seeds."
        )
    if any(not result.standard for one in measurements for result in one.attack.document.results):
        notes.append(NONSTANDARD_NOTE)
    return notes
