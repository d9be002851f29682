"""``derive``: read the found network off a search, by argmax of the logits; no sampling, no tensors.

g_i = argmax_j of the logits decides each block's width and each student layer's tutor (section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rnascl_cli.artifacts.documents import Architecture, DerivedDocument, SearchDocument, TutorMap
from rnascl_cli.artifacts.store import read_document, sha256_file
from rnascl_cli.engine.provenance import remade
from rnascl_cli.errors import UserError
from rnascl_cli.spaces import network_cost, space_named


def derive(source: Path) -> DerivedDocument:
    """Derive the network and tutor map of a search.

    Args:
        source: A run directory of ``search``, or its ``search.json``.

    Raises:
        UserError: There is no search document there, or it does not fit its space.
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
    provenance = remade(found.provenance, inputs={path.name: sha256_file(path)})
    tutors = None
    if found.tutor_logits:
        if provenance.teacher is None:
            raise UserError(f"{path}: has tutor_logits but names no teacher")
        tutors = TutorMap(
            teacher=provenance.teacher,
            student_layers=found.student_layers,
            teacher_layers=found.teacher_layers,
            tutor=[argmax(row) for row in found.tutor_logits],
        )
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
        tutors=tutors,
    )


def argmax(values: Sequence[float]) -> int:
    """Return the index of the largest value; the first of equals."""
    return max(range(len(values)), key=values.__getitem__)
