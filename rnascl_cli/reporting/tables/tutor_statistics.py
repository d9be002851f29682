"""What the tutor maps say: how sharp they are, whether seeds agree, and how far from simple controls they lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import SearchDocument, TutorMap
from rnascl_cli.distill.tutor_baselines import same_depth_tutors
from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.tables.table import Cell, Column, Table, number, text

HARDLY_DECIDED = 0.9


@dataclass(frozen=True)
class LearnedTutorMap:
    """A tutor map that a search learned.

    Attributes:
        run: The search it was read off; where that is not given, the run that holds the derived document.
        seed: Of the search.
        space: The search space.
        tutors: The map.
    """

    run: str
    seed: int
    space: str
    tutors: TutorMap


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax of one row at temperature 1."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def tutored(runs: RunSet) -> list[LearnedTutorMap]:
    """Return every distinct learned tutor map; a document that training copied into its own folder counts once."""
    searches = {found.sha256: found.run for found in runs.searches}
    once: dict[str, LearnedTutorMap] = {}
    for found in runs.derivations:
        document = found.document
        tutors = document.tutors
        if tutors is None or not tutors.tutor or tutors.origin != "searched":
            continue
        source = document.provenance.inputs.get("search.json")
        run = searches.get(source or "", found.run)
        tutored = LearnedTutorMap(run, document.provenance.seed, document.architecture.space, tutors)
        # A search is one map; without it, the whole document tells two apart.
        once.setdefault(source or document.model_dump_json(), tutored)
    return list(once.values())


def alike(maps: Sequence[LearnedTutorMap]) -> list[list[LearnedTutorMap]]:
    """Sort maps by student layers, teacher layers and teacher: only within these may choices be compared."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[LearnedTutorMap]] = {}
    for one in maps:
        key = (tuple(one.tutors.student_layers), tuple(one.tutors.teacher_layers), one.tutors.teacher.sha256)
        found.setdefault(key, []).append(one)
    return list(found.values())


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


def likeness_table(maps: Sequence[LearnedTutorMap]) -> Table | None:
    """Return how often each learned map agrees with three maps nobody had to learn."""
    if not maps:
        return None
    rows = []
    for found in maps:
        tutor, teachers = found.tutors.tutor, len(found.tutors.teacher_layers)
        depth = same_depth_tutors(len(tutor), teachers)
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
        "tutor-likeness",
        "How like simple maps the learned tutors are",
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
            "students trained under each map.",
        ),
    )


def agreement_table(maps: Sequence[LearnedTutorMap]) -> Table | None:
    """Return how often two searches with the same layers and teacher chose the same tutor; None without such pairs."""
    pairs = [pair for group in alike(maps) for pair in itertools.combinations(group, 2)]
    if not pairs:
        return None
    rows, shares, chances = [], [], []
    for one, other in pairs:
        share, chance = _agreement(one.tutors.tutor, other.tutors.tutor), _chance(one.tutors, other.tutors)
        shares.append(share)
        chances.append(chance)
        rows.append(
            [
                text(f"{one.run} (seed {one.seed})"),
                text(f"{other.run} (seed {other.seed})"),
                Cell(f"{100 * share:.1f}", 100 * share, share=share),
                number(100 * chance, ".1f"),
                number(_kappa(share, chance), ".2f"),
                number(100 / len(one.tutors.teacher_layers), ".1f"),
                number(_distance(one.tutors.tutor, other.tutors.tutor), ".1f"),
            ]
        )
    words = "Searches with the same student layers and the same teacher."
    if len(pairs) > 1:
        mean, chance = 100 * sum(shares) / len(pairs), 100 * sum(chances) / len(pairs)
        words += f" Mean over {len(pairs)} pairs: {mean:.1f} % the same tutor, {chance:.1f} % expected by chance."
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
            Column("Cohen's kappa", True, "agreement beyond that chance: 0 none, 1 the same map"),
            Column("By chance, uniform (%)", True),
            Column("Mean distance (teacher layers)", True),
        ],
        rows,
        intro=words,
    )


def _kappa(share: float, chance: float) -> float | None:
    """Return the agreement beyond chance over the most there could be; None where chance alone agrees always."""
    return None if chance >= 1 else (share - chance) / (1 - chance)


def _agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _chance(one: TutorMap, other: TutorMap) -> float:
    """Return the expected agreement of two maps with these counts, shuffled over the student layers."""
    return sum(a * b for a, b in zip(counts(one), counts(other), strict=True)) / len(one.tutor) ** 2
