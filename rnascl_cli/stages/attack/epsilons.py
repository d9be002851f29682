"""At which eps an attack is run, and where its audit compares attacks. No tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import Epsilon, parse_epsilon
from rnascl_cli.recipes import AttackSettings

CUSTOMARY_EPS = {"Linf": 8 / 255, "L2": 0.5}


def epsilons_of(settings: AttackSettings, *, option: str = "--eps") -> list[Epsilon]:
    """Return the perturbation sizes, ascending.

    Args:
        settings: Of the attack.
        option: What to call their place in an error: the option, or a key.

    Raises:
        UserError: There are none, or one is no size, or two are the same.
    """
    found = [parse_epsilon(text, option=option, norm=settings.norm) for text in settings.eps]
    epsilons = sorted(found, key=lambda eps: eps.value)
    if not epsilons:
        raise UserError(f"{option}: name at least one, e.g. 8/255")
    for smaller, larger in pairwise(epsilons):
        if smaller.value == larger.value:
            raise UserError(f"{option}: {smaller.text} and {larger.text} are the same; name each once")
    return epsilons


def audit_epsilon(settings: AttackSettings, epsilons: Sequence[Epsilon], *, option: str = "--audit") -> Epsilon:
    """Return the eps nearest to the customary one: at much larger ones no model is left with any accuracy.

    Args:
        settings: Of the attack.
        epsilons: Its sizes.
        option: What to call the audit in an error.

    Raises:
        UserError: The protocol has no audit, or no size is above 0.
    """
    if settings.protocol != "pixel":
        raise UserError(f"{option}: works on pixels; use --protocol pixel")
    above_zero = [eps for eps in epsilons if eps.value > 0]
    if not above_zero:
        raise UserError(f"{option}: needs an --eps above 0, e.g. 8/255")
    customary = CUSTOMARY_EPS[settings.norm]
    return min(above_zero, key=lambda eps: abs(eps.value - customary))
