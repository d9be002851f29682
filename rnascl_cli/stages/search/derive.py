"""``derive``: read the found network off a search, by argmax of the logits; no sampling, no tensors.

g_i = argmax_j of the logits decides each block's width and each student layer's tutor (section 3.4). Under a budget the
widths are those of the most likely network that keeps it (spaces/budget.py). In place of the
searched tutors there may be a control's (distill/tutor_baselines.py), or a map written by hand.
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
"""What ``--tutors`` may name; anything else is a file."""


class _Chosen(NamedTuple):
    tutor: list[int]
    origin: TutorOrigin
    inputs: dict[str, str]


def derive(
    source: Path, *, tutors: str = "searched", budget: Budget = Budget(), point: int | None = None
) -> DerivedDocument:
    """Derive the network and tutor map of a search.

    Args:
        source: A run directory of ``search``, or its ``search.json``.
        tutors: One of :data:`TUTORS`, or a JSON file with a map written by hand. ``random`` is drawn from the search's
            seed.
        budget: Each of its limits takes the place of the search's own; the others stay.
        point: Which point of the search's front, from 1; None for the best network of the search.

    Raises:
        UserError: There is no search document there, or it does not fit its space, or ``tutors`` or ``point`` does not
            fit it, or the smallest network of the space is above the budget.
    """
    path = source / "search.json" if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"{source}: no search.json there; name a run directory of 'rnascl search' or its search.json")
    found = read_document(path, SearchDocument)
    networks = networks_of(found, where=str(path))
    fields = (f"{path}: budget.max_macs", f"{path}: budget.max_params")
    options = ("--max-macs", "--max-params")
    asked = tuple(option if limit else field for option, field, limit in zip(options, fields, budget, strict=True))
    kept = budget.over(budget_of(found))
    networks.check(kept, where=(asked[0], asked[1]))
    if point is None:
        best = networks.most_likely(found.width_logits, kept)
    else:
        best = networks.point(found.width_logits, point, _points(found, point, where=str(path)), kept)
    return derived_from(path, found, best, tutors=tutors, budget=kept, point=point)


def networks_of(found: SearchDocument, *, where: str) -> NetworkSpace:
    """Return the networks that a search chose from.

    Raises:
        UserError: Its space is unknown, or has other choices.
    """
    space = space_named(found.space, where=where)
    if [list(choices) for choices in space.block_choices] != found.width_choices:
        raise UserError(f"{where}: width_choices are not those of space {space.name}")
    return NetworkSpace(space, num_classes=found.num_classes, input_size=found.input_size)


def budget_of(found: SearchDocument) -> Budget:
    """Return the budget that a search was made under, which may limit nothing."""
    return Budget(found.budget.max_macs, found.budget.max_params) if found.budget else Budget()


def record_of(budget: Budget) -> BudgetRecord | None:
    """Return a budget as documents have it; None where it limits nothing."""
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
        warning(
            f"{path}: another network within the limits may be a little more likely: the search for it was cut short"
        )
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
        budget=record_of(budget),
        point=None if point is None else FrontPoint(index=point, of=_points(found, point, where=str(path))),
    )


def _points(found: SearchDocument, point: int, *, where: str) -> int:
    """Return how many points the search's front has, ``point`` being one of them."""
    if found.pareto is None:
        raise UserError(f"--point {point}: {where} was searched for one network; search with --pareto N")
    if not 1 <= point <= found.pareto:
        raise UserError(f"--point {point}: {where} has points 1 to {found.pareto}")
    return found.pareto


def _choose(found: SearchDocument, tutors: str, *, where: str) -> _Chosen | None:
    """Return who teaches whom; None where the search had no tutors."""
    if not found.tutor_logits:
        if tutors != "searched":
            raise untutored(tutors, paradigm=found.paradigm, where=where)
        return None
    students, teachers = len(found.student_layers), len(found.teacher_layers)
    if tutors == "searched":
        return _Chosen([argmax(row) for row in found.tutor_logits], "searched", {})
    if tutors == "random":
        return _Chosen(random_tutors(students, teachers, seed=found.provenance.seed), "random", {})
    if tutors == "same-depth":
        return _Chosen(same_depth_tutors(students, teachers), "same-depth", {})
    if tutors == "last-layer":
        return _Chosen(last_layer_tutors(students, teachers), "last-layer", {})
    file = find_map(tutors)
    assert file is not None  # all that have a name are above
    return _by_hand(file, found)


def untutored(tutors: str, *, paradigm: Paradigm, where: str) -> UserError:
    """Return the refusal of a tutor map for a search (``where``) whose paradigm has no tutors."""
    return UserError(
        f"--tutors {tutors}: {where} is a search with paradigm '{paradigm}', which has no tutors; "
        "search with --paradigm rnas-cl or icc"
    )


def find_map(tutors: str) -> Path | None:
    """Return the file of a tutor map written by hand; None for a map that has a name.

    Raises:
        UserError: There is neither such a name nor such a file.
    """
    if tutors in TUTORS:
        return None
    file = Path(tutors)
    if not file.is_file():
        raise UserError(f"--tutors {file}: no such file, and no map of that name{did_you_mean(str(file), TUTORS)}")
    return file


def _by_hand(file: Path, found: SearchDocument) -> _Chosen:
    try:
        text = read_bounded(file, MAX_DOCUMENT_BYTES, what="tutor map")
    except OSError as error:
        raise UserError(f"--tutors {file}: {error.strerror}") from None
    given = parse_json(text, where=f"--tutors {file}")
    try:
        tutor = tutors_by_hand(given, student_layers=found.student_layers, teacher_layers=found.teacher_layers)
    except ValueError as error:
        raise UserError(f"--tutors {file}: {error}") from None
    return _Chosen(tutor, "by-hand", {file.name: sha256_file(file)})


def argmax(values: Sequence[float]) -> int:
    """Return the index of the largest value; the first of equals."""
    return max(range(len(values)), key=values.__getitem__)
