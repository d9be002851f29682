"""Signs of gradient masking that the results themselves show (Athalye et al. 2018, Carlini et al. 2019)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rnascl_cli.attacks.autoattack import SQUARE_SHARE
from rnascl_cli.attacks.evaluate import Gradients, Outcome

AA_GAP = 0.10
"""PGD leaving this much more accuracy than AutoAttack is gradient masking; honest models show 1 to 5 points."""
SLACK = 0.01
"""A difference of this share of the images, or of one image, says nothing."""
FEW = 50
"""Below this many images, an unchanged accuracy from one eps to the next says nothing."""


def masking_signs(outcomes: Sequence[Outcome], gradients: Gradients) -> list[str]:
    """Return a sentence for each sign; none where nothing is noticed.

    Args:
        outcomes: All attacks at all eps, on the same images.
        gradients: What the gradients at clean images look like.
    """
    signs = _gradient_signs(gradients)
    for eps in sorted({outcome.eps.value for outcome in outcomes} - {0.0}):
        at_eps = {outcome.attack.name: outcome for outcome in outcomes if outcome.eps.value == eps}
        signs += _one_step_signs(at_eps) + _autoattack_signs(at_eps) + _black_box_signs(at_eps)
    for name in dict.fromkeys(outcome.attack.name for outcome in outcomes):
        signs += _sweep_signs([outcome for outcome in outcomes if outcome.attack.name == name])
    for outcome in outcomes:
        if outcome.out_of_ball:
            signs.append(
                f"{_at(outcome)}: {outcome.out_of_ball} perturbed images left the ball or were not finite; not counted"
            )
        signs += [f"{_at(outcome)}: {note}" for note in outcome.notes]
    return list(dict.fromkeys(signs))


def percent(share: float) -> str:
    """Return a share as per cent, e.g. ``"34.0 %"``."""
    return f"{100 * share:.1f} %"


def beyond_chance(difference: float, n: int) -> bool:
    """Return whether a difference between two accuracies on the same ``n`` images says anything."""
    return difference > max(SLACK, 1 / n) + 1e-9


def strongest_pgd(at_eps: dict[str, Outcome]) -> Outcome | None:
    """Return the pgdN with the most steps."""
    found = [outcome for name, outcome in at_eps.items() if re.fullmatch(r"pgd\d+", name)]
    return max(found, key=lambda outcome: outcome.attack.steps or 0, default=None)


def _gradient_signs(gradients: Gradients) -> list[str]:
    signs = []
    if gradients.zero:
        signs.append(
            f"{gradients.zero} of {gradients.images} images have an all-zero loss gradient: gradient attacks cannot "
            "move them; a sign of gradient masking"
        )
    if gradients.not_finite:
        signs.append(
            f"{gradients.not_finite} of {gradients.images} images have a loss gradient that is not finite: gradient "
            "attacks say nothing about them"
        )
    return signs


def _one_step_signs(at_eps: dict[str, Outcome]) -> list[str]:
    one, many = at_eps.get("fgsm"), strongest_pgd(at_eps)
    if one is None or many is None or not beyond_chance(many.accuracy - one.accuracy, len(one.broken_N)):
        return []
    return [
        f"eps {one.eps.text}: one step of FGSM leaves {percent(one.accuracy)}, {many.attack.name} "
        f"{percent(many.accuracy)}: a single step should not beat many; a sign of gradient masking"
    ]


def _autoattack_signs(at_eps: dict[str, Outcome]) -> list[str]:
    signs = []
    suite, pgd = at_eps.get("aa"), strongest_pgd(at_eps)
    if suite is not None and pgd is not None and pgd.accuracy - suite.accuracy > AA_GAP:
        signs.append(
            f"eps {suite.eps.text}: {pgd.attack.name} leaves {percent(pgd.accuracy)} and AutoAttack "
            f"{percent(suite.accuracy)}, {100 * (pgd.accuracy - suite.accuracy):.1f} points apart: gradient masking; "
            "the PGD number overstates the robustness"
        )
    if suite is not None:
        by_square = suite.broken_by.get("square", 0)
        if by_square > max(1, SQUARE_SHARE * len(suite.broken_N)):
            signs.append(
                f"eps {suite.eps.text}: Square, which sees no gradients, broke {by_square} images that AutoAttack's "
                "gradient attacks had not: they may be held up by gradient masking"
            )
    return signs


def _black_box_signs(at_eps: dict[str, Outcome]) -> list[str]:
    black = at_eps.get("square")
    white = [outcome for name, outcome in at_eps.items() if name not in ("square", "aa", "clean", "fgsm")]
    if black is None or not white:
        return []
    best = min(white, key=lambda outcome: outcome.accuracy)
    if not beyond_chance(best.accuracy - black.accuracy, len(black.broken_N)):
        return []
    return [
        f"eps {black.eps.text}: Square, which sees no gradients, leaves {percent(black.accuracy)} and the best "
        f"gradient attack ({best.attack.name}) {percent(best.accuracy)}: gradient masking"
    ]


def _sweep_signs(outcomes: Sequence[Outcome]) -> list[str]:
    signs = []
    for smaller, larger in pairwise(sorted(outcomes, key=lambda outcome: outcome.eps.value)):
        unchanged = int(larger.broken_N.sum()) == int(smaller.broken_N.sum())
        if unchanged and larger.accuracy > AA_GAP and len(larger.broken_N) >= FEW and larger.eps.value > 0:
            signs.append(
                f"{larger.attack.name}: no fall from eps {smaller.eps.text} to {larger.eps.text}; a sign "
                "of gradient masking, or of an attack too weak for this model"
            )
    return signs


def _at(outcome: Outcome) -> str:
    return f"{outcome.attack.name} at eps {outcome.eps.text}"
