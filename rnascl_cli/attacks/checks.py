"""Names of the attacks, and checks of the attack settings. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.core.units import Epsilon, parse_epsilon

Norm = Literal["Linf", "L2"]

PARTS: dict[str, tuple[str, ...]] = {
    "aa": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "aa-rand": ("apgd-ce", "apgd-dlr"),
    "apgd-ce": ("apgd-ce",),
    "apgd-t": ("apgd-t",),
    "fab-t": ("fab-t",),
    "square": ("square",),
}
"""The AutoAttack family, with the parts of each."""
LINF_ONLY = ("fgsm", "mi-fgsm", "cw")
KNOWN = ("clean", "fgsm", "mi-fgsm", "pgd10", "pgd20", "pgd50", "cw", *PARTS)
AUDIT_EPS = {"Linf": 8 / 255, "L2": 0.5}


def pgd_steps(name: str) -> int | None:
    """Return N of ``pgdN``; None for any other name."""
    match = re.fullmatch(r"pgd([1-9]\d{0,5})", name)
    return int(match[1]) if match else None


def checked_names(names: Sequence[str], *, norm: Norm, protocol: str, option: str = "--attack") -> list[str]:
    """Return the names of attacks in lower case.

    Args:
        names: As given.
        norm: Of the perturbation.
        protocol: ``pixel`` or ``paper-code``.
        option: Option or key to name in errors.

    Raises:
        UserError: There are none, a name is unknown or given twice, or does not exist in this norm or protocol.
    """
    names = [name.lower() for name in names]
    if not names:
        raise UserError(f"{option}: name at least one (known: {', '.join(KNOWN)}, and pgdN for any N)")
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{option}: {', '.join(doubles)} is given twice; name each attack once")
    for name in names:
        if norm != "Linf" and name in LINF_ONLY:
            raise UserError(f"{option} {name}: exists for --norm Linf only; with {norm} use pgdN, apgd-ce, aa, ...")
        if protocol == "paper-code" and name in PARTS:
            raise UserError(
                f"{option} {name}: AutoAttack works on pixels in [0, 1]; use --protocol pixel, or leave {name} out"
            )
    for name in names:
        if name not in KNOWN and pgd_steps(name) is None:
            hint = did_you_mean("pgd20" if name.startswith("pgd") else name, KNOWN)
            raise UserError(f"{option}: unknown attack '{name}'{hint}; pgdN takes any number of steps N")
    return names


def checked_epsilons(texts: Sequence[str], *, norm: Norm, option: str = "--eps") -> list[Epsilon]:
    """Return perturbation sizes, ascending.

    Args:
        texts: As given, e.g. ``"8/255"``.
        norm: Of the perturbation.
        option: Option or key to name in errors.

    Raises:
        UserError: There are none, one is not a size, or two are the same.
    """
    epsilons = sorted((parse_epsilon(text, option=option, norm=norm) for text in texts), key=lambda eps: eps.value)
    if not epsilons:
        raise UserError(f"{option}: name at least one, e.g. 8/255")
    for smaller, larger in pairwise(epsilons):
        if smaller.value == larger.value:
            raise UserError(f"{option}: {smaller.text} and {larger.text} are the same; name each once")
    return epsilons


def audit_epsilon(epsilons: Sequence[Epsilon], *, norm: Norm, protocol: str, option: str = "--audit") -> Epsilon:
    """Return the eps nearest to the usual one: at much larger ones no model keeps any accuracy.

    Args:
        epsilons: Of the attack.
        norm: Of the perturbation.
        protocol: ``pixel`` or ``paper-code``.
        option: Option or key to name in errors.

    Raises:
        UserError: The protocol has no audit, or no size is above 0.
    """
    if protocol != "pixel":
        raise UserError(f"{option}: works on pixels; use --protocol pixel")
    above_zero = [eps for eps in epsilons if eps.value > 0]
    if not above_zero:
        raise UserError(f"{option}: needs an --eps above 0, e.g. 8/255")
    return min(above_zero, key=lambda eps: abs(eps.value - AUDIT_EPS[norm]))
