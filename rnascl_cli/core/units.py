"""Parse perturbation sizes (``8/255``, ``0.031``) and counts (``8M``, ``900k``)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rnascl_cli.core.errors import UserError

# The number of digits is limited, because Fraction("1e999999999") takes a gigabyte.
SIZE = re.compile(r"[+-]?[0-9.]{1,30}(/[0-9]{1,30}|e[+-]?[0-9]{1,2})?", re.IGNORECASE)
COUNT = re.compile(r"([+-]?[0-9.]{1,30}(?:e[+-]?[0-9]{1,2})?)([kKMG]?)")
SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
LARGEST_COUNT = 10**18


@dataclass(frozen=True)
class Epsilon:
    """A perturbation size.

    Attributes:
        text: As it was written, e.g. ``8/255``.
        value: For pixels in [0, 1].
    """

    text: str
    value: float


def parse_epsilon(text: str, *, option: str = "--eps", norm: Literal["Linf", "L2"] = "Linf") -> Epsilon:
    """Read a perturbation size.

    Args:
        text: A fraction (``"8/255"``) or a decimal (``"0.03"``); ``"0"`` is allowed.
        option: What to call it in an error.
        norm: The norm it is measured in. An L2 norm over all pixels may exceed 1 (3 is usual on ImageNet).

    Raises:
        UserError: Not a number, negative, or above 1 in L-inf (``"8"`` most likely means ``8/255``).
    """
    try:
        if not SIZE.fullmatch(compact := "".join(text.split())):
            raise ValueError
        value = Fraction(compact)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{option}: '{text[:40]}' is not a number; write 8/255 or 0.03") from None
    if value < 0:
        raise UserError(f"{option}: {text} is negative; write 8/255 or 0.03")
    if value > 1 and norm == "Linf":
        meant = f"; did you mean {text.strip()}/255?" if value <= 255 else ""
        raise UserError(f"{option}: {text} is above 1, and pixels lie in [0, 1]{meant}")
    return Epsilon(text.strip(), float(value))


def parse_epsilons(text: str, *, option: str = "--eps") -> list[Epsilon]:
    """Read a comma-separated list of perturbation sizes, e.g. ``"0,1/255,8/255"``."""
    return [parse_epsilon(part, option=option) for part in text.split(",") if part.strip()]


def _pixels(value: Any) -> Any:
    return parse_epsilon(value, option="value").value if isinstance(value, str) else value


PixelSize = Annotated[float, BeforeValidator(_pixels), Field(ge=0.0, le=1.0)]
"""A pydantic field type: a float in [0, 1] that may be written as ``"8/255"``."""


def parse_count(text: str, *, option: str) -> int:
    """Read a number of MACs or parameters, rounded down to an integer.

    Args:
        text: A number, also with the suffix ``k``, ``M`` or ``G``: ``"8000000"``, ``"8e6"``, ``"0.2M"``, ``"900k"``.
        option: What to call it in an error.

    Raises:
        UserError: Not a number, or not between 1 and 10^18.
    """
    try:
        match = COUNT.fullmatch("".join(text.split()))
        if match is None:
            raise ValueError
        value = Fraction(match[1]) * SCALES[match[2]]
    except ValueError:
        raise UserError(f"{option}: '{text[:40]}' is not a number; write 8M, 0.2M, 900k or 8e6") from None
    if not 1 <= value <= LARGEST_COUNT:
        raise UserError(f"{option}: {text[:40].strip()} is not between 1 and 1e18; write 8M, 0.2M, 900k or 8e6")
    return math.floor(value)


def _count(value: Any) -> Any:
    if isinstance(value, str):
        return parse_count(value, option="value")
    return math.floor(value) if isinstance(value, float) and math.isfinite(value) else value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1, le=LARGEST_COUNT)]
"""A pydantic field type: an integer that may be written as ``"8M"`` or ``8e6``."""
