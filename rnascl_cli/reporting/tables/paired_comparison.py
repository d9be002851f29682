"""Does the learned tutor map make students more robust than maps nobody had to learn? Students trained under each.

A comparison holds everything fixed but the map: the same network, training settings, teacher, seed and test images.
Each seed is compared with itself first; means and spreads are then over the seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import Protocol, TutorOrigin
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, ComparableResult
from rnascl_cli.reporting.data.lineage import TUTOR_WORDS, ReportModel
from rnascl_cli.reporting.tables.attacks import headings_of, result_at
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import NOTHING, Cell, Column, Table, number, points, text

ORIGINS: tuple[TutorOrigin, ...] = ("searched", "random", "same-depth", "last-layer", "by-hand")
CONTROLS: tuple[TutorOrigin, ...] = ("random", "same-depth", "last-layer")

Read = Callable[[ComparableResult], float | None]


@dataclass(frozen=True)
class PairedRun:
    """A student that learned from tutors, and what it withstood.

    Attributes:
        family: What it shares with those it is compared with: space, paradigm, fine-tuning, teacher and settings.
        words: The family in words.
        network: Its widths and the images it was attacked with: a pair to be compared agrees in these, too.
        seed: Of its training.
        origin: Who chose its tutors.
        measured: What it withstood.
    """

    family: str
    words: str
    network: str
    seed: int
    origin: TutorOrigin
    measured: ComparableResult


@dataclass(frozen=True)
class ReportColumn:
    """A column of the comparison: its heading and how to read it off a measurement."""

    column: Column
    read: Read


@dataclass(frozen=True)
class Comparison:
    """Students under learned tutors and under controls, under one protocol and norm.

    Attributes:
        name: A part of anchors.
        protocol: Of the attacks.
        trials: Students of the families in which a learned map stands beside another.
        measures: What was measured of a learned map and of another.
        words: Images, protocol and norm.
    """

    name: str
    protocol: Protocol
    trials: tuple[PairedRun, ...]
    measures: tuple[ReportColumn, ...]
    words: str

    @property
    def families(self) -> dict[str, str]:
        """Each family's words."""
        return {trial.family: trial.words for trial in self.trials}

    def of(self, family: str, origin: TutorOrigin) -> list[PairedRun]:
        """Return the students of a family under one kind of map, by seed."""
        found = [trial for trial in self.trials if (trial.family, trial.origin) == (family, origin)]
        return sorted(found, key=lambda trial: trial.seed)


def comparisons(groups: Sequence[ComparableGroup]) -> list[Comparison]:
    """Return what can be compared: one comparison a protocol and norm."""
    together: dict[tuple[Protocol, str], list[ComparableGroup]] = {}
    for group in groups:
        together.setdefault((group.protocol, group.norm), []).append(group)
    found = []
    for (protocol, norm), alike in together.items():
        trials = _beside_learned([trial for group in alike for trial in _trials(group)])
        if trials:
            letters = ", ".join(group.letter for group in alike)
            words = f"protocol {protocol}{'' if norm == 'Linf' else f', norm {norm}'}, data {letters}"
            name = f"{protocol}{'' if norm == 'Linf' else f'-{norm.lower()}'}"
            found.append(Comparison(name, protocol, tuple(trials), tuple(_measures(alike, trials)), words))
    return found


def _trials(group: ComparableGroup) -> list[PairedRun]:
    return [
        PairedRun(
            _family(found.model),
            _family_words(found.model),
            f"{found.model.made.document.architecture.widths} on {group.letter}",
            found.model.made.document.provenance.seed,
            found.model.tutors.origin,
            found,
        )
        for found in group.measured
        if found.model.made and found.model.tutors
    ]


def _family(model: ReportModel) -> str:
    """Return everything that students to be compared share, as text."""
    assert model.made is not None
    document = model.made.document
    steps = [made.document for made in (model.source, model.made) if made]
    settings = [
        {table: step.provenance.recipe.get(table) for table in ("train", "adv_finetune")} | {"epochs": step.epochs}
        for step in steps
    ]
    data = document.provenance.data
    teacher = model.teacher.sha256 if model.teacher else None
    robust = (model.robust_search, model.from_scratch, model.finetuned)
    losses = (document.paradigm, document.distill, robust)
    shared = (document.architecture.space, losses, teacher, data and data.spec, settings)
    return json.dumps(shared, sort_keys=True, default=str)


def _family_words(model: ReportModel) -> str:
    assert model.made is not None
    document = model.made.document
    searched = f", robust search ({model.robust_search})" if model.robust_search else ""
    scratch = f", {model.from_scratch} from scratch" if model.from_scratch else ""
    finetuned = f" + {model.finetuned}" if model.finetuned else ""
    return f"{document.architecture.space}, {document.paradigm}{searched}{scratch}{finetuned}"


def _beside_learned(trials: Sequence[PairedRun]) -> list[PairedRun]:
    """Keep the students of families that have a learned map and another, and number families that look alike."""
    origins: dict[str, set[TutorOrigin]] = {}
    for trial in trials:
        origins.setdefault(trial.family, set()).add(trial.origin)
    wanted = [family for family, found in origins.items() if "searched" in found and len(found) > 1]
    words = {trial.family: trial.words for trial in trials if trial.family in wanted}
    alike = {word: [family for family in words if words[family] == word] for word in words.values()}
    named = {
        family: word if len(alike[word]) == 1 else f"{word} (settings {alike[word].index(family) + 1})"
        for family, word in words.items()
    }
    return [
        PairedRun(trial.family, named[trial.family], trial.network, trial.seed, trial.origin, trial.measured)
        for trial in trials
        if trial.family in named
    ]


