"""Merge attack runs on the same model, images, protocol and norm into one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, Protocol, Verdicts
from rnascl_cli.reporting.data.collect import Artifact

NORMS = ("Linf", "L2")

AttackSetting = tuple[str, float, str, int | None, float | None, int]
"""Results are comparable if these agree: attack, eps, norm, steps, step size, restarts."""
Conditions = tuple[str, Protocol, str, tuple[int, ...]]
"""Measurements are comparable if these agree: data fingerprint, protocol, norm, image indices."""


@dataclass(frozen=True)
class MergedAttack(Artifact[AttackDocument]):
    """All attack results of one model under the same conditions.

    Attributes:
        parts: The attack runs that were merged, in order of run name.
    """

    parts: tuple[Artifact[AttackDocument], ...] = ()

    def run_of(self, result: AttackResult) -> str:
        """Return the name of the attack run that produced ``result``."""
        runs = (part.run for part in self.parts for other in part.document.results if setting(other) == setting(result))
        return next(runs, self.run)


def setting(result: AttackResult) -> AttackSetting:
    """Return the attack and its hyperparameters."""
    step_size = None if result.step_size is None else round(result.step_size, 9)
    return (result.attack, result.eps_value, result.norm, result.steps, step_size, result.restarts)


def conditions(document: AttackDocument) -> Conditions:
    """Return what must agree between comparable measurements."""
    data = document.provenance.data
    requested = document.provenance.recipe.get("attack", {}).get("norm")
    norm = document.results[0].norm if document.results else requested if requested in NORMS else NORMS[0]
    return (data.fingerprint if data else "", document.protocol, norm, tuple(sorted(document.images)))


def merged_attacks(attacks: Sequence[Artifact[AttackDocument]]) -> tuple[MergedAttack, ...]:
    """Merge the attack documents of one model that share images, protocol and norm.

    Args:
        attacks: Attack documents of one model, sorted by run name.

    Returns:
        One artifact per set of conditions, named after its first run. If two runs contain the same attack with the
        same settings, the result of the first one is kept.
    """
    by_conditions: dict[Conditions, list[Artifact[AttackDocument]]] = {}
    for attack in attacks:
        by_conditions.setdefault(conditions(attack.document), []).append(attack)
    return tuple(
        MergedAttack(parts[0].run, parts[0].folder, parts[0].file, parts[0].sha256, _merge(parts), tuple(parts))
        for parts in by_conditions.values()
    )


def _merge(parts: Sequence[Artifact[AttackDocument]]) -> AttackDocument:
    documents = [part.document for part in parts]
    if len(documents) == 1:
        return documents[0]
    results: dict[AttackSetting, AttackResult] = {}
    verdicts: dict[tuple[str, str], Verdicts] = {}
    for document in documents:
        for result in document.results:
            results.setdefault(setting(result), result)
        for verdict in document.verdicts:
            key = (verdict.attack, verdict.eps)
            broken = {*verdict.broken, *(verdicts[key].broken if key in verdicts else ())}
            verdicts[key] = verdict.model_copy(update={"broken": sorted(broken)})
    audits = [document.audit for document in documents if document.audit]
    merged = {
        "results": list(results.values()),
        "verdicts": list(verdicts.values()),
        "warnings": list(dict.fromkeys(warning for document in documents for warning in document.warnings)),
        "worst_case_accuracy": None,  # computed from the verdicts of all runs
        "worst_case_confidence_interval": None,
        # A failed audit takes precedence over one that passed.
        "audit": min(audits, key=lambda audit: all(check.passed for check in audit), default=None),
    }
    return documents[0].model_copy(update=merged)
