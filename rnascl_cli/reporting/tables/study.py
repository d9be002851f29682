"""The tables of a study in Markdown: means over seeds, differences to the reference arm, every run by itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.study import AttackSummary, StudyDocument, StudyRow
from rnascl_cli.reporting.data.comparable_groups import attack_name
from rnascl_cli.reporting.published import TABLE_1, TABLE_2, TABLE_4, PublishedRow, PublishedTable
from rnascl_cli.reporting.tables.table import FULL_TEST, NOTHING, points


@dataclass(frozen=True)
class StudyColumn:
    """A column of accuracies: its heading, and how a student's number is read."""

    heading: str
    read: Callable[[StudyRow], tuple[float, int] | None]


def study_markdown(study: StudyDocument) -> str:
    """Return the page: headings from level 2, so that it can stand inside another one."""
    parts = [_setting(study)]
    for stage in study.stages:
        for space in dict.fromkeys(row.space for row in study.rows):
            rows = [row for row in study.rows if (row.stage, row.space) == (stage, space)]
            if rows:
                parts.append(_section(study, space, stage, rows))
    parts.append(_searches(study))
    parts.append(_audits(study.rows))
    parts.append(_every_run(study))
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(study: StudyDocument) -> str:
    about, made = study.circumstances, study.circumstances.made
    facts = {
        "command": f"`{' '.join(study.command)}`",
        "study's file, sha256": f"{study.study_sha256[:16]}...",
        "steps done": f"{study.steps_done} of {study.steps}",
        "made": "" if made is None else made[0] if made[0] == made[1] else f"{made[0]} to {made[1]}",
        "seeds": ", ".join(str(seed) for seed in sorted({row.seed for row in study.rows})),
        "images": "; ".join(about.data),
        "teacher": "; ".join(about.teachers),
        "device": "; ".join(about.devices),
        "precision": "; ".join(about.precisions),
        "torch": "; ".join(about.torch_versions),
        "rnascl": "; ".join(about.tool_versions),
    }
    lines = [f"- {name}: {words}" for name, words in facts.items() if words]
    failed = [f"- **failed**: `{name}`: {words}" for name, words in study.failed.items()]
    if study.not_begun:
        failed.append(f"- **not begun** because of that: {', '.join(f'`{name}`' for name in study.not_begun)}")
    return "\n".join([f"**{study.title}**", "", *lines, *failed])


def _section(study: StudyDocument, space: str, stage: str, rows: Sequence[StudyRow]) -> str:
    measures = _measures(rows)
    after = "trained from scratch" if stage == "train" else f"then fine-tuned: {stage}"
    arms = [arm for arm in study.arms if any(row.arm == arm for row in rows)]
    headings = ["arm", "seeds", "params (M)", "MACs (M)", *(measure.heading for measure in measures)]
    body = [_mean_row(arm, [row for row in rows if row.arm == arm], measures) for arm in arms]
    parts = [
        f"### {space}, {after}",
        "Accuracy in %; mean ± standard deviation over the seeds where there are several.",
        markdown_table(headings, body, numeric_from=1),
    ]
    if differences := _differences(study, arms, rows, measures):
        headings = ["arm", *(measure.heading for measure in measures)]
        parts += [
            f"Percentage points above `{study.reference}`, mean of the pairs of one seed (each pair in brackets):",
            markdown_table(headings, differences, numeric_from=1),
        ]
    if published := list(_published(space, finetuned=stage != "train")):
        parts += ["In the paper (full schedule, full data, protocol not stated):", "\n".join(published)]
    return "\n\n".join(parts)


def _measures(rows: Sequence[StudyRow]) -> list[StudyColumn]:
    """Return the columns: clean accuracy on all test images, then each attack at each eps in the order met."""
    images = max(row.test_images for row in rows)
    found = {
        (name, result.attack, result.eps): attacked
        for row in rows
        for name, attacked in row.attacks.items()
        for result in attacked.results
    }

    def reader(name: str, attack: str, eps: str) -> Callable[[StudyRow], tuple[float, int] | None]:
        def read(row: StudyRow) -> tuple[float, int] | None:
            attacked = row.attacks.get(name)
            results = attacked.results if attacked else []
            value = next((one.accuracy for one in results if (one.attack, one.eps) == (attack, eps)), None)
            return None if value is None or attacked is None else (value, attacked.n)

        return read

    columns = [StudyColumn(f"clean ({images:,})", lambda row: (row.clean_accuracy, row.test_images))]
    for (name, attack, eps), attacked in found.items():
        columns.append(StudyColumn(_heading(attack, eps, attacked), reader(name, attack, eps)))
    return columns


def _heading(attack: str, eps: str, attacked: AttackSummary) -> str:
    protocol = ", paper-code" if attacked.protocol == "paper-code" else ""
    return f"{attack_name(attack).replace('pgd', 'PGD-')} {eps}{protocol} ({attacked.n:,})"


def _mean_row(arm: str, rows: Sequence[StudyRow], measures: Sequence[StudyColumn]) -> list[str]:
    params = _mean([row.params / 1e6 for row in rows], "{:.3f}")
    macs = _mean([row.macs / 1e6 for row in rows], "{:.2f}")
    cells = [f"`{arm}`", str(len({row.seed for row in rows})), params, macs]
    for measure in measures:
        values = [found for row in rows if (found := measure.read(row))]
        cells.append(_mean([100 * value for value, _ in values], _form([n for _, n in values])))
    return cells


def _form(counts: Sequence[int]) -> str:
    return "{:.2f}" if counts and min(counts) >= FULL_TEST else "{:.1f}"


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return NOTHING
    shown = form.format(statistics.fmean(values))
    if len(values) == 1 or min(values) == max(values):
        return shown
    return f"{shown} ± {form.format(statistics.stdev(values))}"


