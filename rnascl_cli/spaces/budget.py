"""The best network under a budget: of all networks that keep it, the one the search thinks most likely.

A search leaves one logit a filter choice, and softmax(v) is the chance of each choice to win under Gumbel noise. A
network's log-likelihood is therefore the sum over its blocks of log softmax(v)[choice]. Without a budget the argmax of
each block is best; under ``max_macs`` and ``max_params`` it is the best chain of :mod:`rnascl_cli.spaces.chain`. Logits
are taken as the exact fractions that floats are, so nothing is rounded, and equal networks are ordered as argmax
does it: the earlier, wider choice in the first block where they differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rnascl_cli.core.errors import UserError
from rnascl_cli.spaces.chain import PathStep, best_path
from rnascl_cli.spaces.cost import Cost, block_costs, classifier_cost, final_side, network_cost, stem_cost
from rnascl_cli.spaces.tables import SPACES, SearchSpace

GAIN_BITS = 64  # gains are scaled up until whole prices for a unit of cost are fine enough

Logits = Sequence[Sequence[float]]


class Budget(NamedTuple):
    """The most a network may cost: MACs for one image, trainable numbers; None where either is free."""

    max_macs: int | None = None
    max_params: int | None = None

    def keeps(self, cost: Cost) -> bool:
        """Return whether a network of this cost is within the budget."""
        return (self.max_macs is None or cost.macs <= self.max_macs) and (
            self.max_params is None or cost.params <= self.max_params
        )

    def over(self, other: Budget) -> Budget:
        """Return this budget, with the other's limits where it has none."""
        return Budget(
            other.max_macs if self.max_macs is None else self.max_macs,
            other.max_params if self.max_params is None else self.max_params,
        )

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self.max_macs is not None or self.max_params is not None


class DerivedNetwork(NamedTuple):
    """A network of a space.

    Attributes:
        widths: Output channels of each block.
        cost: Its params and MACs.
        log_likelihood: The sum over blocks of log softmax(v)[choice], in nats, at most 0.
        proven: Whether no network within the same limits is more likely. False only where a search for one was cut
            short (logits that follow the cost itself): the limits are kept all the same.
    """

    widths: list[int]
    cost: Cost
    log_likelihood: float
    proven: bool


class _Limits(NamedTuple):
    """What a network's costs have to keep; None where there is no such limit."""

    macs: int | None = None
    params: int | None = None
    least_macs: int | None = None

    def keep(self, cost: Cost) -> bool:
        return Budget(self.macs, self.params).keeps(cost) and (self.least_macs is None or cost.macs >= self.least_macs)

    def relaxed(self) -> Iterator[_Limits]:
        """Yield what is left of them with limits taken away, the fewest first, and last all of them."""
        given = [name for name, limit in zip(self._fields, self, strict=True) if limit is not None]
        for count in range(len(given) + 1):
            for names in itertools.combinations(given, count):
                yield self._replace(**dict.fromkeys(set(given) - set(names)))


