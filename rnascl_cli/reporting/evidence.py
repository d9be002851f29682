"""What the tutor maps say: how sharp they are, whether seeds agree, and how far from simple controls they lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import DerivedDocument, SearchDocument, TutorMap
from rnascl_cli.reporting.collect import Artifact, RunSet
from rnascl_cli.reporting.tables import Cell, Column, Table, number, text

HARDLY_DECIDED = 0.9


@dataclass(frozen=True)
class Tutored:
    """A derived document that has a tutor map."""

    run: str
    seed: int
    space: str
    tutors: TutorMap


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax of one row at temperature 1."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def tutored(runs: RunSet) -> list[Tutored]:
    """Return every distinct tutor map, by run; a document that training copied into its own folder counts once."""
    once: dict[str, Artifact[DerivedDocument]] = {}
    for found in runs.derivations:
        once.setdefault(_identity(found.document), found)
    return [
        Tutored(found.run, found.document.provenance.seed, found.document.architecture.space, found.document.tutors)
        for found in once.values()
        if found.document.tutors is not None and found.document.tutors.tutor
    ]


def _identity(document: DerivedDocument) -> str:
    """Return what tells two derivations apart: what they were derived from, else their whole text."""
    searched = document.provenance.inputs.get("search.json")
    return f"{searched}" if searched else document.model_dump_json()


def entropy(logits: Sequence[float]) -> float:
    """Return the entropy of softmax(logits) over the log of its length: 1 undecided, 0 decided.

    softmax(logits) is the chance of each choice to win under Gumbel noise, whatever the temperature.
    """
    if len(logits) < 2:
        return 0.0
    shares = softmax(logits)
    return -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(logits))


def decidedness(search: SearchDocument) -> tuple[float | None, float | None]:
    """Return the mean entropies of the width and the tutor choices; None without choices."""
    widths = [row for row in search.width_logits if len(row) > 1]
    means = []
    for rows in (widths, search.tutor_logits):
        means.append(sum(entropy(row) for row in rows) / len(rows) if rows else None)
    return means[0], means[1]


def decided_table(runs: RunSet) -> Table | None:
    """Return how decided each search ended; None without a search."""
    if not runs.searches:
        return None
    rows = []
    for found in runs.searches:
        search = found.document
        widths, tutors = decidedness(search)
        strongest = [max(softmax(row)) for row in search.tutor_logits]
        rows.append(
            [
                text(found.run),
                text(search.space),
                number(found.document.provenance.seed, "d"),
                number(search.temperature, ".3g"),
                number(widths, ".3f"),
                number(tutors, ".3f"),
                number(sum(strongest) / len(strongest) if strongest else None, ".3f"),
                number(1 / len(search.teacher_layers) if strongest else None, ".3f"),
            ]
        )
    columns = [
        Column("Search"),
        Column("Space"),
        Column("Seed", True),
        Column("Last temperature", True),
        Column("Entropy of widths", True),
        Column("Entropy of tutors", True),
        Column("Mean share of the chosen tutor", True),
        Column("That share if undecided", True),
    ]
    return Table(
        "decided",
        "How decided the searches ended",
        columns,
        rows,
        intro="Softmax of the logits: each choice's chance to win under Gumbel noise. Entropy: 1 undecided, 0 decided.",
    )


def undecided(runs: RunSet) -> list[str]:
    """Name the searches whose tutors were hardly decided when they ended."""
    return [
        f"{found.run}: the tutors were hardly decided at the end of the search (entropy {tutors:.3f} of 1), so the "
        "chosen ones are picks among nearly equal logits; compare searches of several seeds"
        for found in runs.searches
        for tutors in [decidedness(found.document)[1]]
        if tutors is not None and tutors > HARDLY_DECIDED
    ]


def counts(tutors: TutorMap) -> list[int]:
    """Return how many student layers chose each teacher layer."""
    return [tutors.tutor.count(index) for index in range(len(tutors.teacher_layers))]


def relative_depth(students: int, teachers: int) -> list[int]:
    """Return the map in which every student layer has the teacher layer at its own relative depth."""
    if students == 1:
        return [teachers - 1]
    return [round(index * (teachers - 1) / (students - 1)) for index in range(students)]


def control_table(maps: Sequence[Tutored]) -> Table | None:
    """Return how often each learned map agrees with three maps nobody had to learn."""
    if not maps:
        return None
    rows = []
    for found in maps:
        tutor, teachers = found.tutors.tutor, len(found.tutors.teacher_layers)
        depth = relative_depth(len(tutor), teachers)
        used = len(set(tutor))
        rows.append(
            [
                text(found.run),
                text(found.space),
                number(found.seed, "d"),
                number(len(tutor), "d"),
                number(teachers, "d"),
                Cell(f"{used}", float(used)),
                number(100 / teachers, ".1f"),
                number(100 * _agreement(tutor, depth), ".1f"),
                number(100 * _agreement(tutor, [teachers - 1] * len(tutor)), ".1f"),
                number(_distance(tutor, depth) / max(teachers - 1, 1), ".2f"),
            ]
        )
    return Table(
        "tutor-controls",
        "Learned tutors against simple maps",
        [
            Column("Run"),
            Column("Space"),
            Column("Seed", True),
            Column("Student layers", True),
            Column("Teacher layers", True),
            Column("Teacher layers chosen", True),
            Column("Same as random (expected)", True),
            Column("Same as relative depth", True),
            Column("Same as last layer", True),
            Column(
                "Distance from relative depth", True, "mean over student layers; 0 same, 1 the teacher's whole depth"
            ),
        ],
        rows,
        intro="Share of student layers, in %, whose learned tutor is the one a map without learning would give.",
        notes=(
            "This compares choices. Whether the learned map makes students more robust shows only in the accuracy of "
            "students trained under each map; such runs stand in the tables above where they are given.",
        ),
    )


def agreement_table(maps: Sequence[Tutored]) -> Table | None:
    """Return how often two searches with the same layers and teacher chose the same tutor; None without such pairs."""
    rows = []
    for one, other in itertools.combinations(maps, 2):
        same_layers = (one.tutors.student_layers, one.tutors.teacher_layers, one.tutors.teacher.sha256) == (
            other.tutors.student_layers,
            other.tutors.teacher_layers,
            other.tutors.teacher.sha256,
        )
        if not same_layers:
            continue
        teachers = len(one.tutors.teacher_layers)
        rows.append(
            [
                text(f"{one.run} (seed {one.seed})"),
                text(f"{other.run} (seed {other.seed})"),
                number(100 * _agreement(one.tutors.tutor, other.tutors.tutor), ".1f"),
                number(100 * _chance(one.tutors, other.tutors), ".1f"),
                number(100 / teachers, ".1f"),
                number(_distance(one.tutors.tutor, other.tutors.tutor), ".1f"),
            ]
        )
    if not rows:
        return None
    return Table(
        "tutor-agreement",
        "Agreement of the chosen tutors between searches",
        [
            Column("One search"),
            Column("Other search"),
            Column("Same tutor (%)", True),
            Column(
                "By chance, same popularity (%)", True, "expected if each map's choices were shuffled over its layers"
            ),
            Column("By chance, uniform (%)", True),
            Column("Mean distance (teacher layers)", True),
        ],
        rows,
        intro="Searches with the same student layers and the same teacher.",
    )


def _agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _chance(one: TutorMap, other: TutorMap) -> float:
    """Return the expected agreement of two maps with these counts, shuffled over the student layers."""
    return sum(a * b for a, b in zip(counts(one), counts(other), strict=True)) / len(one.tutor) ** 2
