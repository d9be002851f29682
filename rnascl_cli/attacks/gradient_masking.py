"""Signs of gradient masking in the results themselves (Athalye et al. 2018, Carlini et al. 2019)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rnascl_cli.artifacts.documents import AuditCheck
from rnascl_cli.attacks.autoattack import SQUARE_SHARE
from rnascl_cli.attacks.evaluate import Gradients, Outcome

AA_GAP = 0.10
"""PGD leaving this much more accuracy than AutoAttack is gradient masking; honest models show 1 to 5 points."""
SLACK = 0.01
"""A difference of this share of the images, or of one image, is not significant."""
FEW = 50
"""With fewer images, an unchanged accuracy from one eps to the next is not significant."""


def masking_signs(outcomes: Sequence[Outcome], gradients: Gradients) -> list[str]:
    """Return one sentence per sign.

    Args:
        outcomes: All attacks at all eps, on the same images.
        gradients: Statistics of the gradients at clean images.
    """
    signs = _gradient_signs(gradients)
    for eps in sorted({outcome.eps.value for outcome in outcomes} - {0.0}):
        at_eps = {outcome.attack.name: outcome for outcome in outcomes if outcome.eps.value == eps}
        signs += _eps_signs(at_eps)
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
    """Format a fraction in percent, e.g. ``"34.0 %"``."""
    return f"{100 * share:.1f} %"


def beyond_chance(difference: float, n: int) -> bool:
    """Return whether a difference between two accuracies on the same ``n`` images is significant."""
    return difference > max(SLACK, 1 / n) + 1e-9


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
            "attacks are meaningless on them"
        )
    return signs


def _eps_signs(at_eps: dict[str, Outcome]) -> list[str]:
    """Return the signs that a comparison of attacks at one eps shows."""
    fgsm, aa, square = at_eps.get("fgsm"), at_eps.get("aa"), at_eps.get("square")
    pgds = [outcome for name, outcome in at_eps.items() if re.fullmatch(r"pgd\d+", name)]
    pgd = max(pgds, key=lambda outcome: outcome.attack.steps or 0, default=None)
    white = [outcome for name, outcome in at_eps.items() if name not in ("square", "aa", "clean", "fgsm")]
    checks = []
    if fgsm is not None and pgd is not None:
        checks.append(one_step_check(fgsm, pgd))
    if aa is not None and pgd is not None:
        checks.append(autoattack_check(aa, pgd))
    if square is not None and white:
        checks.append(black_box_check(square, min(white, key=lambda outcome: outcome.accuracy)))
    signs = [f"failed check '{check.name}': {check.detail}" for check in checks if not check.passed]
    by_square = aa.broken_by.get("square", 0) if aa is not None else 0
    if aa is not None and by_square > max(1, SQUARE_SHARE * len(aa.broken_N)):
        signs.append(
            f"eps {aa.eps.text}: Square, which uses no gradients, broke {by_square} images that AutoAttack's gradient "
            "attacks had not: a sign of gradient masking"
        )
    return signs


def one_step_check(fgsm: Outcome, pgd: Outcome) -> AuditCheck:
    """Compare one step with many at the same eps."""
    return _comparison(
        "many steps are no worse than one",
        not beyond_chance(pgd.accuracy - fgsm.accuracy, len(pgd.broken_N)),
        f"at eps {pgd.eps.text} fgsm leaves {percent(fgsm.accuracy)}, {pgd.attack.name} {percent(pgd.accuracy)}",
    )


def black_box_check(square: Outcome, white: Outcome) -> AuditCheck:
    """Compare Square, which uses no gradients, with a gradient attack at the same eps."""
    return _comparison(
        "a black-box attack does not beat gradients",
        not beyond_chance(white.accuracy - square.accuracy, len(square.broken_N)),
        f"at eps {square.eps.text} Square leaves {percent(square.accuracy)}, {white.attack.name} "
        f"{percent(white.accuracy)}",
    )


def autoattack_check(aa: Outcome, pgd: Outcome, *, label: str = "AutoAttack") -> AuditCheck:
    """Compare AutoAttack with PGD at the same eps."""
    apart = pgd.accuracy - aa.accuracy
    return _comparison(
        "AutoAttack is close to PGD",
        apart <= AA_GAP + 1e-9,
        f"at eps {aa.eps.text} {pgd.attack.name} leaves {percent(pgd.accuracy)}, {label} {percent(aa.accuracy)}, "
        f"{100 * apart:.1f} points apart",
    )


def _comparison(name: str, passed: bool, detail: str) -> AuditCheck:
    return AuditCheck(name=name, passed=passed, detail=detail + ("" if passed else ": a sign of gradient masking"))


def _sweep_signs(outcomes: Sequence[Outcome]) -> list[str]:
    signs = []
    for smaller, larger in pairwise(sorted(outcomes, key=lambda outcome: outcome.eps.value)):
        unchanged = int(larger.broken_N.sum()) == int(smaller.broken_N.sum())
        if unchanged and larger.accuracy > AA_GAP and len(larger.broken_N) >= FEW and larger.eps.value > 0:
            signs.append(
                f"{larger.attack.name}: no decrease from eps {smaller.eps.text} to {larger.eps.text}; a sign "
                "of gradient masking, or of an attack too weak for this model"
            )
    return signs


def _at(outcome: Outcome) -> str:
    return f"{outcome.attack.name} at eps {outcome.eps.text}"
