"""The page of a study in Markdown: means over seeds, paired differences to the reference arm, and every run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rnascl_cli.artifacts.study import AttackSummary, StudyDocument, StudyRow
from rnascl_cli.reporting.data.comparable_groups import attack_name
from rnascl_cli.reporting.data.paired_comparison import CLEAN, Measure, PairedRun, differences, study_runs
from rnascl_cli.reporting.published import TABLE_1, TABLE_2, TABLE_4, PublishedRow, PublishedTable
from rnascl_cli.reporting.tables.table import EMPTY, decimals, points, spread


def study_markdown(study: StudyDocument) -> str:
    """Return the page. Its headings start at level 3, so that it can be inserted into another document."""
    parts = [_circumstances(study)]
    for stage in study.stages:
        for space in dict.fromkeys(row.space for row in study.rows):
            rows = [row for row in study.rows if (row.stage, row.space) == (stage, space)]
            if rows:
                parts.append(_section(study, space, stage, rows))
    parts += [_searches(study), _audits(study.rows), _every_run(study)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _circumstances(study: StudyDocument) -> str:
    about, made = study.circumstances, study.circumstances.made
    facts = {
        "command": f"`{' '.join(study.command)}`",
        "study file, sha256": f"{study.study_sha256[:16]}...",
        "steps done": f"{study.steps_done} of {study.steps}",
        "created": "" if made is None else made[0] if made[0] == made[1] else f"{made[0]} to {made[1]}",
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
    """Return the means of each arm after one stage in one space, the differences, and the published rows."""
    measures = _measures(rows)
    arms: dict[str, list[PairedRun]] = {arm: [] for arm in study.arms}
    for run in study_runs(rows):
        arms[run.variant].append(run)
    means = [
        [
            f"`{arm}`",
            str(len({run.seed for run in runs})),
            _mean([row.params / 1e6 for row in rows if row.arm == arm], 3),
            _mean([row.macs / 1e6 for row in rows if row.arm == arm], 2),
            *(_mean_accuracy(runs, measure) for measure in measures),
        ]
        for arm, runs in arms.items()
        if runs
    ]
    headings = ["arm", "seeds", "params (M)", "MACs (M)", *measures.values()]
    parts = [
        f"### {space}, {'trained from scratch' if stage == 'train' else f'then fine-tuned: {stage}'}",
        "Accuracy in %; mean ± standard deviation over the seeds where there are several.",
        markdown_table(headings, means, numeric_from=1),
    ]
    reference = arms.get(study.reference, [])
    seeds = {run.seed for run in reference}
    gains = [
        [f"`{arm}`", *(_gain(differences(runs, reference, measure)) for measure in measures)]
        for arm, runs in arms.items()
        if arm != study.reference and any(run.seed in seeds for run in runs)
    ]
    if gains:
        parts += [
            f"Percentage points above `{study.reference}`, mean of the pairs of one seed (each pair in brackets):",
            markdown_table(["arm", *measures.values()], gains, numeric_from=1),
        ]
    if published := list(_published(space, finetuned=stage != "train")):
        parts += ["In the paper (full schedule, full data, protocol not stated):", "\n".join(published)]
    return "\n\n".join(parts)


def _measures(rows: Sequence[StudyRow]) -> dict[Measure, str]:
    """Return the headings by measure: clean accuracy on all test images, then each attack at each eps."""
    headings: dict[Measure, str] = {CLEAN: f"clean ({max(row.test_images for row in rows):,})"}
    for row in rows:
        for name, attacked in row.attacks.items():
            for result in attacked.results:
                headings[name, result.attack, result.eps] = _heading(result.attack, result.eps, attacked)
    return headings


def _heading(attack: str, eps: str, attacked: AttackSummary) -> str:
    protocol = ", paper-code" if attacked.protocol == "paper-code" else ""
    return f"{attack_name(attack).replace('pgd', 'PGD-')} {eps}{protocol} ({attacked.n:,})"


def _mean_accuracy(runs: Sequence[PairedRun], measure: Measure) -> str:
    found = [run.accuracies[measure] for run in runs if measure in run.accuracies]
    return _mean([100 * accuracy.fraction for accuracy in found], decimals(min((one.n for one in found), default=0)))


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return EMPTY
    constant = min(values) == max(values)
    return f"{statistics.fmean(values):.{digits}f}{'' if constant else spread(values, digits)}"


def _gain(gains: Sequence[float]) -> str:
    if not gains:
        return EMPTY
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
    names = {name: "clean" if name == "clean" else attack_name(name) for name in table.measures}
    return ", ".join(f"{names[name]} {row.measures[name]:g}" for name in table.measures if name in row.measures)


def _searches(study: StudyDocument) -> str:
    """Return the entropies of each search, and the size of its network relative to the smallest one."""
    if not study.searches:
        return ""
    headings = ["search", "epochs", "seconds", "entropy of widths", "of tutors", "MACs (M)", "above the smallest (%)"]
    body = [
        [
            f"`{row.run}`",
            str(row.epochs),
            f"{row.seconds:.0f}",
            f"{row.width_entropy:.2f}",
            EMPTY if row.tutor_entropy is None else f"{row.tutor_entropy:.2f}",
            f"{row.macs / 1e6:.2f}",
            f"{100 * (row.macs / row.smallest_macs - 1):.2f}",
        ]
        for row in study.searches
    ]
    about = "Entropy after the last epoch, relative to a uniform distribution: 1 is uniform, 0 is one-hot."
    return f"### Searches\n\n{about}\n\n" + markdown_table(headings, body, numeric_from=1)


def _audits(rows: Sequence[StudyRow]) -> str:
    """Return the number of passed audits, the failed ones, and the warnings of all attacks."""
    audited = [(row, one) for row in rows for one in row.attacks.values() if one.audit_passed is not None]
    warnings = [f"- `{row.run}`: {text}" for row in rows for one in row.attacks.values() for text in one.warnings]
    if not audited and not warnings:
        return ""
    lines = ["### Gradient-masking audits"]
    if audited:
        passed = sum(not one.audit_failed for _, one in audited)
        lines.append(f"{passed} of {len(audited)} audited students pass every check.")
    failed = [
        f"- `{row.run}`: {one.audit_passed} passed, failed: {', '.join(one.audit_failed)}"
        for row, one in audited
        if one.audit_failed
    ]
    if failed:
        lines.append("\n".join(failed))
    if warnings:
        lines.append("Warnings of the attacks:\n\n" + "\n".join(warnings))
    return "\n\n".join(lines)


def _every_run(study: StudyDocument) -> str:
    """Return every student with the interval of each accuracy."""
    headings = ["run", "widths", "epochs", "seconds", "clean", "attack: accuracy [95 % interval]", "audit"]
    body = []
    for row in study.rows:
        attacks = []
        for one in row.attacks.values():
            for result in one.results:
                low, high = (f"{100 * bound:.1f}" for bound in result.interval)
                attacks.append(
                    f"{_heading(result.attack, result.eps, one)}: {100 * result.accuracy:.1f} [{low}, {high}]"
                )
        audits = [one for one in row.attacks.values() if one.audit_passed is not None]
        failed = sum(len(one.audit_failed or ()) for one in audits)
        outcome = f"{failed} failed" if failed else f"{sum(one.audit_passed or 0 for one in audits)} passed"
        body.append(
            [
                f"`{row.run}`",
                " ".join(str(width) for width in row.widths),
                str(row.epochs),
                f"{row.seconds:.0f}",
                f"{100 * row.clean_accuracy:.2f}",
                "; ".join(attacks) or EMPTY,
                outcome if audits else EMPTY,
            ]
        )
    return "### Every run\n\n" + markdown_table(headings, body, numeric_from=99) if body else ""


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]], *, numeric_from: int) -> str:
    """Return a Markdown table; columns from index ``numeric_from`` on are right-aligned."""
    alignment = ["---:" if column >= numeric_from else "---" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, alignment, *body])


def between_marks(text: str, name: str, content: str) -> str:
    """Return ``text`` with everything between the marks of study ``name`` replaced by ``content``.

    The marks are HTML comments on separate lines: ``<!-- study NAME: begin -->`` and ``<!-- study NAME: end -->``.

    Raises:
        ValueError: A mark is missing or repeated, or the marks are in the wrong order.
    """
    begin, end = f"<!-- study {name}: begin -->", f"<!-- study {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"has no lines '{begin}' and '{end}' to put the tables between")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{content.strip()}\n\n{end}{rest.partition(end)[2]}"