class NetworkSpace:
    """All networks of a space for so many classes and pixels, and which of them are best.

    Args:
        space: The search space.
        num_classes: Outputs of the classifier.
        input_size: Height and width of the images in pixels; the space's own by default.
    """

    def __init__(self, space: SearchSpace, *, num_classes: int, input_size: int | None = None) -> None:
        size = space.input_size if input_size is None else input_size
        self.space = space
        self._sizes = {"num_classes": num_classes, "input_size": size}
        self._dearest: dict[int, int] = {}
        self.smallest, self.largest = self.cost(space.smallest), self.cost(space.largest)
        # Stem, head and classifier go with the blocks beside them, so that a network costs what its blocks do.
        self._costs = block_costs(space, size)
        side, last = final_side(space, size), space.block_choices[-1]
        ends = [classifier_cost(width, side, space.head_channels, num_classes) for width in last]
        self._costs[-1] = [[cost + end for cost, end in zip(row, ends, strict=True)] for row in self._costs[-1]]
        self._costs[0] = [[stem_cost(size) + cost for cost in row] for row in self._costs[0]]

    def cost(self, widths: Sequence[int]) -> Cost:
        """Return what the network with these block widths costs."""
        return network_cost(self.space, widths, **self._sizes)

    def check(self, budget: Budget, *, where: tuple[str, str] = ("--max-macs", "--max-params")) -> None:
        """Refuse a budget that no network of the space keeps.

        Args:
            budget: The budget.
            where: What to call its two numbers in an error: the options, or a file and its fields.

        Raises:
            UserError: The smallest network costs more; it has the least of both.
        """
        for name, limit, least, what in zip(where, budget, reversed(self.smallest), ("MACs", "params"), strict=True):
            if limit is not None and limit < least:
                other = self._space_that_keeps(budget)
                raise UserError(
                    f"{name}: {limit:,} {what} are fewer than the {least:,} of the smallest network of space "
                    f"{self.space.name}; ask for {least:,} or more{f', or take space {other}' if other else ''}"
                )

    def _space_that_keeps(self, budget: Budget) -> str | None:
        """Return the largest space for images of this kind that has a network within the budget."""
        smallest = {
            name: network_cost(space, space.smallest, **self._sizes)
            for name, space in SPACES.items()
            if space.input_size == self.space.input_size
        }
        kept = [name for name, cost in smallest.items() if budget.keeps(cost)]
        return max(kept, key=lambda name: smallest[name].macs, default=None)

    def most_likely(self, logits: Logits, budget: Budget = Budget()) -> DerivedNetwork:
        """Return the most likely network that keeps the budget.

        Args:
            logits: One logit a filter choice, a row a block; any finite numbers.
            budget: As checked by :meth:`check`.
        """
        found = self._best(logits, _Limits(*budget))
        assert found is not None  # the smallest network keeps it
        return found

    def range(self, budget: Budget = Budget()) -> tuple[int, int]:
        """Return the MACs of the cheapest network and of the dearest within the budget."""
        dearest = self.largest.macs
        if budget.max_params is not None and budget.max_params < self.largest.params:
            dearest = self._dearest.get(budget.max_params) or self._dearest_within(budget.max_params)
        return self.smallest.macs, dearest if budget.max_macs is None else min(dearest, budget.max_macs)

    def _dearest_within(self, params: int) -> int:
        """Return the most MACs of a network of so many params, or what comes close where a search is cut short."""
        steps = [[[(cost.macs << GAIN_BITS, 0, cost.params, 0) for cost in row] for row in t] for t in self._costs]
        chain = best_path(steps, (0, params, 0))
        assert chain is not None
        self._dearest[params] = chain.gain >> GAIN_BITS
        return self._dearest[params]

    def bands(self, count: int, budget: Budget = Budget()) -> list[tuple[int, int]]:
        """Return ``count`` even bands of MACs, lowest first: the least and the most of each, both included."""
        low, high = self.range(budget)
        levels = [low + (high - low) * step // count for step in range(count + 1)]
        return [(below + 1 if step else below, level) for step, (below, level) in enumerate(itertools.pairwise(levels))]

    def point(self, logits: Logits, index: int, count: int, budget: Budget = Budget()) -> DerivedNetwork:
        """Return point ``index`` (from 1) of a front of ``count``: the most likely network of that band of MACs.

        The bands are evenly spaced from the cheapest to the dearest network of the space, or of those in the budget.
        Each has its own best, so the points of a front are different networks of rising MACs.

        Raises:
            UserError: The band has no network.
        """
        least, most = self.bands(count, budget)[index - 1]
        limits = _Limits(most, budget.max_params, least)
        # A search cut short may find nothing where logits that prefer nothing do.
        found = self._best(logits, limits) or self._best(self._undecided, limits, judged_by=logits)
        if found is None:
            raise UserError(self._too_fine(count, budget, missing=1))
        return found

    def check_front(self, count: int, budget: Budget = Budget()) -> None:
        """Refuse a front of more points than the space has networks to tell apart within the budget.

        Raises:
            UserError: Some of the bands have no network.
        """
        bands = [_Limits(most, budget.max_params, least) for least, most in self.bands(count, budget)]
        if missing := sum(self._best(self._undecided, band) is None for band in bands):
            raise UserError(self._too_fine(count, budget, missing))

    def _too_fine(self, count: int, budget: Budget, missing: int) -> str:
        low, high = self.range(budget)
        return (
            f"--pareto {count}: space {self.space.name} has no network in {missing} of {count} even bands from {low:,} "
            f"to {high:,} MACs; ask for fewer points{', or allow more' if budget else ''}"
        )

    @property
    def _undecided(self) -> list[list[float]]:
        return [[0.0] * len(choices) for choices in self.space.block_choices]

    def _best(self, logits: Logits, limits: _Limits, *, judged_by: Logits | None = None) -> DerivedNetwork | None:
        """Return the best network within the limits; None where none was found.

        What is best under some of the limits and keeps the others is best under all of them, and fewer limits are less
        work: most often one or none of them binds.
        """
        tried: list[tuple[_Limits, Cost]] = []
        gains = _exact(logits)
        for fewer in limits.relaxed():
            inside = [cost for had, cost in tried if all(a is None or a == b for a, b in zip(had, fewer, strict=True))]
            if any(fewer.keep(cost) for cost in inside):
                continue  # its best is one that was tried
            chain = best_path(self._steps(gains, fewer), _ceilings(fewer))
            if chain is None:
                continue
            widths = [choices[j] for choices, j in zip(self.space.block_choices, chain.choices, strict=True)]
            cost = self.cost(widths)
            if limits.keep(cost):
                return DerivedNetwork(widths, cost, log_likelihood(judged_by or logits, chain.choices), chain.proven)
            tried.append((fewer, cost))
        return None

    def _steps(self, gains: list[list[int]], limits: _Limits) -> list[list[list[PathStep]]]:
        """Return every block's gains and costs, as :func:`best_path` wants them: 0 where there is no limit."""
        # A limit from below alone is one from above on the negative; beside one from above it is a third cost.
        macs = (limits.macs is not None) - (limits.macs is None and limits.least_macs is not None)
        params = limits.params is not None
        both = limits.macs is not None and limits.least_macs is not None
        return [
            [
                [
                    (gain, macs * cost.macs, params * cost.params, -both * cost.macs)
                    for gain, cost in zip(own, row, strict=True)
                ]
                for row in table
            ]
            for own, table in zip(gains, self._costs, strict=True)
        ]


def _ceilings(limits: _Limits) -> tuple[int, int, int]:
    least = 0 if limits.least_macs is None else -limits.least_macs
    if limits.macs is None:
        return least, limits.params or 0, 0
    return limits.macs, limits.params or 0, least


def _exact(logits: Logits) -> list[list[int]]:
    """Return logits as whole numbers over one power of two, the best of each block at 0: differences are exact."""
    ratios = [[float(logit).as_integer_ratio() for logit in row] for row in logits]
    over = max(denominator for row in ratios for _, denominator in row)
    rows = [[numerator * (over // denominator) for numerator, denominator in row] for row in ratios]
    gains = [[number - max(row) for number in row] for row in rows]
    widest = max(-gain for row in gains for gain in row)
    return [[gain << max(0, GAIN_BITS - widest.bit_length()) for gain in row] for row in gains]


def log_likelihood(logits: Logits, choices: Sequence[int]) -> float:
    """Return the sum over blocks of log softmax(v)[choice], in nats."""
    total = 0.0
    for row, choice in zip(logits, choices, strict=True):
        top = max(row)
        total += row[choice] - top - math.log(sum(math.exp(logit - top) for logit in row))
    return total
