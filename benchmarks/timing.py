"""Times in pairs: every side takes its turn in each round of one run, so that a busy machine is busy for all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.results import Measurement

Times = dict[str, list[float]]
"""Seconds a call of each side, one number a round."""

RESAMPLES = 2000


def take_turns(sides: Mapping[str, Callable[[], object]], *, rounds: int, calls: Mapping[str, int]) -> Times:
    """Time the sides in turn.

    Every second round goes through them backwards, so that none always follows the same one.

    Args:
        sides: What to call, by name; each is called once before the clock starts.
        rounds: How many turns each side has.
        calls: How many calls make a turn, by name; 1 for a side not named.
    """
    for call in sides.values():
        call()
    times: Times = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, key=list(sides).index, reverse=number % 2 == 1):
            count = calls.get(name, 1)
            began = time.perf_counter()
            for _ in range(count):
                sides[name]()
            times[name].append((time.perf_counter() - began) / count)
    return times


def interval(times: Times, value: Callable[[Mapping[str, float]], float]) -> tuple[float, float, float]:
    """Return a number made of the sides' medians, and its 95 % bootstrap interval over the rounds.

    Args:
        times: From :func:`take_turns`.
        value: From the median seconds of each side to the number.
    """

    def of(rounds: Sequence[int]) -> float:
        return value({name: statistics.median([row[index] for index in rounds]) for name, row in times.items()})

    count = len(next(iter(times.values())))
    return of(range(count)), *bootstrap(of, count)


def bootstrap(of: Callable[[Sequence[int]], float], count: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a number made of ``count`` things, given those that were drawn."""
    pick = random.Random(0)
    drawn = sorted(of(pick.choices(range(count), k=count)) for _ in range(RESAMPLES))
    return drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES) - 1]


def ratio(
    times: Times,
    name: str,
    what: str,
    sides: tuple[str, str],
    *,
    unit: str = "x",
    at_least: float | None = None,
    at_most: float | None = None,
    kept: bool = True,
) -> Measurement:
    """Return the ratio of two sides' median seconds, the first over the second, as what is measured under ``name``."""
    over, under = sides

    def quotient(median: Mapping[str, float]) -> float:
        return median[over] / median[under]

    value, low, high = interval(times, quotient)
    return Measurement(
        name,
        what,
        value,
        len(times[over]),
        unit=unit,
        low=low,
        high=high,
        at_least=at_least,
        at_most=at_most,
        note=seconds_of(times, over, under),
        kept=kept,
    )


def seconds_of(times: Times, *names: str) -> str:
    """Return the median seconds of some sides, in words."""
    return " / ".join(f"{statistics.median(times[name]):.4g} s" for name in names)
