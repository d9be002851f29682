"""What is missing, partial or kept apart, in words: a report never leaves a silent gap."""

from __future__ import annotations

from collections.abc import Sequence

from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, missing_results
from rnascl_cli.reporting.data.lineage import UNKNOWN_ORIGIN, ReportModel
from rnascl_cli.reporting.tables.audit import failed_audits, unaudited
from rnascl_cli.reporting.tables.summary import by_data
from rnascl_cli.reporting.tables.tutor_statistics import undecided

MANY = 10
"""Names in a row beyond which a reader would stop reading."""


def find_gaps(runs: RunSet, models: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> list[str]:
    """Say what a reader should know is not there, or not comparable."""
    return [
        *(f"{found.run}: {found.words}" for found in runs.unfinished),
        *runs.damaged,
        *_apart(models, groups),
        *_missing_stages(runs, models),
        *_partial_attacks(groups),
        *undecided(runs),
    ]


def warnings(groups: Sequence[ComparableGroup]) -> list[str]:
    """Return every warning of the gradient-masking checks and audits, with the model it is about."""
    return [
        *failed_audits(groups),
        *_warned(groups),
    ]


def _warned(groups: Sequence[ComparableGroup]) -> list[str]:
    return [
        f"{found.model.name} ({group.protocol}, {found.model.trained}): {warning}"
        for group in groups
        for found in group.measured
        for warning in found.attack.document.warnings
    ]


def _apart(models: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> list[str]:
    words = []
    if len(groups) > 1:
        reasons = []
        if len({group.protocol for group in groups}) > 1:
            reasons.append("two protocols")
        if len({group.fingerprint for group in groups}) > 1:
            reasons.append("different data")
        if len({group.norm for group in groups}) > 1:
            reasons.append("two norms")
        if not reasons or len(groups) > len({(group.protocol, group.fingerprint, group.norm) for group in groups}):
            reasons.append("different test images")
        letters = ", ".join(group.letter for group in groups)
        words.append(f"attacks on {' and '.join(reasons)} are given; tables {letters} must not be compared by column")
    if len(by_data(models)) > 1:
        words.append("students were trained on different data; their clean accuracies stand in separate tables")
    return words


def _missing_stages(runs: RunSet, models: Sequence[ReportModel]) -> list[str]:
    words = []
    students = [model for model in models if model.made]
    used_searches = {model.search.sha256 for model in students if model.search}
    derived_from = {sha256 for found in runs.derivations for sha256 in found.document.provenance.inputs.values()}
    for search in runs.searches:
        if search.sha256 not in used_searches:
            done = "derived, not trained" if search.sha256 in derived_from else "searched only"
            words.append(f"{search.run}: {done}; no training that came from it is given")
    for model in students:
        if model.finetuned and model.source is None:
            words.append(f"{model.name}: {UNKNOWN_ORIGIN}; the training it was fine-tuned from is not given")
        if model.derived is None:
            words.append(f"{model.name}: no derived document is given, so its tutors are not shown")
        elif model.search is None:
            words.append(f"{model.name}: the search it was derived from is not given")
    if unattacked := [model.name for model in students if not model.attacks]:
        words.append(f"not attacked, so of unknown robust accuracy: {listed(unattacked)}")
    for model in models:
        if model.kind == "unknown":
            words.append(f"{model.name}: {UNKNOWN_ORIGIN}; no given run made the file that was attacked")
    if not students:
        words.append("no training run is given: there are no students' sizes and clean accuracies")
    return words


def _partial_attacks(groups: Sequence[ComparableGroup]) -> list[str]:
    words, unproven = [], []
    for group in groups:
        for found in group.measured:
            document, run = found.attack.document, found.attack.run
            if missing := missing_results(found.attack):
                words.append(f"{run}: the attack run is partial; no result of {', '.join(missing)}")
            if not document.results:
                words.append(f"{run}: attack.json holds no result")
            elif not found.card and not any(result.attack == "aa" for result in document.results):
                unproven.append(f"{found.model.name} ({group.protocol})")
    if unproven:
        words.append(f"neither AutoAttack nor an audit, so gradient masking is not ruled out: {listed(unproven)}")
    if without := unaudited(groups):
        words.append(f"no audit for masked gradients (attack --audit): {listed(without)}")
    return words


def listed(names: Sequence[str]) -> str:
    """Return names in a row; of very many the first, and how many more there are."""
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(names[: MANY - 2])} and {len(names) - MANY + 2} more, which the tables mark"
