"""The contents of ``attack.json``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, AuditCheck, Verdicts
from rnascl_cli.attacks.evaluate import Outcome
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.core.statistics import wilson_interval
from rnascl_cli.core.units import Epsilon
from rnascl_cli.data import Data
from rnascl_cli.engine.provenance import make_provenance
from rnascl_cli.recipes.settings import AttackSettings
from rnascl_cli.stages.attack.plan import AttackPlan

LARGEST_L2 = 5.0


def attack_document(
    plan: AttackPlan, right_N: Tensor, outcomes: Sequence[Outcome], *, signs: list[str], audit: list[AuditCheck] | None
) -> AttackDocument:
    """Return the document of a finished attack.

    Args:
        plan: What was run.
        right_N: Which images are classified correctly when clean.
        outcomes: Every attack at every eps.
        signs: Of gradient masking, in the order of the warnings.
        audit: The gradient-masking audit; None if it was not run.
    """
    data, settings, target = plan.data, plan.settings, plan.target
    worst_N = _worst_case(outcomes)
    return AttackDocument(
        provenance=make_provenance(
            plan.recipe,
            device=plan.compute.device_name,
            precision=plan.compute.student,
            data=data.reference(),
            teacher=target.provenance.teacher if target.provenance else None,
            inputs=target.inputs,
        ),
        model=target.name,
        model_sha256=target.loaded.sha256,
        protocol=settings.protocol,
        n=len(data.test),
        images=data.test.index_N.tolist(),
        clean_accuracy=_accuracy(~right_N),
        clean_confidence_interval=_interval(~right_N, data),
        worst_case_accuracy=None if worst_N is None else _accuracy(worst_N),
        worst_case_confidence_interval=None if worst_N is None else _interval(worst_N, data),
        results=[_result(outcome, settings, data) for outcome in outcomes],
        verdicts=[
            Verdicts(
                attack=outcome.attack.name,
                eps=outcome.eps.text,
                broken=sorted(data.test.index_N[outcome.broken_N].tolist()),
            )
            for outcome in outcomes
        ],
        warnings=[*_setting_warnings(plan), *signs],
        audit=audit,
    )


def _setting_warnings(plan: AttackPlan) -> list[str]:
    """Return a sentence for each setting that is unlikely to be intended or is not the published one."""
    warnings = [
        f"eps {eps.text} in L2 is larger than any in use; if {eps.text}/255 was meant, write it so"
        for eps in plan.epsilons
        if plan.settings.norm == "L2" and eps.value > LARGEST_L2
    ]
    space = plan.attack_space
    if space.protocol == "paper-code" and torch.all(torch.as_tensor(space.std) == 1):
        warnings.append("the model does not rescale its input: protocols paper-code and pixel coincide")
    if not any(eps.value for eps in plan.epsilons) and any(attack.name != "clean" for attack in plan.attacks):
        warnings.append("every eps is 0: no image is attacked, and each accuracy is that on clean images")
    classes = plan.data.num_classes
    for attack in plan.attacks:
        if not attack.is_standard(classes):
            targets = f"{classes} classes give at most {classes - 1} targets"
            warnings.append(f"{attack.name}: not AutoAttack's standard setting: {targets}")
        for eps in plan.epsilons:
            warnings += _step_warnings(attack, eps)
    return warnings


def _step_warnings(attack: Attack, eps: Epsilon) -> list[str]:
    step = attack.step_size_at(eps.value)
    if not eps.value or step is None or attack.steps is None:
        return []
    warnings = []
    if step > eps.value * (1 + 1e-9):
        warnings.append(f"{attack.name} at eps {eps.text}: a step of {step:.4g} is longer than eps")
    if step * attack.steps < eps.value * (1 - 1e-9):
        warnings.append(f"{attack.name} at eps {eps.text}: {attack.steps} steps of {step:.4g} do not reach eps")
    return warnings


def _worst_case(outcomes: Sequence[Outcome]) -> Tensor | None:
    """Return which images any attack broke at the largest eps, ``(N,)``; None if nothing was attacked."""
    largest = max(outcome.eps.value for outcome in outcomes)
    if largest == 0:
        return None
    return torch.stack([outcome.broken_N for outcome in outcomes if outcome.eps.value == largest]).any(dim=0)


def _accuracy(broken_N: Tensor) -> float:
    return int((~broken_N).sum()) / len(broken_N)


def _interval(broken_N: Tensor, data: Data) -> tuple[float, float] | None:
    """Return the 95 % interval of the accuracy on the whole test set; None if the whole set was attacked."""
    subset = data.limit_test is not None and int(data.test.index_N[-1]) >= len(data.test)
    return wilson_interval(_accuracy(broken_N), len(data.test)) if subset else None


def _result(outcome: Outcome, settings: AttackSettings, data: Data) -> AttackResult:
    """Return one attack at one eps as a row of ``results``."""
    ran = outcome.eps.value > 0
    return AttackResult(
        attack=outcome.attack.name,
        eps=outcome.eps.text,
        eps_value=outcome.eps.value,
        norm=settings.norm,
        steps=outcome.attack.steps if ran else 0,
        step_size=outcome.attack.step_size_at(outcome.eps.value) if ran else None,
        restarts=outcome.attack.restarts,
        accuracy=outcome.accuracy,
        confidence_interval=_interval(outcome.broken_N, data),
        seconds=round(outcome.seconds, 3),
        images_per_second=round(outcome.attacked / outcome.seconds, 3) if outcome.seconds else 0.0,
        attacked=outcome.attacked,
        standard=outcome.attack.is_standard(data.num_classes),
    )
