"""Caveats and warnings of the report: missing, partial or incomparable results, and suspected gradient masking."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, attack_name
from rnascl_cli.reporting.data.lineage import UNKNOWN_ORIGIN, ReportModel
from rnascl_cli.reporting.tables.audit import failed_audits, unaudited
from rnascl_cli.reporting.tables.summary import by_data
from rnascl_cli.reporting.tables.tutor_statistics import undecided

MAX_NAMES = 10


def find_caveats(runs: RunSet, models: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> list[str]:
    """Return everything that is missing, partial or not comparable."""
    return [
        *(f"{run.run}: {run.state}" for run in runs.unfinished),
        *runs.damaged,
        *_not_comparable(models, groups),
        *_missing_stages(runs, models),
        *_partial_attacks(groups),
        *undecided(runs),
    ]


def masking_warnings(groups: Sequence[ComparableGroup]) -> list[str]:
    """Return the failed audits and the warnings of all attacks, each with its model."""
    warnings = [
        f"{one.model.name} ({group.protocol}, {one.model.trained}): {warning}"
        for group in groups
        for one in group.measurements
        for warning in one.attack.document.warnings
    ]
    return [*failed_audits(groups), *warnings]


def _not_comparable(models: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> Iterator[str]:
    if len(groups) > 1:
        differing: dict[str, Collection[object]] = {
            "two protocols": {group.protocol for group in groups},
            "different data": {group.fingerprint for group in groups},
            "two norms": {group.norm for group in groups},
        }
        reasons = [reason for reason, values in differing.items() if len(values) > 1]
        if not reasons or len(groups) > len({(group.protocol, group.fingerprint, group.norm) for group in groups}):
            reasons.append("different test images")
        letters = ", ".join(group.letter for group in groups)
        yield f"the attacks use {' and '.join(reasons)}; numbers must not be compared between tables {letters}"
    if len(by_data(models)) > 1:
        yield "the students were trained on different data; their clean accuracies are in separate tables"


def _missing_stages(runs: RunSet, models: Sequence[ReportModel]) -> Iterator[str]:
    students = [model for model in models if model.artifact]
    used_searches = {model.search.sha256 for model in students if model.search}
    derived_from = {sha256 for one in runs.derivations for sha256 in one.document.provenance.inputs.values()}
    for search in runs.searches:
        if search.sha256 not in used_searches:
            state = "derived, but not trained" if search.sha256 in derived_from else "searched only"
            yield f"{search.run}: {state}; no training of its network is given"
    for model in students:
        if model.finetuned and model.source is None:
            yield f"{model.name}: {UNKNOWN_ORIGIN}; the training before the fine-tuning is not given"
        if model.derived is None:
            yield f"{model.name}: no derived document is given, so its tutors are not shown"
        elif model.search is None:
            yield f"{model.name}: its search is not given"
    if unattacked := [model.name for model in students if not model.attacks]:
        yield f"not attacked, robust accuracy unknown: {shortened(unattacked)}"
    for model in models:
        if model.kind == "unknown":
            yield f"{model.name}: {UNKNOWN_ORIGIN}; the attacked file was not produced by any given run"
    if not students:
        yield "no training run is given, so there are no sizes and clean accuracies of students"


def _partial_attacks(groups: Sequence[ComparableGroup]) -> Iterator[str]:
    unverified = []
    for group in groups:
        for one in group.measurements:
            document, run = one.attack.document, one.attack.run
            if missing := [f"{attack_name(name)} at eps {eps:.4g}" for name, eps in one.missing]:
                yield f"{run}: the attack run is partial; no result of {', '.join(missing)}"
            if not document.results:
                yield f"{run}: attack.json has no results"
            elif not one.audit and not any(result.attack == "aa" for result in document.results):
                unverified.append(f"{one.model.name} ({group.protocol})")
    if unverified:
        yield f"neither AutoAttack nor an audit, gradient masking cannot be ruled out: {shortened(unverified)}"
    if without := unaudited(groups):
        yield f"no gradient-masking audit (attack --audit): {shortened(without)}"


def shortened(names: Sequence[str]) -> str:
    """Return names separated by commas; of a long list, the first ones and the number of others."""
    if len(names) <= MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: MAX_NAMES - 2])} and {len(names) - MAX_NAMES + 2} more, which are marked in the tables"
