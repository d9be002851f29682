"""Tables of students under learned tutors and under control maps, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rnascl_cli.reporting.data.lineage import TUTOR_NAMES
from rnascl_cli.reporting.data.paired_comparison import (
    CLEAN,
    CONTROLS,
    ORIGINS,
    Measure,
    PairedRun,
    TutorComparison,
    differences,
    fractions,
)
from rnascl_cli.reporting.tables.attacks import attack_columns
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import EMPTY, Cell, Column, Table, number, points, spread, text


def measure_columns(comparison: TutorComparison) -> dict[Measure, Column]:
    """Return the columns of a comparison by measure."""
    columns: dict[Measure, Column] = {CLEAN: Column("Clean", True)}
    for group in comparison.groups:
        columns |= dict(attack_columns(group).items())
    return {measure: columns[measure] for measure in comparison.measures}


def comparison_tables(comparison: TutorComparison) -> list[Table]:
    """Return the means over seeds with paired differences, and the accuracies of each seed."""
    measures = measure_columns(comparison)
    columns = [Column("Students"), Column("Tutors"), Column("Seeds", True)]
    for column in measures.values():
        columns += [column, Column("Δ", True, f"{column.label}: learned minus control, percentage points")]
    rows: list[list[Cell]] = []
    emphasized = []
    for label in comparison.labels:
        learned = comparison.of(label, "searched")
        for origin in ORIGINS:
            if runs := comparison.of(label, origin):
                if origin == "searched":
                    emphasized.append(len(rows))
                rows.append(
                    [
                        text(label),
                        text(TUTOR_NAMES[origin]),
                        number(len({run.seed for run in runs}), "d"),
                        *(cell for measure in measures for cell in _mean_cells(runs, learned, measure)),
                    ]
                )
    means = Table(
        f"tutor-comparison-{comparison.name}",
        f"Learned tutors and control maps ({comparison.name})",
        columns,
        rows,
        intro=f"Accuracy in %, mean ± standard deviation over seeds; {comparison.description}. Δ: learned minus "
        "control in percentage points, over pairs with the same network, seed, settings and images.",
        notes=("With a single seed, a difference may be due to chance, however many images there are.",),
        emphasized=frozenset(emphasized),
    )
    return [means, _seeds_table(comparison, measures)]


def _mean_cells(runs: Sequence[PairedRun], learned: Sequence[PairedRun], measure: Measure) -> tuple[Cell, Cell]:
    """Return the mean accuracy, and the mean difference of the learned maps to it."""
    values = [100 * fraction for fraction in fractions(runs, measure)]
    mean = Cell(EMPTY)
    if values:
        each = ", ".join(f"{value:.1f}" for value in values)
        mean = Cell(f"{statistics.fmean(values):.1f}{spread(values)}", statistics.fmean(values), each)
    if runs == learned:
        return mean, Cell("")
    gains = [-difference for difference in differences(runs, learned, measure)]
    if not gains:
        return mean, Cell(EMPTY, None, "no pair with the same network, seed and images")
    gain = points(statistics.fmean(gains))
    return mean, Cell(gain.text + spread(gains), gain.value, ", ".join(points(value).text for value in gains))


def _seeds_table(comparison: TutorComparison, measures: dict[Measure, Column]) -> Table:
    rows = []
    for run in sorted(comparison.runs, key=lambda run: (run.group, run.seed, ORIGINS.index(run.variant))):
        assert run.measurement is not None
        rows.append(
            [
                text(run.name, href=provenance_anchor(run.measurement.attack)),
                text(run.group),
                text(TUTOR_NAMES[run.variant]),
                number(run.seed, "d"),
                *(
                    number(100 * run.accuracies[measure].fraction if measure in run.accuracies else None, ".1f")
                    for measure in measures
                ),
            ]
        )
    return Table(
        f"tutor-comparison-{comparison.name}-seeds",
        f"Learned tutors and control maps, each seed ({comparison.name})",
        [Column("Model"), Column("Students"), Column("Tutors"), Column("Seed", True), *measures.values()],
        rows,
        intro=f"Accuracy in %; {comparison.description}.",
    )


def missing_controls(comparisons: Sequence[TutorComparison]) -> list[str]:
    """Return a sentence about the control maps that are missing."""
    command = "rnascl derive RUN --tutors random|same-depth|last-layer | rnascl train -"
    if not comparisons:
        return [
            "No student with a control map (random, same relative depth, last layer only) was attacked together with "
            f"one that was trained alike with a learned map. Controls show whether learning the map helps: {command}."
        ]
    given = {run.variant for comparison in comparisons for run in comparison.runs}
    missing = [TUTOR_NAMES[origin] for origin in CONTROLS if origin not in given]
    return [f"Controls not given: {', '.join(missing)} ({command})."] if missing else []
