"""Profile of the property-based tests: a fixed number of examples, no deadline."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings

from rnascl_cli.core.errors import UserError

T = TypeVar("T")


def quick(examples: int) -> settings:
    """Settings for ``examples`` examples, the same ones each time; PROPERTY_TIMES=N makes it N times as many others."""
    times = int(os.environ.get("PROPERTY_TIMES", "1"))
    return settings(
        max_examples=times * examples,
        deadline=None,
        derandomize=times == 1,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """Return what a call gives and an empty line, or nothing and the line of its refusal."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error)
