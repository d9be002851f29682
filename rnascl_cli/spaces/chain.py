"""The best chain of choices under limits on its costs, exactly: what :mod:`rnascl_cli.spaces.budget` stands on.

A network is a chain of blocks, and what a block gains and costs depends on its own choice and on the one before it
alone. Without limits a Viterbi pass finds the best chain. With limits this is a knapsack over a chain, solved in two
steps, all in integers, so that bounds are bounds and ties are ties:

1. *Multipliers.* For any prices lambda >= 0, the best of gain - lambda (cost - limit) over all chains is an upper bound
   for those within the limits (Lagrangian relaxation). One Viterbi pass gives it, and with it, for every block and
   choice, the most that the blocks before it can bring. Prices are bisected until the bound hardly falls.
2. *Labels.* From the last block to the first, each input choice of a block keeps the (gain, costs) of the ends of
   chains behind it. An end is dropped where another one gains as much at no higher cost; where the least cost of what
   stands before it already breaks a limit; and where the bound of step 1 says that no chain with it reaches the best
   one known.

Walking the labels from the first block on, with the earliest choice that still leads to the best gain, gives the first
of the best chains in the order of their choices. How many labels there are depends on how far the bound lies above the
best chain; for logits that follow the cost itself there can be millions. Each block and choice then keeps only those
with the highest bounds, in passes of more and more of them: the answer keeps the limits all the same, and says whether
it is proven to be the best.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import add
from typing import NamedTuple

PathStep = tuple[int, int, int, int]
"""What a block gains, and its three costs; any integers."""
Tables = Sequence[Sequence[Sequence[PathStep]]]
"""Every block's steps: ``[block][choice of the block before][own choice]``; one choice before the first."""
Costs = tuple[int, int, int]

KEPT = (128, 1024)  # labels a block and input choice in the first passes ...
KEPT_IN_ALL = 250_000  # ... and labels over all of them in the last
PRECISION = 12  # bits of a price that are looked for
ROUNDS = 6  # over the three prices

_Label = tuple[int, int, int, int, int]  # gain less priced costs, gain, costs


class Path(NamedTuple):
    """A chain within the limits: the index of each block's choice, its gain, and whether none better is possible."""

    choices: list[int]
    gain: int
    proven: bool


