"""The best network under a budget: against all networks of a space, and always within the budget."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnascl_cli.core.errors import UserError
from rnascl_cli.spaces import SPACES, Budget, Cost, NetworkSpace, SearchSpace, SpaceStage, chain, network_cost
from rnascl_cli.spaces.budget import log_likelihood
from tests.property.profile import quick

pytestmark = pytest.mark.unit

TINY = SearchSpace(
    "tiny", (SpaceStage(1, 1, (16, 12)), SpaceStage(2, 2, (24, 20, 16)), SpaceStage(1, 2, (32, 28, 12))), 32
)
# 2304 networks, all of which can be looked at.
MIDDLING = SearchSpace(
    "middling", (SpaceStage(2, 1, (16, 12)), SpaceStage(3, 2, (32, 28, 24, 20)), SpaceStage(2, 2, (64, 60, 52))), 32
)
EVERY = [TINY, *SPACES.values()]
Logits = list[list[float]]


def gauss(space: SearchSpace, seed: int, *, over: int = 2**20) -> Logits:
    """Logits of a search, as multiples of 1/over: a sum of them is exact."""
    stream = random.Random(seed)
    return [[round(stream.gauss(0, 1) * over) / over for _ in choices] for choices in space.block_choices]


def after_cost(space: SearchSpace) -> Logits:
    """Logits that follow each choice's own MACs: nearly all networks are nearly as likely for what they cost."""

    def macs(block: int, width: int) -> float:
        widths = [*space.largest[:block], width, *space.largest[block + 1 :]]
        return network_cost(space, widths, num_classes=10).macs / 1e6

    return [[macs(block, width) for width in choices] for block, choices in enumerate(space.block_choices)]


KINDS: dict[str, Callable[[SearchSpace], Logits]] = {
    "undecided": lambda space: [[0.0] * len(choices) for choices in space.block_choices],
    "many ties": lambda space: gauss(space, 1, over=2),
    "a search's": lambda space: gauss(space, 2),
    "another's": lambda space: gauss(space, 3),
    "all for the widest": lambda space: [[float(width) for width in choices] for choices in space.block_choices],
    "all for the narrowest": lambda space: [[-float(width) for width in choices] for choices in space.block_choices],
    "after the cost": after_cost,
}


def between(low: int, high: int, share: float) -> int:
    return low + int((high - low) * share)


def budgets(space: SearchSpace) -> list[Budget]:
    """Tight, middling and loose ones, in one cost and in both."""
    low, high = (network_cost(space, widths, num_classes=10) for widths in (space.smallest, space.largest))
    found = []
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        macs, params = between(low.macs, high.macs, share), between(low.params, high.params, share)
        found += [Budget(macs), Budget(None, params), Budget(macs, params)]
    return [*found, Budget(between(low.macs, high.macs, 0.3), between(low.params, high.params, 0.6))]


Listed = list[tuple[tuple[int, ...], Cost]]


def listed(space: SearchSpace) -> Listed:
    """All networks of a space, as choices and cost, in the order of their choices."""
    found: list[tuple[tuple[int, ...], Cost]] = []
    for picks in itertools.product(*(range(len(choices)) for choices in space.block_choices)):
        widths = [choices[pick] for choices, pick in zip(space.block_choices, picks, strict=True)]
        found.append((picks, network_cost(space, widths, num_classes=10)))
    return found


@pytest.fixture(scope="module")
def every_network() -> dict[str, Listed]:
    """All networks of the two smallest spaces."""
    return {space.name: listed(space) for space in (TINY, MIDDLING)}


MIDDLING = SearchSpace(
    "middling", (SpaceStage(2, 1, (16, 12)), SpaceStage(3, 2, (32, 28, 24, 20)), SpaceStage(2, 2, (64, 60, 52))), 32
)


