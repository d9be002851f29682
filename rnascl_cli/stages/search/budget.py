"""A search under a budget, and one for many sizes: what is refused, where the pressure goes, what is left behind."""

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
from rnascl_cli.recipes import SearchSettings
from rnascl_cli.spaces import Budget, NetworkSpace, SearchSpace
from rnascl_cli.stages.search.derive import budget_of, derived_from, networks_of, record_of

COLUMNS = "point  params (M)  MACs (M)  log-likelihood"


class SearchCost(NamedTuple):
    """What turns expected costs into n_f, and what draws samples over the whole range, where it is searched for."""

    penalty: CostPenalty
    sampler: CostConditionedSampler | None


def refuse_impossible(settings: SearchSettings, space: SearchSpace, data: Data, run: RunDirectory) -> None:
    """Refuse, before a search, a budget that no network keeps and a front that the space has not enough networks for.

    Raises:
        UserError: Either, or the front's folder is a link.
    """
    budget = Budget(settings.max_macs, settings.max_params)
    networks = NetworkSpace(space, num_classes=data.num_classes, input_size=data.input_size)
    networks.check(budget)
    if settings.pareto is not None:
        networks.check_front(settings.pareto, budget)
        if (run.path / FRONT).is_symlink():
            raise UserError(f"--out {run.path}: its {FRONT} is a link, and nothing is written through one; remove it")


def search_cost(settings: SearchSettings, space: SearchSpace, *, num_classes: int, input_size: int) -> SearchCost:
    """Return n_f's aims, and the levels of a search for a front.

    n_f is of what ``search.cost`` says where that has a target, or where there is no budget. With a budget it is of
    what the budget limits, and aims there. For a front each sample's level takes the place of ``max_macs``.
    """
    sizes = {"num_classes": num_classes, "input_size": input_size}
    aims = _aims(settings)
    costs = [ExpectedCost(space, **sizes, measure=measure) for measure in aims]
    pressure = CostPenalty(costs, targets=list(aims.values()), exponent=settings.cost.exponent)
    if settings.pareto is None:
        return SearchCost(pressure, None)
    low, high = NetworkSpace(space, **sizes).range(Budget(settings.max_macs, settings.max_params))
    return SearchCost(
        pressure,
        CostConditionedSampler(space, ExpectedCost(space, **sizes, measure="macs"), low=low, high=high, **sizes),
    )


def _aims(settings: SearchSettings) -> dict[CostMeasure, float | None]:
    """Return what n_f is of, and the target of each; for a front, the first one's is each sample's own."""
    cost, front = settings.cost, settings.pareto is not None
    if cost.target is not None or not (front or settings.max_macs or settings.max_params):
        return {cost.measure: cost.target}
    aims: dict[CostMeasure, float | None] = {}
    if front or settings.max_macs is not None:
        aims["macs"] = None if front else settings.max_macs
    if settings.max_params is not None:
        aims["params"] = settings.max_params
    return aims


def asked_budget(settings: SearchSettings) -> BudgetRecord | None:
    """Return the budget as a document records it; None where none was asked for."""
    return record_of(Budget(settings.max_macs, settings.max_params))


def report_derived_networks(run: RunDirectory, document: SearchDocument) -> None:
    """Say which network keeps the budget; write each point of the front that is not there yet, and print them all."""
    source = run.path / "search.json"
    networks, budget = networks_of(document, where=str(source)), budget_of(document)
    if document.pareto is None:
        if budget:
            kept = networks.most_likely(document.width_logits, budget).cost
            info(f"derive gives a network of {kept.params / 1e6:.3f} M params and {kept.macs / 1e6:.2f} M MACs")
        return
    info(COLUMNS)
    for index in range(1, document.pareto + 1):
        found = networks.point(document.width_logits, index, document.pareto, budget)
        file = run.path / FRONT / f"{index}.json"
        if not file.is_file():
            write_document(file, derived_from(source, document, found, budget=budget, point=index))
        cost = f"{found.cost.params / 1e6:>10.3f}  {found.cost.macs / 1e6:>8.2f}"
        info(f"{index:>5}  {cost}  {found.log_likelihood:>14.2f}")
