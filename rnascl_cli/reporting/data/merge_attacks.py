"""Several attack runs of one model on the same images are one measurement: FGSM here, a sweep there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, Verdicts
from rnascl_cli.reporting.data.collect import Artifact

NORMS = ("Linf", "L2")

Setting = tuple[str, float, str, int | None, float | None, int]
"""What makes two results comparable: attack, eps, norm, steps, step size, restarts."""


@dataclass(frozen=True)
class MergedAttack(Artifact[AttackDocument]):
    """What is known of one model on one set of images under one protocol.

    Attributes:
        parts: The attack runs it was put together from; one, where there was one.
    """

    parts: tuple[Artifact[AttackDocument], ...] = ()

    def run_of(self, result: AttackResult) -> str:
        """Return the name of the attack run that gave a result."""
        wanted = setting(result)
        return next(
            (part.run for part in self.parts for found in part.document.results if setting(found) == wanted), self.run
        )


def setting(result: AttackResult) -> Setting:
    """Return the attack and everything it was run with."""
    step = None if result.step_size is None else round(result.step_size, 9)
    return (result.attack, result.eps_value, result.norm, result.steps, step, result.restarts)


def norm_of(document: AttackDocument) -> str:
    """Return the norm of a document's attacks; an attack run has one."""
    asked = document.provenance.recipe.get("attack", {}).get("norm")
    return document.results[0].norm if document.results else asked if asked in NORMS else NORMS[0]


def merged_attacks(attacks: Sequence[Artifact[AttackDocument]]) -> tuple[MergedAttack, ...]:
    """Merge the attack documents of one model that share images, protocol and norm.

    Args:
        attacks: Of one model, in order of run name.

    Returns:
        One artifact for each set of images, protocol and norm, under the name of its first run. Where two runs hold
        the same attack under the same settings, the earlier run's result is shown.
    """
    alike: dict[tuple[str, str, str, tuple[int, ...]], list[Artifact[AttackDocument]]] = {}
    for attack in attacks:
        document, data = attack.document, attack.document.provenance.data
        images = tuple(sorted(document.images))
        key = (data.fingerprint if data else "", document.protocol, norm_of(document), images)
        alike.setdefault(key, []).append(attack)
    return tuple(_merge(found) for found in alike.values())


def _merge(found: Sequence[Artifact[AttackDocument]]) -> MergedAttack:
    first = found[0]
    document = first.document if len(found) == 1 else _merged(found)
    return MergedAttack(first.run, first.folder, first.file, first.sha256, document, tuple(found))


def _merged(found: Sequence[Artifact[AttackDocument]]) -> AttackDocument:
    results: dict[Setting, AttackResult] = {}
    verdicts: dict[tuple[str, str], Verdicts] = {}
    for attack in found:
        for result in attack.document.results:
            results.setdefault(setting(result), result)
        for verdict in attack.document.verdicts:
            key = (verdict.attack, verdict.eps)
            before = verdicts.get(key)
            broken = sorted({*verdict.broken, *(before.broken if before else ())})
            verdicts[key] = verdict.model_copy(update={"broken": broken})
    cards = [attack.document.audit for attack in found if attack.document.audit]
    merged = {
        "results": list(results.values()),
        "verdicts": list(verdicts.values()),
        "warnings": list(dict.fromkeys(word for attack in found for word in attack.document.warnings)),
        "worst_case_accuracy": None,  # follows from the verdicts of all runs
        "worst_case_confidence_interval": None,
        # A card that failed is not hidden behind one that passed.
        "audit": min(cards, key=lambda card: all(check.passed for check in card), default=None),
    }
    return found[0].document.model_copy(update=merged)