def first_best(networks: Listed, logits: Logits, keeps: Callable[[Cost], bool]) -> tuple[int, ...] | None:
    """The most likely of those that are kept, the first of equals, by looking at each."""
    best, choices = None, None
    for picks, cost in networks:
        if keeps(cost):
            score = sum(row[pick] for row, pick in zip(logits, picks, strict=True))
            if best is None or score > best:
                best, choices = score, picks
    return choices


def widths_of(space: SearchSpace, picks: tuple[int, ...]) -> list[int]:
    return [choices[pick] for choices, pick in zip(space.block_choices, picks, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [TINY, MIDDLING], ids=lambda space: space.name)
def test_none_of_all_networks_is_better(every_network: dict[str, Listed], space: SearchSpace, kind: str) -> None:
    logits, networks = KINDS[kind](space), NetworkSpace(space, num_classes=10)
    for budget in budgets(space):
        found = networks.most_likely(logits, budget)
        picks = first_best(every_network[space.name], logits, budget.keeps)
        assert picks is not None
        assert found.widths == widths_of(space, picks), budget
        assert found.cost == network_cost(space, found.widths, num_classes=10)
        assert found.proven
        assert found.log_likelihood == pytest.approx(log_likelihood(logits, picks))


@pytest.mark.parametrize("kind", KINDS)
def test_none_of_all_networks_of_a_band_is_better(every_network: dict[str, Listed], kind: str) -> None:
    space = MIDDLING
    logits, networks = KINDS[kind](space), NetworkSpace(space, num_classes=10)
    for budget in (Budget(), budgets(space)[-1]):
        for index, (least, most) in enumerate(networks.bands(4, budget), 1):
            picks = first_best(
                every_network[space.name],
                logits,
                lambda cost: least <= cost.macs <= most and budget.keeps(cost),  # noqa: B023
            )
            assert picks is not None
            found = networks.point(logits, index, 4, budget)
            assert found.widths == widths_of(space, picks), (budget, index)
            assert found.proven


any_logit = st.one_of(st.floats(-9, 9), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1e308]))


@quick(60)
@given(st.data())
def test_any_logits_of_a_tiny_space_exactly(every_network: dict[str, Listed], data: st.DataObject) -> None:
    logits = [[data.draw(any_logit) for _ in choices] for choices in TINY.block_choices]
    networks = NetworkSpace(TINY, num_classes=10)
    low, high = networks.smallest, networks.largest
    budget = Budget(
        data.draw(st.none() | st.integers(low.macs, high.macs)),
        data.draw(st.none() | st.integers(low.params, high.params)),
    )
    exact = [[Fraction(logit) for logit in row] for row in logits]
    picks = first_best(every_network["tiny"], exact, budget.keeps)  # type: ignore[arg-type]
    assert picks is not None
    assert networks.most_likely(logits, budget).widths == widths_of(TINY, picks)


@pytest.mark.parametrize("space", EVERY, ids=lambda space: space.name)
def test_any_logits_of_any_space_keep_any_budget(space: SearchSpace) -> None:
    networks = NetworkSpace(space, num_classes=10)
    low, high = networks.smallest, networks.largest

    @quick(4)
    @given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.01, 1, 1e6, 1e300]))
    def kept(seed: int, macs: float, params: float, scale: float) -> None:
        logits = [[logit * scale for logit in row] for row in gauss(space, seed)]
        for budget in (
            Budget(between(low.macs, high.macs, macs)),
            Budget(between(low.macs, high.macs, macs), between(low.params, high.params, params)),
        ):
            found = networks.most_likely(logits, budget)
            assert budget.keeps(found.cost)
            assert found.cost == network_cost(space, found.widths, num_classes=10)
            assert all(width in choices for width, choices in zip(found.widths, space.block_choices, strict=True))

    kept()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["S7", "L", "I"])
