"""What attacks are called, and which of them exist in which norm and protocol. No tensors here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rnascl_cli.core.errors import UserError, did_you_mean

PARTS: dict[str, tuple[str, ...]] = {
    "aa": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "aa-rand": ("apgd-ce", "apgd-dlr"),
    "apgd-ce": ("apgd-ce",),
    "apgd-t": ("apgd-t",),
    "fab-t": ("fab-t",),
    "square": ("square",),
}
"""The AutoAttack family, and what each of it is made of."""
LINF_ONLY = ("fgsm", "mi-fgsm", "cw")
KNOWN = ("clean", "fgsm", "mi-fgsm", "pgd10", "pgd20", "pgd50", "cw", *PARTS)


def pgd_steps(name: str) -> int | None:
    """Return N of ``pgdN``; None for any other name."""
    match = re.fullmatch(r"pgd([1-9]\d{0,5})", name)
    return int(match[1]) if match else None


def checked_names(names: Sequence[str], *, norm: str, paper_code: bool = False, option: str = "--attack") -> list[str]:
    """Return the names of attacks in lower case, checked.

    Args:
        names: As given.
        norm: ``Linf`` or ``L2``.
        paper_code: Whether the perturbations are of normalised inputs.
        option: What to call their place in an error: the option, or a key.

    Raises:
        UserError: There are none, or a name is unknown or given twice, or does not exist in this norm or protocol.
    """
    lower = [name.lower() for name in names]
    if not lower:
        raise UserError(f"{option}: name at least one (known: {', '.join(KNOWN)}, and pgdN for any N)")
    doubles = sorted({name for name in lower if lower.count(name) > 1})
    if doubles:
        raise UserError(f"{option}: {', '.join(doubles)} is given twice; name each attack once")
    for name in lower:
        if norm != "Linf" and name in LINF_ONLY:
            raise UserError(f"{option} {name}: exists for --norm Linf only; with {norm} use pgdN, apgd-ce, aa, ...")
        if paper_code and name in PARTS:
            raise UserError(
                f"{option} {name}: AutoAttack works on pixels in [0, 1]; use --protocol pixel, or leave {name} out"
            )
    for name in lower:
        if name not in KNOWN and pgd_steps(name) is None:
            hint = did_you_mean("pgd20" if name.startswith("pgd") else name, KNOWN)
            raise UserError(f"{option}: unknown attack '{name}'{hint}; pgdN takes any number of steps N")
    return lower