def _differences(
    study: StudyDocument, arms: Sequence[str], rows: Sequence[StudyRow], measures: Sequence[StudyColumn]
) -> list[list[str]]:
    """Return a row an arm: what it has more than the reference arm of the same seed."""
    reference = {row.seed: row for row in rows if row.arm == study.reference}
    table = []
    for arm in arms:
        pairs = [(row, reference[row.seed]) for row in rows if row.arm == arm and row.seed in reference]
        if arm == study.reference or not pairs:
            continue
        cells = [f"`{arm}`"]
        for measure in measures:
            both = [(measure.read(row), measure.read(other)) for row, other in pairs]
            gains = [100 * (one[0] - two[0]) for one, two in both if one and two]
            cells.append(_gain(gains))
        table.append(cells)
    return table


def _gain(gains: Sequence[float]) -> str:
    if not gains:
        return NOTHING
    mean = points(statistics.fmean(gains)).text
    return mean if len(gains) == 1 else f"{mean} ({', '.join(points(gain).text for gain in gains)})"


def _published(space: str, *, finetuned: bool) -> Iterator[str]:
    """Yield the paper's own rows for a space as list items, without or with TRADES."""
    tables: tuple[PublishedTable, ...] = (TABLE_1, TABLE_4) if finetuned else (TABLE_2,)
    for table in tables:
        for row in table.rows:
            if row.space == space and (row.finetuned is not None) == finetuned:
                yield f"- {row.method}{' + TRADES' if finetuned else ''} (Table {table.number}): {_numbers(row, table)}"


def _numbers(row: PublishedRow, table: PublishedTable) -> str:
    shown = {name: "clean" if name == "clean" else attack_name(name) for name in table.measures}
    return ", ".join(f"{shown[name]} {row.measures[name]:g}" for name in table.measures if name in row.measures)


def _searches(study: StudyDocument) -> str:
    """Return how far each search decided, and how near the smallest network it ended."""
    headings = ["search", "epochs", "seconds", "entropy of widths", "of tutors", "MACs (M)", "above the smallest (%)"]
    body = [
        [
            f"`{row.run}`",
            str(row.epochs),
            f"{row.seconds:.0f}",
            f"{row.width_entropy:.2f}",
            NOTHING if row.tutor_entropy is None else f"{row.tutor_entropy:.2f}",
            f"{row.macs / 1e6:.2f}",
            f"{100 * (row.macs / row.smallest_macs - 1):.2f}",
        ]
        for row in study.searches
    ]
    if not body:
        return ""
    about = "Entropy after the last epoch, over that of equal chances: 1 is undecided, 0 decided."
    return f"### The searches\n\n{about}\n\n" + markdown_table(headings, body, numeric_from=1)


def _audits(rows: Sequence[StudyRow]) -> str:
    """Return the audit cards, those that failed a check by name, and what the checks of all attacks noticed."""
    carded = [(row, found) for row in rows for found in row.attacks.values() if found.audit_passed is not None]
    warned = [(row, text) for row in rows for found in row.attacks.values() for text in found.warnings]
    if not carded and not warned:
        return ""
    lines = ["### Gradient-masking audits"]
    if carded:
        clean = sum(not found.audit_failed for _, found in carded)
        lines.append(f"{clean} of {len(carded)} audited students pass every check.")
    failed = [
        f"- `{row.run}`: {found.audit_passed} passed, failed: {', '.join(found.audit_failed or ())}"
        for row, found in carded
        if found.audit_failed
    ]
    if failed:
        lines.append("\n".join(failed))
    if warned:
        lines.append("Warnings of the attacks:\n\n" + "\n".join(f"- `{row.run}`: {text}" for row, text in warned))
    return "\n\n".join(lines)


def _every_run(study: StudyDocument) -> str:
    """Return each student by itself, with the interval of every accuracy."""
    headings = ["run", "widths", "epochs", "seconds", "clean", "attack: accuracy [95 % interval]", "audit"]
    body = []
    for row in study.rows:
        shown = []
        for found in row.attacks.values():
            for one in found.results:
                low, high = (f"{100 * bound:.1f}" for bound in one.interval)
                shown.append(f"{_heading(one.attack, one.eps, found)}: {100 * one.accuracy:.1f} [{low}, {high}]")
        cards = [found for found in row.attacks.values() if found.audit_passed is not None]
        audit = NOTHING
        if cards:
            failed = sum(len(card.audit_failed or ()) for card in cards)
            audit = f"{failed} failed" if failed else f"{sum(card.audit_passed or 0 for card in cards)} passed"
        widths = " ".join(str(width) for width in row.widths)
        clean = f"{100 * row.clean_accuracy:.2f}"
        joined = "; ".join(shown) or NOTHING
        body.append([f"`{row.run}`", widths, str(row.epochs), f"{row.seconds:.0f}", clean, joined, audit])
    return "### Every run\n\n" + markdown_table(headings, body, numeric_from=99) if body else ""


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]], *, numeric_from: int) -> str:
    """Return a table whose columns from ``numeric_from`` on are right-aligned."""
    marks = ["---:" if column >= numeric_from else "---" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(headings), marks, *map(list, body)])


def between_marks(text: str, name: str, inside: str) -> str:
    """Return ``text`` with what stands between the marks of study ``name`` replaced by ``inside``.

    The marks are HTML comments on lines of their own: ``<!-- study NAME: begin -->`` and ``<!-- study NAME: end -->``.

    Raises:
        ValueError: They are not there, once each, in this order.
    """
    begin, end = f"<!-- study {name}: begin -->", f"<!-- study {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"has no lines '{begin}' and '{end}' to put the tables between")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{inside.strip()}\n\n{end}{rest.partition(end)[2]}"
