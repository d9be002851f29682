"""``derive``: the network of a search, by argmax of the architecture parameters; no sampling, no tensors.

The width of each block and the tutor of each student layer are the argmax of their logits, g_i = argmax_j v_ij
(section 3.4). Under a budget the widths are those of the most likely network within it (spaces/budget.py). A tutor
baseline (distill/tutor_baselines.py) or a map written by hand may replace the searched tutors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rnascl_cli.artifacts.documents import (
    Architecture,
    BudgetRecord,
    DerivedDocument,
    FrontPoint,
    Paradigm,
    SearchDocument,
    TutorMap,
    TutorOrigin,
)
from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, parse_json, read_bounded
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.distill.tutor_baselines import last_layer_tutors, random_tutors, same_depth_tutors, tutors_by_hand
from rnascl_cli.engine.provenance import remade
from rnascl_cli.spaces import Budget, DerivedNetwork, NetworkSpace, space_named

TUTORS = ("searched", "random", "same-depth", "last-layer")
"""Values of ``--tutors``; any other value is a file."""


class _TutorChoice(NamedTuple):
    tutor: list[int]
    origin: TutorOrigin
    inputs: dict[str, str]


def derive(
    source: Path, *, tutors: str = "searched", budget: Budget = Budget(), point: int | None = None
) -> DerivedDocument:
    """Derive the network and tutor map of a search.

    Args:
        source: A run directory of ``search``, or its ``search.json``.
        tutors: One of :data:`TUTORS`, or a JSON file with a map written by hand. ``random`` uses the seed of the
            search.
        budget: Each limit given here replaces the search's own.
        point: Point of the search's Pareto front, from 1; None for the most likely network.

    Raises:
        UserError: There is no search document, it does not fit its space, ``tutors`` or ``point`` does not fit it, or
            the smallest network of the space exceeds the budget.
    """
    path = source / "search.json" if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"{source}: no search.json there; name a run directory of 'rnascl search' or its search.json")
    found = read_document(path, SearchDocument)
    networks = network_space(found, where=str(path))
    fields = (f"{path}: budget.max_macs", f"{path}: budget.max_params")
    options = ("--max-macs", "--max-params")
    sources = tuple(option if limit else field for option, field, limit in zip(options, fields, budget, strict=True))
    limits = budget.over(search_budget(found))
    networks.check(limits, where=(sources[0], sources[1]))
    if point is None:
        best = networks.most_likely(found.width_logits, limits)
    else:
        best = networks.point(found.width_logits, point, _points(found, point, where=str(path)), limits)
    return derived_from(path, found, best, tutors=tutors, budget=limits, point=point)


def network_space(found: SearchDocument, *, where: str) -> NetworkSpace:
    """Return the networks that a search can derive.

    Raises:
        UserError: Its space is unknown, or has other choices.
    """
    space = space_named(found.space, where=where)
    if [list(choices) for choices in space.block_choices] != found.width_choices:
        raise UserError(f"{where}: width_choices are not those of space {space.name}")
    return NetworkSpace(space, num_classes=found.num_classes, input_size=found.input_size)


def search_budget(found: SearchDocument) -> Budget:
    """Return the budget of a search; it may have no limits."""
    return Budget(found.budget.max_macs, found.budget.max_params) if found.budget else Budget()


def budget_record(budget: Budget) -> BudgetRecord | None:
    """Return a budget for a document; None without limits."""
    return BudgetRecord(max_macs=budget.max_macs, max_params=budget.max_params) if budget else None


def derived_from(
    path: Path,
    found: SearchDocument,
    best: DerivedNetwork,
    *,
    tutors: str = "searched",
    budget: Budget = Budget(),
    point: int | None = None,
) -> DerivedDocument:
    """Return the document of one network of the search at ``path``; see :func:`derive`."""
    if not best.proven:
        warning(f"{path}: the solver was stopped early; a slightly more likely network within the limits may exist")
    chosen = _choose(found, tutors, where=str(path))
    inputs = {path.name: sha256_file(path), **(chosen.inputs if chosen else {})}
    provenance = remade(found.provenance, inputs=inputs)
    if chosen and provenance.teacher is None:
        raise UserError(f"{path}: has tutor_logits but names no teacher")
    return DerivedDocument(
        provenance=provenance,
        paradigm=found.paradigm,
        architecture=Architecture(
            space=found.space,
            widths=best.widths,
            num_classes=found.num_classes,
            input_size=found.input_size,
            params=best.cost.params,
            macs=best.cost.macs,
        ),
        tutors=TutorMap(
            teacher=provenance.teacher,
            student_layers=found.student_layers,
            teacher_layers=found.teacher_layers,
            tutor=chosen.tutor,
            origin=chosen.origin,
        )
        if chosen and provenance.teacher
        else None,
        budget=budget_record(budget),
        point=None if point is None else FrontPoint(index=point, of=_points(found, point, where=str(path))),
    )


def _points(found: SearchDocument, point: int, *, where: str) -> int:
    """Check ``point`` and return the number of points of the search's Pareto front."""
    if found.pareto is None:
        raise UserError(f"--point {point}: {where} was searched for one network; search with --pareto N")
    if not 1 <= point <= found.pareto:
        raise UserError(f"--point {point}: {where} has points 1 to {found.pareto}")
    return found.pareto