def best_path(tables: Tables, limits: Costs) -> Path | None:
    """Return the chain of most gain whose costs do not exceed ``limits``; of equals the first by its choices.

    The first two costs are best low, and dominance makes use of that. Ends of chains are compared only where their
    third cost is the same, so it may be one that the first costs run against (a limit from below: the negative of the
    first cost). A cost without a limit should be 0 throughout.

    Returns:
        The chain, and whether it is proven to be the best; None where no chain was found. With the first two limits
        alone, and costs that are all least at the same chain, one is always found where there is one.
    """
    least = [_least_before(tables, cost) for cost in (1, 2, 3)]
    if any(min(reach[-1]) > limit for reach, limit in zip(least, limits, strict=True)):
        return None
    search = _Search(tables, limits, least)
    search.price()
    states = sum(len(table) for table in tables)
    for kept in (*KEPT, max(KEPT_IN_ALL // states, KEPT[-1])):
        if search.label(kept):
            break
    if search.found is None:
        return None
    return Path(search.found, int(search.gain), search.missed <= search.gain)


class _Bound(NamedTuple):
    """Prices and what they prove: no chain within the limits gains more than ``most``."""

    most: int
    prices: Costs
    before: list[list[int]]  # [block][input choice]: the most that the blocks before bring, less their priced costs
    limits: int  # priced


class _Search:
    """One problem, the best chain found so far, and the tightest bound."""

    def __init__(self, tables: Tables, limits: Costs, least: Sequence[list[list[int]]]) -> None:
        self.tables, self.limits, self.least = tables, limits, least
        self.found: list[int] | None = None
        self.gain: int | float = -math.inf  # compared, never added to: gains may be larger than any float
        self.missed: int | float = -math.inf  # the highest bound of a label that was let go
        self.bound, _ = self._bound_at((0, 0, 0))

    def price(self) -> None:
        """Lower the bound: one price after another to where its Lagrangian chain begins to keep that limit."""
        steps = [step for table in self.tables for row in table for step in row]
        # Where a unit of cost outweighs all that can be gained.
        most_bits = (4 * len(self.tables) * max(abs(step[0]) for step in steps) + 1).bit_length()
        limited = [cost for cost in range(3) if any(step[cost + 1] for step in steps)]
        for _ in range(ROUNDS):
            most = self.bound.most
            for cost in limited:
                self._bisect(cost, most_bits)
            if most - self.bound.most <= abs(self.bound.most) >> PRECISION:
                break

    def _bisect(self, cost: int, most_bits: int) -> None:
        others = self.bound.prices

        def keeps(price: int) -> bool:
            a, b, c = (price if index == cost else other for index, other in enumerate(others))
            bound, chain = self._bound_at((a, b, c))
            if bound.most < self.bound.most:
                self.bound = bound
            return self._costs(chain)[cost] <= self.limits[cost]

        if keeps(0):
            return
        bits = next(bits for bits in range(1, most_bits + 9, 8) if bits > most_bits or keeps(1 << bits))
        low, high = 1 << bits >> 8, 1 << bits
        for _ in range(PRECISION + 8):
            middle = (low + high) // 2
            if middle == low:
                break
            low, high = (low, middle) if keeps(middle) else (middle, high)

    def _bound_at(self, prices: Costs) -> tuple[_Bound, list[int]]:
        """Return what Viterbi over priced gains proves, and its chain, which is kept if it is the best so far."""
        before, origins = [[0]], []
        for table in self.tables:
            reached: list[int] = []
            origin: list[int] = []
            priced = [[_priced(step, prices) for step in row] for row in table]
            for j in range(len(table[0])):
                ways = [so_far + row[j] for so_far, row in zip(before[-1], priced, strict=True)]
                reached.append(max(ways))
                origin.append(ways.index(reached[-1]))
            before.append(reached)
            origins.append(origin)
        most = max(before[-1])
        j, chain = before[-1].index(most), []
        for origin in reversed(origins):
            chain.append(j)
            j = origin[j]
        chain.reverse()
        gain = sum(step[0] for step in self._steps(chain))
        if gain > self.gain and all(cost <= limit for cost, limit in zip(self._costs(chain), self.limits, strict=True)):
            self.found, self.gain = chain, gain
        limits = sum(price * limit for price, limit in zip(prices, self.limits, strict=True))
        return _Bound(most + limits, prices, before, limits), chain

    def _steps(self, chain: list[int]) -> Iterator[PathStep]:
        for table, i, j in zip(self.tables, [0, *chain[:-1]], chain, strict=True):
            yield table[i][j]

    def _costs(self, chain: list[int]) -> list[int]:
        return [sum(costs) for costs in zip(*(step[1:] for step in self._steps(chain)), strict=True)]

    def label(self, kept: int) -> bool:
        """Make labels, at most ``kept`` a block and input choice; return whether there is nothing more to be found."""
        self.missed = -math.inf
        ends: list[list[_Label]] = [[(0, 0, 0, 0, 0)]] * len(self.tables[-1][0])
        all_ends = [ends]
        for block in reversed(range(len(self.tables))):
            ends = [self._grow(block, i, ends, kept) for i in range(len(self.tables[block]))]
            all_ends.append(ends)
        top = max((label[1] for label in ends[0]), default=None)
        if top is not None and top >= self.gain:
            self.gain = top
            self.found = self._walk(top, all_ends[::-1])
        return self.missed < self.gain or self.missed == -math.inf

    def _grow(self, block: int, i: int, ends: list[list[_Label]], kept: int) -> list[_Label]:
        """Return the ends of chains from ``block`` on, given the choice before it."""
        prices, gain = self.bound.prices, self.gain
        elsewhere = self.bound.before[block][i] + self.bound.limits  # with a label's priced gain: its bound
        room_a, room_b, room_c = (limit - least[block][i] for limit, least in zip(self.limits, self.least, strict=True))
        grown: list[_Label] = []
        for step, behind in zip(self.tables[block][i], ends, strict=True):
            growth = (_priced(step, prices), *step)
            for label in behind:
                new: _Label = tuple(map(add, label, growth))
                if new[2] <= room_a and new[3] <= room_b and new[4] <= room_c and new[0] + elsewhere >= gain:
                    grown.append(new)
        best = _not_dominated(grown)
        if len(best) > kept:
            best.sort(reverse=True)
            self.missed = max(self.missed, best[kept][0] + elsewhere)
            del best[kept:]
        return best

    def _walk(self, top: int, ends: list[list[list[_Label]]]) -> list[int]:
        """Return the first chain, by its choices, that the labels say gains ``top``."""
        chain: list[int] = []
        i, still, left = 0, top, self.limits
        for table, behind in zip(self.tables, ends[1:], strict=True):
            j = next(j for j, step in enumerate(table[i]) if _leads(behind[j], step, still, left))
            gain, a, b, c = table[i][j]
            chain.append(j)
            i, still, left = j, still - gain, (left[0] - a, left[1] - b, left[2] - c)
        return chain


def _leads(ends: list[_Label], step: PathStep, gain: int, left: Costs) -> bool:
    """Return whether one of the ends behind a step makes up the gain within what is left of the limits."""
    still, a, b, c = gain - step[0], left[0] - step[1], left[1] - step[2], left[2] - step[3]
    return any(label[1] == still and label[2] <= a and label[3] <= b and label[4] <= c for label in ends)


def _priced(step: PathStep, prices: Costs) -> int:
    return step[0] - prices[0] * step[1] - prices[1] * step[2] - prices[2] * step[3]


def _least_before(tables: Tables, cost: int) -> list[list[int]]:
    """Return the least of one cost that the blocks before can have: ``[block][input choice]``, and behind the last."""
    reach = [[0]]
    for table in tables:
        columns = range(len(table[0]))
        reach.append([min(r + row[j][cost] for r, row in zip(reach[-1], table, strict=True)) for j in columns])
    return reach


def _not_dominated(labels: list[_Label]) -> list[_Label]:
    """Keep the labels that no other one beats: with as much gain, first and second cost as low, third cost the same."""
    labels.sort(key=lambda label: (-label[1], label[2], label[3]))
    stairs: dict[int, tuple[list[int], list[int]]] = {}
    kept = []
    for label in labels:
        a, b = label[2], label[3]
        # Of the labels kept so far, all of which gain as much: first costs ascending, second costs descending.
        firsts, seconds = stairs.setdefault(label[4], ([], []))
        at = bisect_right(firsts, a)
        if at and seconds[at - 1] <= b:
            continue
        end = at
        while end < len(firsts) and seconds[end] >= b:
            end += 1
        firsts[at:end], seconds[at:end] = [a], [b]
        kept.append(label)
    return kept