def test_it_does_not_take_long(name: str, kind: str) -> None:
    space = SPACES[name]
    networks, logits = NetworkSpace(space, num_classes=10), KINDS[kind](space)
    budget = Budget(between(networks.smallest.macs, networks.largest.macs, 0.4))
    began = time.process_time()
    found = networks.most_likely(logits, budget)
    assert time.process_time() - began < 20.0  # a second or two where nothing else runs
    assert budget.keeps(found.cost)
    assert found.proven or kind == "after the cost"


@pytest.mark.parametrize("space", EVERY, ids=lambda space: space.name)
def test_an_argmax_that_keeps_the_budget_is_taken_unchanged(space: SearchSpace) -> None:
    networks, logits = NetworkSpace(space, num_classes=10), gauss(space, 5)
    argmax = [choices[row.index(max(row))] for choices, row in zip(space.block_choices, logits, strict=True)]
    assert networks.most_likely(logits).widths == argmax
    assert networks.most_likely(logits, Budget(*reversed(networks.cost(argmax)))).widths == argmax
    undecided = KINDS["undecided"](space)
    assert networks.most_likely(undecided).widths == space.largest
    assert networks.most_likely(undecided).log_likelihood == pytest.approx(
        -sum(math.log(len(choices)) for choices in space.block_choices)
    )


def test_equals_go_to_the_earlier_choice_of_the_first_block_where_they_differ() -> None:
    space = SearchSpace("twins", (SpaceStage(3, 1, (16, 12)),), 32)
    networks = NetworkSpace(space, num_classes=10)
    # Without a preference: the first block wide, though all of [12, 16, 12], [12, 12, 16] and [12, 12, 12] fit as well.
    assert networks.most_likely([[0.0, 0.0]] * 3, Budget(networks.cost([16, 12, 12]).macs)).widths == [16, 12, 12]
    # One of two wide blocks has to go: of equal networks that which keeps the first.
    dearest = max(networks.cost(widths).macs for widths in ([16, 16, 12], [16, 12, 16], [12, 16, 16]))
    assert networks.most_likely([[1.0, 0.0]] * 3, Budget(dearest)).widths == [16, 16, 12]


def test_a_larger_budget_never_finds_a_less_likely_network() -> None:
    space = SPACES["S5"]
    networks, logits = NetworkSpace(space, num_classes=10), gauss(space, 7)
    found = [
        networks.most_likely(logits, Budget(between(networks.smallest.macs, networks.largest.macs, step / 10)))
        for step in range(11)
    ]
    likelihoods = [network.log_likelihood for network in found]
    assert likelihoods == sorted(likelihoods)
    assert found[0].widths == space.smallest
    assert found[-1].widths == networks.most_likely(logits).widths


def test_cut_short_it_keeps_the_limits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SPACES["S5"]
    networks, logits = NetworkSpace(space, num_classes=10), after_cost(space)
    budget = Budget(between(networks.smallest.macs, networks.largest.macs, 0.5))
    exact = networks.most_likely(logits, budget)
    monkeypatch.setattr(chain, "KEPT", (1, 2))
    monkeypatch.setattr(chain, "KEPT_IN_ALL", 0)
    short = networks.most_likely(logits, budget)
    assert exact.proven
    assert not short.proven
    assert budget.keeps(short.cost)
    assert short.log_likelihood <= exact.log_likelihood


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(4_743_303),
            "--max-macs: 4,743,303 MACs are fewer than the 4,743,304 of the smallest network of space S3",
        ),
        (Budget(None, 9), "--max-params: 9 params are fewer than the 109,"),
        (Budget(9_000_000, 9), "--max-params: 9 params are fewer"),
        (Budget(9, 9), "--max-macs: 9 MACs are fewer"),
    ],
)
def test_a_budget_below_the_smallest_network_is_refused(budget: Budget, message: str) -> None:
    with pytest.raises(UserError) as error:
        NetworkSpace(SPACES["S3"], num_classes=10).check(budget)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("or more")  # there is no smaller space