def _choose(found: SearchDocument, tutors: str, *, where: str) -> _TutorChoice | None:
    """Return the tutor of each student layer; None if the search has no tutors."""
    if not found.tutor_logits:
        refuse_tutors_without_search(tutors, paradigm=found.paradigm, where=where)
        return None
    students, teachers = len(found.student_layers), len(found.teacher_layers)
    if tutors == "searched":
        return _TutorChoice([argmax(row) for row in found.tutor_logits], "searched", {})
    if tutors == "random":
        return _TutorChoice(random_tutors(students, teachers, seed=found.provenance.seed), "random", {})
    if tutors == "same-depth":
        return _TutorChoice(same_depth_tutors(students, teachers), "same-depth", {})
    if tutors == "last-layer":
        return _TutorChoice(last_layer_tutors(students, teachers), "last-layer", {})
    file = tutor_map_file(tutors)
    assert file is not None  # all names are handled above
    return _by_hand(file, found)


def refuse_tutors_without_search(tutors: str, *, paradigm: Paradigm, where: str) -> None:
    """Refuse a tutor map for a search whose paradigm has no tutors.

    Raises:
        UserError: ``tutors`` is not the default.
    """
    if tutors != "searched":
        raise UserError(
            f"--tutors {tutors}: {where} is a search with paradigm '{paradigm}', which has no tutors; "
            "search with --paradigm rnas-cl or icc"
        )


def tutor_map_file(tutors: str) -> Path | None:
    """Return the file of a tutor map written by hand; None for one of :data:`TUTORS`.

    Raises:
        UserError: It is neither.
    """
    if tutors in TUTORS:
        return None
    file = Path(tutors)
    if not file.is_file():
        raise UserError(f"--tutors {file}: no such file or tutor map{did_you_mean(str(file), TUTORS)}")
    return file


def _by_hand(file: Path, found: SearchDocument) -> _TutorChoice:
    try:
        text = read_bounded(file, MAX_DOCUMENT_BYTES, what="tutor map")
    except OSError as error:
        raise UserError(f"--tutors {file}: {error.strerror}") from None
    given = parse_json(text, where=f"--tutors {file}")
    try:
        tutor = tutors_by_hand(given, student_layers=found.student_layers, teacher_layers=found.teacher_layers)
    except ValueError as error:
        raise UserError(f"--tutors {file}: {error}") from None
    return _TutorChoice(tutor, "by-hand", {file.name: sha256_file(file)})


def argmax(values: Sequence[float]) -> int:
    """Return the index of the largest value; the first of equals."""
    return max(range(len(values)), key=values.__getitem__)
