"""What ``attack`` found, as rows of ``attack.json``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rnascl_cli.artifacts.documents import AttackResult, Verdicts
from rnascl_cli.attacks.evaluate import Outcome
from rnascl_cli.attacks.interface import Attack, Norm
from rnascl_cli.attacks.protocol import AttackSpace
from rnascl_cli.attacks.verdicts import wilson_interval
from rnascl_cli.core.units import Epsilon
from rnascl_cli.data import Data
from rnascl_cli.recipes import AttackSettings

LARGEST_L2 = 5.0


def setting_warnings(
    attacks: Sequence[Attack], epsilons: Sequence[Epsilon], domain: AttackSpace, norm: Norm, num_classes: int
) -> list[str]:
    """Return a sentence for each setting that can hardly be meant or is not the published one."""
    warnings = [
        f"eps {eps.text} in L2 is larger than any in use; if {eps.text}/255 was meant, write it so"
        for eps in epsilons
        if norm == "L2" and eps.value > LARGEST_L2
    ]
    if domain.protocol == "paper-code" and torch.all(torch.as_tensor(domain.std) == 1):
        warnings.append("the model does not rescale its input: protocols paper-code and pixel coincide")
    if not any(eps.value for eps in epsilons) and any(item.name != "clean" for item in attacks):
        warnings.append("every eps is 0: no image is attacked, and each accuracy is that on clean images")
    for item in attacks:
        if not item.is_standard(num_classes):
            warnings.append(
                f"{item.name}: not AutoAttack's standard setting: {num_classes} classes give at most {num_classes - 1} "
                "targets"
            )
        for eps in epsilons:
            warnings += _step_warnings(item, eps)
    return warnings


def _step_warnings(item: Attack, eps: Epsilon) -> list[str]:
    step = item.step_size_at(eps.value)
    if not eps.value or step is None or item.steps is None:
        return []
    warnings = []
    if step > eps.value * (1 + 1e-9):
        warnings.append(f"{item.name} at eps {eps.text}: a step of {step:.4g} is longer than eps")
    if step * item.steps < eps.value * (1 - 1e-9):
        warnings.append(f"{item.name} at eps {eps.text}: {item.steps} steps of {step:.4g} do not reach eps")
    return warnings


def worst_case(outcomes: Sequence[Outcome]) -> torch.Tensor | None:
    """Return which images some attack broke at the largest eps, ``(N,)``; None where nothing was attacked."""
    largest = max(outcome.eps.value for outcome in outcomes)
    if largest == 0:
        return None
    return torch.stack([outcome.broken_N for outcome in outcomes if outcome.eps.value == largest]).any(dim=0)


def accuracy(broken_N: torch.Tensor) -> float:
    """Return the share of images not broken."""
    return int((~broken_N).sum()) / len(broken_N)


def confidence(broken_N: torch.Tensor, data: Data) -> tuple[float, float] | None:
    """Return the 95 % interval of that share for the whole test set; None where the whole set was attacked."""
    n = len(data.test)
    subset = data.limit_test is not None and int(data.test.index_N[-1]) >= n
    return wilson_interval(int((~broken_N).sum()), n) if subset else None


def result_row(outcome: Outcome, settings: AttackSettings, data: Data) -> AttackResult:
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
        confidence_interval=confidence(outcome.broken_N, data),
        seconds=round(outcome.seconds, 3),
        images_per_second=round(outcome.attacked / outcome.seconds, 3) if outcome.seconds else 0.0,
        attacked=outcome.attacked,
        standard=outcome.attack.is_standard(data.num_classes),
    )


def verdicts_row(outcome: Outcome, data: Data) -> Verdicts:
    """Return which test images one attack at one eps broke."""
    broken = data.test.index_N[outcome.broken_N].tolist()
    return Verdicts(attack=outcome.attack.name, eps=outcome.eps.text, broken=sorted(broken))
