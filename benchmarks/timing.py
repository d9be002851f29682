"""Times in pairs: every side takes its turn in each round of one run, so that a busy machine is busy for all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

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
    pick = random.Random(0)
    drawn = sorted(of(pick.choices(range(count), k=count)) for _ in range(RESAMPLES))
    return of(range(count)), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES) - 1]
