"""The tables of accuracy under attack. Unlike measurements never share a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rnascl_cli.artifacts.documents import AttackResult
from rnascl_cli.reporting.data.comparable_groups import (
    ATTACK_NAMES,
    SAME,
    ComparableGroup,
    ComparableResult,
    attack_name,
    missing,
    perturbed,
    usual_eps,
)
from rnascl_cli.reporting.data.merge_attacks import Setting, setting
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import NOTHING, Cell, Column, Table, accuracy, text

DEPARTED = "†"
DEPARTED_NOTE = f"{DEPARTED} departs from the attack's published setting."


def _heading(result: AttackResult, crowded: bool) -> Column:
    step = f", step {result.step_size:.4g}" if result.step_size is not None else ""
    how = f"{result.steps} steps{step}, {result.restarts} restart{'s' * (result.restarts != 1)}"
    norm = "" if result.norm == "Linf" else f" {result.norm}"
    label = f"{attack_name(result.attack)}{norm} {result.eps}"
    return Column(f"{label} ({how})" if crowded else label, True, how if result.steps is not None else "")


def attack_tables(group: ComparableGroup) -> list[Table]:
    """Return the accuracies of one group: a row a model, a column an attack, its eps and its settings.

    The usual eps comes with the worst case; other sizes of perturbation follow in a table of their own.
    """
    headings = headings_of(group)
    usual = usual_eps(group)
    first = [key for key in headings if usual is not None and key[1] == usual.eps_value]
    rest = [key for key in headings if key not in first]
    title = f"Accuracy under attack ({group.letter})"
    tables = [_table(f"attacks-{group.letter.lower()}", title, group, first, headings, usual)]
    if rest:
        other = f"{title}: other sizes of perturbation"
        tables.append(_table(f"attacks-{group.letter.lower()}-other", other, group, rest, headings, None))
    return tables


def _table(
    name: str,
    title: str,
    group: ComparableGroup,
    keys: Sequence[Setting],
    headings: dict[Setting, Column],
    worst: AttackResult | None,
) -> Table:
    measured = [found for found in group.measured if worst or not keys or any(result_at(found, key) for key in keys)]
    columns = [Column("Model"), Column("Clean", True, f"accuracy in % on the same {group.n} images, unperturbed")]
    if worst:
        columns.append(Column(f"Worst case {worst.eps}", True, "share that no attack of this eps broke"))
    return Table(
        name,
        title,
        [*columns, *(headings[key] for key in keys)],
        [
            [
                text(found.model.name, note=found.model.trained, href=provenance_anchor(found.attack)),
                clean_cell(found),
                *([worst_cell(found, worst.eps_value)] if worst else []),
                *(_result_cell(found, key) for key in keys),
            ]
            for found in measured
        ],
        intro=f"In % of {group.words}.",
        notes=_notes(measured),
    )


def clean_cell(found: ComparableResult, *, bar: bool = False) -> Cell:
    """Return the accuracy on the unperturbed images."""
    document = found.attack.document
    return accuracy(document.clean_accuracy, document.n, interval=found.interval(document.clean_accuracy), bar=bar)


def worst_cell(found: ComparableResult, eps: float, *, bar: bool = False) -> Cell:
    """Return the share of images that no attack of an eps broke."""
    share = found.worst_case_at(eps)
    if share is None:
        return Cell(NOTHING, None, "not attacked at this eps")
    count = len({result.attack for result in found.attack.document.results if abs(result.eps_value - eps) < SAME})
    note = f"by {count} attack{'s' * (count != 1)}"
    return accuracy(share, found.attack.document.n, interval=found.interval(share), note=note, bar=bar)


def headings_of(group: ComparableGroup) -> dict[Setting, Column]:
    """Return a column heading for each setting, by eps and then in the attacks' usual order."""
    by_setting: dict[Setting, AttackResult] = {}
    for measured in group.measured:
        for result in perturbed(measured):
            by_setting.setdefault(setting(result), result)
    order = {name: index for index, name in enumerate(ATTACK_NAMES)}
    settings = sorted(by_setting, key=lambda key: (key[1], order.get(key[0], len(order)), repr(key)))
    labels = Counter(key[:3] for key in settings)
    return {key: _heading(by_setting[key], labels[key[:3]] > 1) for key in settings}


def result_at(measured: ComparableResult, key: Setting) -> AttackResult | None:
    """Return the result under exactly these settings."""
    return next((result for result in measured.attack.document.results if setting(result) == key), None)


def _result_cell(measured: ComparableResult, key: Setting) -> Cell:
    document, result = measured.attack.document, result_at(measured, key)
    if result is not None:
        return accuracy(
            result.accuracy,
            document.n,
            interval=result.confidence_interval,
            mark="" if result.standard else DEPARTED,
            note=f"attack run {measured.attack.run_of(result)}; "
            f"{result.seconds:.1f} s, {result.images_per_second:.0f} images/s",
        )
    if any(name == key[0] and abs(eps - key[1]) < SAME for name, eps in missing(measured.attack)):
        return Cell("no result", None, "asked for, not in attack.json", True)
    return Cell(NOTHING)


def _notes(measured: Sequence[ComparableResult]) -> list[str]:
    notes = []
    if any(found.attack.document.results and found.interval(0.5) for found in measured):
        notes.append(
            "In brackets: the 95 % Wilson interval for the images drawn; it says nothing about the seed of training."
        )
    if any(not result.standard for found in measured for result in found.attack.document.results):
        notes.append(DEPARTED_NOTE)
    notes.append("Worst case: an image counts only if it withstood every attack of that eps.")
    return notes
