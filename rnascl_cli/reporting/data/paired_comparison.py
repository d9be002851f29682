"""Paired comparisons: students that differ in one setting, compared within pairs of the same seed.

The report compares students under learned tutors with students under control maps; a study compares its arms with a
reference arm. A pair agrees in everything else, so the variation between seeds cancels in the difference.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rnascl_cli.artifacts.study import StudyRow
from rnascl_cli.recipes.old_keys import upgraded
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, ComparableResult
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.data.merge_attacks import setting

ORIGINS = ("searched", "random", "same-depth", "last-layer", "by-hand")
CONTROLS = ("random", "same-depth", "last-layer")
CLEAN = "clean"

Measure = Hashable
"""``CLEAN``, or what identifies an attack and its settings."""


class Accuracy(NamedTuple):
    """An accuracy and the number of images it was measured on."""

    fraction: float
    n: int


@dataclass(frozen=True)
class PairedRun:
    """One student of a paired comparison.

    Attributes:
        name: Run name.
        group: Label of the students it is compared with, e.g. ``"S3, rnas-cl"``.
        variant: What differs within a group: the origin of the tutors, or the arm of a study.
        seed: Training seed.
        pair: Runs of one group form a pair if this agrees: the seed, and the network and images if they can vary.
        accuracies: Accuracy by measure.
        measurement: Measurement behind the accuracies, for runs of a report.
    """

    name: str
    group: str
    variant: str
    seed: int
    pair: Hashable
    accuracies: Mapping[Measure, Accuracy]
    measurement: ComparableResult | None = None


def fractions(runs: Iterable[PairedRun], measure: Measure) -> list[float]:
    """Return the accuracies of the runs that have this measure."""
    return [run.accuracies[measure].fraction for run in runs if measure in run.accuracies]


def differences(runs: Iterable[PairedRun], reference: Iterable[PairedRun], measure: Measure) -> list[float]:
    """Return the accuracy of each run minus that of its reference, in percentage points.

    Args:
        runs: Runs of one group and variant. Runs without a reference or without the measure are skipped.
        reference: Runs of the same group and another variant. Of several runs of one pair, the mean counts.
        measure: What to compare.
    """
    references: dict[Hashable, list[float]] = {}
    for run in reference:
        if measure in run.accuracies:
            references.setdefault(run.pair, []).append(run.accuracies[measure].fraction)
    return [
        100 * (run.accuracies[measure].fraction - statistics.fmean(references[run.pair]))
        for run in runs
        if measure in run.accuracies and run.pair in references
    ]


def study_runs(rows: Iterable[StudyRow]) -> list[PairedRun]:
    """Return the students of a study; measures are named by (measurement, attack, eps)."""
    return [
        PairedRun(
            row.run,
            f"{row.space}, {row.stage}",
            row.arm,
            row.seed,
            row.seed,
            {CLEAN: Accuracy(row.clean_accuracy, row.test_images)}
            | {
                (name, result.attack, result.eps): Accuracy(result.accuracy, attacked.n)
                for name, attacked in row.attacks.items()
                for result in reversed(attacked.results)
            },
        )
        for row in rows
    ]


@dataclass(frozen=True)
class TutorComparison:
    """Students under learned tutors and under control maps, attacked under one protocol and norm.

    Attributes:
        name: Part of anchors and file names.
        description: Protocol, norm and data, in words.
        groups: Measurements the runs come from.
        runs: Students of all groups that have a learned map and another one.
    """

    name: str
    description: str
    groups: tuple[ComparableGroup, ...]
    runs: tuple[PairedRun, ...]

    @property
    def labels(self) -> list[str]:
        """Labels of the groups of students."""
        return list(dict.fromkeys(run.group for run in self.runs))

    def of(self, label: str, origin: str) -> list[PairedRun]:
        """Return the students of a group under one kind of map, by seed."""
        runs = [run for run in self.runs if (run.group, run.variant) == (label, origin)]
        return sorted(runs, key=lambda run: run.seed)

    @property
    def measures(self) -> list[Measure]:
        """Clean accuracy, and every attack that both a learned map and another one have a result for."""
        keys = dict.fromkeys(key for group in self.groups for key in group.settings)
        learned = [run for run in self.runs if run.variant == "searched"]
        others = [run for run in self.runs if run.variant != "searched"]
        return [CLEAN, *(key for key in keys if fractions(learned, key) and fractions(others, key))]


def tutor_comparisons(groups: Sequence[ComparableGroup]) -> list[TutorComparison]:
    """Return the possible comparisons of tutor maps, one per protocol and norm."""
    by_protocol: dict[tuple[str, str], list[ComparableGroup]] = {}
    for group in groups:
        by_protocol.setdefault((group.protocol, group.norm), []).append(group)
    comparisons = []
    for (protocol, norm), members in by_protocol.items():
        if runs := _tutor_runs(members):
            name = f"{protocol}{'' if norm == 'Linf' else f'-{norm.lower()}'}"
            letters = ", ".join(group.letter for group in members)
            description = f"protocol {protocol}{members[0].norm_suffix}, data {letters}"
            comparisons.append(TutorComparison(name, description, tuple(members), tuple(runs)))
    return comparisons


def _tutor_runs(groups: Sequence[ComparableGroup]) -> list[PairedRun]:
    """Return the students whose settings were trained under a learned map and under another one."""
    candidates = [
        (_shared_settings(measurement.model), measurement, group.letter)
        for group in groups
        for measurement in group.measurements
        if measurement.model.artifact and measurement.model.tutors
    ]
    origins: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    for settings, measurement, _ in candidates:
        assert measurement.model.tutors is not None
        origins.setdefault(settings, set()).add(measurement.model.tutors.origin)
        names.setdefault(settings, _group_name(measurement.model))
    compared = [settings for settings, found in origins.items() if "searched" in found and len(found) > 1]
    same_name = {settings: [one for one in compared if names[one] == names[settings]] for settings in compared}
    runs = []
    for settings, measurement, letter in candidates:
        if settings not in same_name:
            continue
        # Settings that differ but read alike are numbered.
        index = f" (settings {same_name[settings].index(settings) + 1})" if len(same_name[settings]) > 1 else ""
        runs.append(_tutor_run(measurement, letter, names[settings] + index))
    return runs


def _tutor_run(measurement: ComparableResult, letter: str, label: str) -> PairedRun:
    model, document = measurement.model, measurement.attack.document
    assert model.artifact is not None
    assert model.tutors is not None
    seed = model.artifact.document.provenance.seed
    accuracies: dict[Measure, Accuracy] = {CLEAN: Accuracy(document.clean_accuracy, document.n)}
    accuracies |= {setting(result): Accuracy(result.accuracy, document.n) for result in reversed(document.results)}
    return PairedRun(
        model.name,
        label,
        model.tutors.origin,
        seed,
        (seed, tuple(model.artifact.document.architecture.widths), letter),
        accuracies,
        measurement,
    )


def _shared_settings(model: ReportModel) -> str:
    """Return everything that compared students must share besides network, seed and images, as text."""
    assert model.artifact is not None
    document = model.artifact.document
    settings = [
        {table: upgraded(made.document.provenance.recipe).get(table) for table in ("train", "adv_finetune")}
        | {"epochs": made.document.epochs}
        for made in (model.source, model.artifact)
        if made
    ]
    data = document.provenance.data
    robust = (model.robust_search, model.from_scratch, model.finetuned)
    losses = (document.paradigm, document.distill, robust)
    teacher = model.teacher.sha256 if model.teacher else None
    shared = (document.architecture.space, losses, teacher, data and data.spec, settings)
    return json.dumps(shared, sort_keys=True, default=str)


def _group_name(model: ReportModel) -> str:
    assert model.artifact is not None
    document = model.artifact.document
    search = f", robust search ({model.robust_search})" if model.robust_search else ""
    scratch = f", {model.from_scratch} from scratch" if model.from_scratch else ""
    finetuned = f" + {model.finetuned}" if model.finetuned else ""
    return f"{document.architecture.space}, {document.paradigm}{search}{scratch}{finetuned}"
