"""Several attack runs of one model on the same images are one measurement: FGSM here, a sweep there."""

from __future__ import annotations

from collections.abc import Sequence

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, Verdicts
from rnascl_cli.reporting.collect import Artifact

Attacked = Artifact[AttackDocument]


def merged_attacks(attacks: Sequence[Attacked]) -> tuple[Attacked, ...]:
    """Merge the attack documents of one model that share images and protocol.

    Args:
        attacks: Of one model, in order of run name.

    Returns:
        One artifact for each set of images and protocol, under the name of its first run. Where two runs hold
        the same attack under the same settings, the earlier run's result is shown.
    """
    alike: dict[tuple[str, str, tuple[int, ...]], list[Attacked]] = {}
    for attack in attacks:
        data = attack.document.provenance.data
        images = tuple(sorted(attack.document.images))
        key = (data.fingerprint if data else "", attack.document.protocol, images)
        alike.setdefault(key, []).append(attack)
    return tuple(found[0] if len(found) == 1 else _merge(found) for found in alike.values())


def _merge(found: Sequence[Attacked]) -> Attacked:
    first = found[0]
    results: dict[tuple[object, ...], AttackResult] = {}
    verdicts: dict[tuple[str, str], Verdicts] = {}
    for attack in found:
        for result in attack.document.results:
            settings = (result.attack, result.eps_value, result.norm, result.steps, result.step_size, result.restarts)
            results.setdefault(settings, result)
        for verdict in attack.document.verdicts:
            key = (verdict.attack, verdict.eps)
            before = verdicts.get(key)
            broken = sorted({*verdict.broken, *(before.broken if before else ())})
            verdicts[key] = verdict.model_copy(update={"broken": broken})
    audits = [attack.document.audit for attack in found if attack.document.audit]
    merged = {
        "results": list(results.values()),
        "verdicts": list(verdicts.values()),
        "warnings": list(dict.fromkeys(word for attack in found for word in attack.document.warnings)),
        "worst_case_accuracy": None,  # follows from the verdicts of all runs
        "audit": audits[0] if audits else first.document.audit,
    }
    document = first.document.model_copy(update=merged)
    return Artifact(first.run, first.folder, first.file, first.sha256, document)
