"""``derive``: read the found network off a search, by argmax of the logits; no sampling, no tensors.

g_i = argmax_j of the logits decides each block's width and each student layer's tutor (section 3.4). In place of the
searched tutors there may be a control's (distill/tutors.py), or a map written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rnascl_cli.artifacts.documents import Architecture, DerivedDocument, SearchDocument, TutorMap, TutorOrigin
from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, parse_json, read_bounded
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.distill.tutors import last_layer_tutors, random_tutors, same_depth_tutors, tutors_by_hand
from rnascl_cli.engine.provenance import remade
from rnascl_cli.errors import UserError, nearest
from rnascl_cli.spaces import network_cost, space_named

TUTORS = ("searched", "random", "same-depth", "last-layer")
"""What ``--tutors`` may name; anything else is a file."""


class _Chosen(NamedTuple):
    tutor: list[int]
    origin: TutorOrigin
    inputs: dict[str, str]


def derive(source: Path, *, tutors: str = "searched") -> DerivedDocument:
    """Derive the network and tutor map of a search.

    Args:
        source: A run directory of ``search``, or its ``search.json``.
        tutors: One of :data:`TUTORS`, or a JSON file with a map written by hand. ``random`` is drawn from the search's
            seed.

    Raises:
        UserError: There is no search document there, or it does not fit its space, or ``tutors`` does not fit it.
    """
    path = source / "search.json" if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"{source}: no search.json there; name a run directory of 'rnascl search' or its search.json")
    found = read_document(path, SearchDocument)
    space = space_named(found.space, where=str(path))
    if [list(choices) for choices in space.block_choices] != found.width_choices:
        raise UserError(f"{path}: width_choices are not those of space {space.name}")
    widths = [choices[argmax(row)] for choices, row in zip(found.width_choices, found.width_logits, strict=True)]
    cost = network_cost(space, widths, num_classes=found.num_classes, input_size=found.input_size)
    chosen = _choose(found, tutors, where=str(path))
    inputs = {path.name: sha256_file(path), **(chosen.inputs if chosen else {})}
    provenance = remade(found.provenance, inputs=inputs)
    if chosen and provenance.teacher is None:
        raise UserError(f"{path}: has tutor_logits but names no teacher")
    return DerivedDocument(
        provenance=provenance,
        paradigm=found.paradigm,
        architecture=Architecture(
            space=space.name,
            widths=widths,
            num_classes=found.num_classes,
            input_size=found.input_size,
            params=cost.params,
            macs=cost.macs,
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
    )


def _choose(found: SearchDocument, tutors: str, *, where: str) -> _Chosen | None:
    """Return who teaches whom; None where the search had no tutors."""
    if not found.tutor_logits:
        if tutors != "searched":
            raise UserError(
                f"--tutors {tutors}: {where} is a search with paradigm '{found.paradigm}', which has no tutors; "
                "search with --paradigm rnas-cl or icc"
            )
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
    return _by_hand(Path(tutors), found)


def _by_hand(file: Path, found: SearchDocument) -> _Chosen:
    if not file.is_file():
        raise UserError(f"--tutors {file}: no such file, and no map of that name{nearest(str(file), TUTORS)}")
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