def _measures(groups: Sequence[ComparableGroup], trials: Sequence[PairedRun]) -> list[ReportColumn]:
    """Return clean accuracy and every attack that a learned map and another met under the same settings."""
    measures = [ReportColumn(Column("Clean", True), lambda measured: measured.attack.document.clean_accuracy)]
    headings = {key: column for group in groups for key, column in headings_of(group).items()}
    for key, column in headings.items():
        read = _reader(key)
        learned = [trial for trial in trials if trial.origin == "searched" and read(trial.measured) is not None]
        others = [trial for trial in trials if trial.origin != "searched" and read(trial.measured) is not None]
        if learned and others:
            measures.append(ReportColumn(column, read))
    return measures


def _reader(key: tuple[str, float, str, int | None, float | None, int]) -> Read:
    def read(measured: ComparableResult) -> float | None:
        result = result_at(measured, key)
        return result.accuracy if result else None

    return read


def gains(comparison: Comparison, family: str, origin: TutorOrigin, read: Read) -> list[float]:
    """Return learned minus control, in percentage points, of every pair that agrees in all but the map."""
    learned: dict[tuple[str, int], list[float]] = {}
    for trial in comparison.of(family, "searched"):
        if (value := read(trial.measured)) is not None:
            learned.setdefault((trial.network, trial.seed), []).append(value)
    found = []
    for trial in comparison.of(family, origin):
        partners = learned.get((trial.network, trial.seed))
        if partners and (other := read(trial.measured)) is not None:
            found.append(100 * (statistics.fmean(partners) - other))
    return found


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the means over seeds with the paired differences, and every seed's numbers."""
    columns = [Column("Students"), Column("Tutors"), Column("Seeds", True)]
    for measure in comparison.measures:
        columns += [measure.column, Column("Δ", True, f"{measure.column.label}: learned minus this, percentage points")]
    rows: list[list[Cell]] = []
    emphasised: set[int] = set()
    for family, words in comparison.families.items():
        for origin in ORIGINS:
            trials = comparison.of(family, origin)
            if not trials:
                continue
            if origin == "searched":
                emphasised.add(len(rows))
            rows.append(_mean_row(comparison, family, words, origin, trials))
    means = Table(
        f"tutor-comparison-{comparison.name}",
        f"Students under learned tutors and under controls ({comparison.name})",
        columns,
        rows,
        intro=f"Accuracy in %, mean ± standard deviation over the seeds; {comparison.words}. Δ: learned minus control "
        "in percentage points, over pairs of the same network, seed, settings and images.",
        notes=("One seed has no spread: a difference may then be chance, whatever the number of images.",),
        emphasised=frozenset(emphasised),
    )
    return [means, _by_seed(comparison)]


def _mean_row(
    comparison: Comparison, family: str, words: str, origin: TutorOrigin, trials: Sequence[PairedRun]
) -> list[Cell]:
    cells = [text(words), text(TUTOR_WORDS[origin]), number(len({trial.seed for trial in trials}), "d")]
    for measure in comparison.measures:
        values = [100 * value for trial in trials if (value := measure.read(trial.measured)) is not None]
        cells.append(_mean_cell(values))
        cells.append(Cell("") if origin == "searched" else _gain_cell(gains(comparison, family, origin, measure.read)))
    return cells


def _mean_cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(NOTHING)
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return Cell(f"{mean:.1f}{spread}", mean, ", ".join(f"{value:.1f}" for value in values))


def _gain_cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(NOTHING, None, "no pair of the same network, seed and images")
    shown = points(statistics.fmean(values))
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return Cell(shown.text + spread, shown.value, ", ".join(points(value).text for value in values))


def _by_seed(comparison: Comparison) -> Table:
    columns = [Column("Model"), Column("Students"), Column("Tutors"), Column("Seed", True)]
    trials = sorted(comparison.trials, key=lambda found: (found.words, found.seed, ORIGINS.index(found.origin)))
    return Table(
        f"tutor-comparison-{comparison.name}-seeds",
        f"The same, seed by seed ({comparison.name})",
        [*columns, *(measure.column for measure in comparison.measures)],
        [
            [
                text(trial.measured.model.name, href=provenance_anchor(trial.measured.attack)),
                text(trial.words),
                text(TUTOR_WORDS[trial.origin]),
                number(trial.seed, "d"),
                *(_value_cell(measure.read(trial.measured)) for measure in comparison.measures),
            ]
            for trial in trials
        ],
        intro=f"Accuracy in %; {comparison.words}.",
    )


def _value_cell(value: float | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{100 * value:.1f}", 100 * value)


def control_words(found: Sequence[Comparison]) -> list[str]:
    """Say which controls are not there to be compared with."""
    how = "rnascl derive RUN --tutors random|same-depth|last-layer | rnascl train -"
    if not found:
        return [
            "No student trained under a control map (random, same relative depth, last layer only) was attacked beside "
            f"one trained alike under a learned map, so whether learning the map helps cannot be told. {how} makes "
            "them."
        ]
    given = {trial.origin for comparison in found for trial in comparison.trials}
    absent = [TUTOR_WORDS[origin] for origin in CONTROLS if origin not in given]
    return [f"Controls not given: {', '.join(absent)} ({how})."] if absent else []
