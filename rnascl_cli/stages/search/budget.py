"""Budgets of a search: checks before it, the cost penalty n_f, and the networks reported after it."""

from __future__ import annotations

from typing import NamedTuple

from rnascl_cli.artifacts.documents import BudgetRecord, SearchDocument
from rnascl_cli.artifacts.store import write_document
from rnascl_cli.core.console import info
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data
from rnascl_cli.distill.cost_conditioned_sampling import CostConditionedSampler
from rnascl_cli.distill.cost_penalty import CostPenalty
from rnascl_cli.distill.expected_cost import CostMeasure, ExpectedCost
from rnascl_cli.engine.run_directory import FRONT, RunDirectory
from rnascl_cli.recipes.settings import SearchSettings
from rnascl_cli.spaces import Budget, NetworkSpace, SearchSpace
from rnascl_cli.stages.search.derive import budget_record, derived_from, network_space, search_budget

COLUMNS = "point  params (M)  MACs (M)  log-likelihood"


class SearchCost(NamedTuple):
    """The cost penalty n_f; and in a search for a Pareto front, the sampler of target costs."""

    penalty: CostPenalty
    sampler: CostConditionedSampler | None


def check_budget(settings: SearchSettings, space: SearchSpace, data: Data, run: RunDirectory) -> None:
    """Check that the space has networks within the budget and enough of them for the Pareto front.

    Raises:
        UserError: It has not, or the folder of the front is a link.
    """
    budget = Budget(settings.max_macs, settings.max_params)
    networks = NetworkSpace(space, num_classes=data.num_classes, input_size=data.input_size)
    networks.check(budget)
    if settings.pareto is not None:
        networks.check_front(settings.pareto, budget)
        if (run.path / FRONT).is_symlink():
            raise UserError(f"--out {run.path}: its {FRONT} is a link; remove it, rnascl does not write through links")


def search_cost(settings: SearchSettings, space: SearchSpace, *, num_classes: int, input_size: int) -> SearchCost:
    """Return the cost penalty n_f, and the sampler of a search for a Pareto front.

    Without a budget, or with ``search.cost.target``, n_f measures ``search.cost.measure``. With a budget it measures
    what the budget limits, relative to the limits. For a Pareto front each sample has a target of its own in place of
    ``max_macs``.
    """
    sizes = {"num_classes": num_classes, "input_size": input_size}
    targets = _cost_targets(settings)
    costs = [ExpectedCost(space, **sizes, measure=measure) for measure in targets]
    penalty = CostPenalty(costs, targets=list(targets.values()), exponent=settings.cost.exponent)
    if settings.pareto is None:
        return SearchCost(penalty, None)
    low, high = NetworkSpace(space, **sizes).range(Budget(settings.max_macs, settings.max_params))
    return SearchCost(
        penalty,
        CostConditionedSampler(space, ExpectedCost(space, **sizes, measure="macs"), low=low, high=high, **sizes),
    )


def _cost_targets(settings: SearchSettings) -> dict[CostMeasure, float | None]:
    """Return the target of each cost that n_f measures; None for no target, or for one target per sample."""
    cost, front = settings.cost, settings.pareto is not None
    if cost.target is not None or not (front or settings.max_macs or settings.max_params):
        return {cost.measure: cost.target}
    targets: dict[CostMeasure, float | None] = {}
    if front or settings.max_macs is not None:
        targets["macs"] = None if front else settings.max_macs
    if settings.max_params is not None:
        targets["params"] = settings.max_params
    return targets


def requested_budget(settings: SearchSettings) -> BudgetRecord | None:
    """Return the budget for the search document; None without one."""
    return budget_record(Budget(settings.max_macs, settings.max_params))


def report_derived_networks(run: RunDirectory, document: SearchDocument) -> None:
    """Print the network that ``derive`` gives; write each missing point of the Pareto front and print all points."""
    source = run.path / "search.json"
    networks, budget = network_space(document, where=str(source)), search_budget(document)
    if document.pareto is None:
        if budget:
            cost = networks.most_likely(document.width_logits, budget).cost
            info(f"derive gives a network of {cost.params / 1e6:.3f} M params and {cost.macs / 1e6:.2f} M MACs")
        return
    info(COLUMNS)
    for index in range(1, document.pareto + 1):
        found = networks.point(document.width_logits, index, document.pareto, budget)
        file = run.path / FRONT / f"{index}.json"
        if not file.is_file():
            write_document(file, derived_from(source, document, found, budget=budget, point=index))
        costs = f"{found.cost.params / 1e6:>10.3f}  {found.cost.macs / 1e6:>8.2f}"
        info(f"{index:>5}  {costs}  {found.log_likelihood:>14.2f}")