@pytest.mark.parametrize(
    ("space", "budget", "other"),
    [
        ("S5", Budget(8_000_000, 200_000), "S3"),
        ("L", Budget(300_000_000), "M"),
        ("L", Budget(300_000_000, 300_000), "S7"),
        ("I", Budget(120_000_000), "IS"),
    ],
)
def test_a_space_that_keeps_the_budget_is_named(space: str, budget: Budget, other: str) -> None:
    with pytest.raises(UserError, match=f"or more, or take space {other}$"):
        NetworkSpace(SPACES[space], num_classes=10).check(budget)


@pytest.mark.parametrize("space", EVERY, ids=lambda space: space.name)
def test_a_budget_of_the_smallest_network_gives_it(space: SearchSpace) -> None:
    networks = NetworkSpace(space, num_classes=10)
    budget = Budget(networks.smallest.macs, networks.smallest.params)
    networks.check(budget)
    assert networks.most_likely(gauss(space, 8), budget).widths == space.smallest
    assert networks.range(budget) == (networks.smallest.macs,) * 2


FRONTS = [
    (space, kind)
    for space in EVERY
    for kind in ("undecided", "a search's", "all for the widest", "all for the narrowest")
]


@pytest.mark.parametrize(("space", "kind"), FRONTS, ids=lambda item: getattr(item, "name", item))
def test_a_front_is_of_different_networks_of_rising_macs(space: SearchSpace, kind: str) -> None:
    networks, logits = NetworkSpace(space, num_classes=10), KINDS[kind](space)
    budget = Budget(between(networks.smallest.macs, networks.largest.macs, 0.8))
    for limit in (Budget(), budget):
        networks.check_front(4, limit)
        bands = networks.bands(4, limit)
        macs = [networks.point(logits, index, 4, limit).cost.macs for index in range(1, 5)]
        assert all(least <= found <= most for (least, most), found in zip(bands, macs, strict=True))
        assert macs == sorted(set(macs))
        assert bands[0][0] == networks.smallest.macs
        assert bands[-1][1] == (limit.max_macs or networks.largest.macs)


def test_a_front_within_a_number_of_params_ends_at_the_dearest_that_has_them() -> None:
    networks = NetworkSpace(MIDDLING, num_classes=10)
    limit = Budget(None, between(networks.smallest.params, networks.largest.params, 0.4))
    dearest = max(cost.macs for _, cost in listed(MIDDLING) if limit.keeps(cost))
    assert networks.range(limit) == (networks.smallest.macs, dearest)
    points = [networks.point(gauss(MIDDLING, 4), index, 5, limit) for index in range(1, 6)]
    assert all(limit.keeps(found.cost) for found in points)


def test_a_front_finer_than_the_space_is_refused() -> None:
    networks = NetworkSpace(SearchSpace("four", (SpaceStage(2, 1, (16, 12)),), 32), num_classes=10)
    networks.check_front(2)
    with pytest.raises(UserError, match=r"--pareto 30: space four has no network in 26 of 30 even bands"):
        networks.check_front(30)
    with pytest.raises(UserError, match="ask for fewer points, or allow more"):
        networks.check_front(4, Budget(networks.smallest.macs + 10))


def test_other_classes_and_images_are_counted() -> None:
    space = SPACES["S3"]
    networks = NetworkSpace(space, num_classes=100, input_size=64)
    assert networks.smallest == network_cost(space, space.smallest, num_classes=100, input_size=64)
    budget = Budget(networks.smallest.macs + 100_000)
    assert budget.keeps(networks.most_likely(KINDS["all for the widest"](space), budget).cost)


def test_a_budget_takes_the_place_of_another_where_it_has_a_limit() -> None:
    assert Budget(5).over(Budget(7, 9)) == Budget(5, 9)
    assert Budget().over(Budget(7)) == Budget(7)
    assert not Budget()
    assert Budget(None, 1)
