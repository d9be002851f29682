"""Statistics of learned tutor maps: entropy, agreement between searches, and similarity to simple maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import entr
from scipy.special import softmax as softmax_of_array

from rnascl_cli.artifacts.documents import SearchDocument, TutorMap
from rnascl_cli.distill.tutor_baselines import last_layer_tutors, same_depth_tutors
from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.tables.table import Cell, Column, Table, number, text

UNDECIDED_ENTROPY = 0.9


@dataclass(frozen=True)
class LearnedTutorMap:
    """A tutor map that a search learned.

    Attributes:
        run: Run of the search; if that is not given, the run of the derived document.
        seed: Seed of the search.
        space: Search space.
        tutors: The map.
    """

    run: str
    seed: int
    space: str
    tutors: TutorMap


def learned_tutor_maps(runs: RunSet) -> list[LearnedTutorMap]:
    """Return the distinct learned tutor maps; copies of a derived document count once."""
    searches = {search.sha256: search.run for search in runs.searches}
    maps: dict[str, LearnedTutorMap] = {}
    for derived in runs.derivations:
        document = derived.document
        tutors = document.tutors
        if tutors is None or not tutors.tutor or tutors.origin != "searched":
            continue
        source = document.provenance.inputs.get("search.json")
        run = searches.get(source or "", derived.run)
        tutor_map = LearnedTutorMap(run, document.provenance.seed, document.architecture.space, tutors)
        maps.setdefault(source or document.model_dump_json(), tutor_map)
    return list(maps.values())


def by_layers(maps: Sequence[LearnedTutorMap]) -> list[list[LearnedTutorMap]]:
    """Group maps by student layers, teacher layers and teacher; only within a group can they be compared."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[LearnedTutorMap]] = {}
    for one in maps:
        key = (tuple(one.tutors.student_layers), tuple(one.tutors.teacher_layers), one.tutors.teacher.sha256)
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax of the logits at temperature 1: the probability that Gumbel noise selects each choice."""
    probabilities: list[float] = softmax_of_array(logits).tolist()
    return probabilities


def entropy(logits: Sequence[float]) -> float:
    """Return the entropy of softmax(logits), divided by that of a uniform distribution: in [0, 1]."""
    return float(entr(softmax(logits)).sum()) / math.log(len(logits)) if len(logits) > 1 else 0.0


def mean_entropies(search: SearchDocument) -> tuple[float | None, float | None]:
    """Return the mean entropies of the width and of the tutor choices; None without choices."""
    widths = [logits for logits in search.width_logits if len(logits) > 1]
    return _mean([entropy(logits) for logits in widths]), _mean([entropy(logits) for logits in search.tutor_logits])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def entropy_table(runs: RunSet) -> Table | None:
    """Return the entropies of each search at its end; None without a search."""
    if not runs.searches:
        return None
    rows = []
    for artifact in runs.searches:
        search = artifact.document
        widths, tutors = mean_entropies(search)
        top = _mean([max(softmax(logits)) for logits in search.tutor_logits])
        rows.append(
            [
                text(artifact.run),
                text(search.space),
                number(search.provenance.seed, "d"),
                number(search.temperature, ".3g"),
                number(widths, ".3f"),
                number(tutors, ".3f"),
                number(top, ".3f"),
                number(None if top is None else 1 / len(search.teacher_layers), ".3f"),
            ]
        )
    columns = [
        Column("Search"),
        Column("Space"),
        Column("Seed", True),
        Column("Final temperature", True),
        Column("Entropy of widths", True),
        Column("Entropy of tutors", True),
        Column("Probability of the top tutor", True, "mean over student layers"),
        Column("Uniform probability", True),
    ]
    return Table(
        "decided",
        "Entropy of the architecture parameters after the search",
        columns,
        rows,
        intro="Mean entropy of the softmax of the logits, relative to a uniform distribution: 1 is uniform, 0 is "
        "one-hot.",
    )


def undecided(runs: RunSet) -> list[str]:
    """Return a caveat for each search that ended with nearly uniform tutor probabilities."""
    return [
        f"{search.run}: the tutor probabilities were nearly uniform at the end of the search (relative entropy "
        f"{tutors:.3f}), so the chosen tutors have hardly larger logits than others; compare several search seeds"
        for search in runs.searches
        if (tutors := mean_entropies(search.document)[1]) is not None and tutors > UNDECIDED_ENTROPY
    ]


def tutor_counts(tutors: TutorMap) -> list[int]:
    """Return the number of student layers that chose each teacher layer."""
    return [tutors.tutor.count(index) for index in range(len(tutors.teacher_layers))]


def similarity_table(maps: Sequence[LearnedTutorMap]) -> Table | None:
    """Return how often each learned map agrees with simple maps; None without maps."""
    if not maps:
        return None
    rows = []
    for one in maps:
        tutor, layers = one.tutors.tutor, len(one.tutors.teacher_layers)
        same_depth = same_depth_tutors(len(tutor), layers)
        rows.append(
            [
                text(one.run),
                text(one.space),
                number(one.seed, "d"),
                number(len(tutor), "d"),
                number(layers, "d"),
                number(len(set(tutor)), "d"),
                number(100 / layers, ".1f"),
                number(100 * _agreement(tutor, same_depth), ".1f"),
                number(100 * _agreement(tutor, last_layer_tutors(len(tutor), layers)), ".1f"),
                number(_distance(tutor, same_depth) / max(layers - 1, 1), ".2f"),
            ]
        )
    return Table(
        "tutor-likeness",
        "Similarity of the learned tutor maps to simple maps",
        [
            Column("Run"),
            Column("Space"),
            Column("Seed", True),
            Column("Student layers", True),
            Column("Teacher layers", True),
            Column("Teacher layers chosen", True),
            Column("Random (expected)", True),
            Column("Same relative depth", True),
            Column("Last layer", True),
            Column(
                "Distance from relative depth", True, "mean over student layers, as a fraction of the teacher's depth"
            ),
        ],
        rows,
        intro="Percentage of student layers whose learned tutor equals that of a map without learning.",
        notes=(
            "This compares choices only. To see whether a learned map improves robustness, compare the accuracy of "
            "students trained with each map.",
        ),
    )


def agreement_table(maps: Sequence[LearnedTutorMap]) -> Table | None:
    """Return how often two searches with the same layers and teacher agree; None without such a pair."""
    from sklearn.metrics import cohen_kappa_score  # slow to import

    pairs = [pair for group in by_layers(maps) for pair in itertools.combinations(group, 2)]
    if not pairs:
        return None
    rows, shares, chances = [], [], []
    for one, other in pairs:
        first, second = one.tutors.tutor, other.tutors.tutor
        share, chance = _agreement(first, second), _chance_agreement(one.tutors, other.tutors)
        shares.append(share)
        chances.append(chance)
        rows.append(
            [
                text(f"{one.run} (seed {one.seed})"),
                text(f"{other.run} (seed {other.seed})"),
                Cell(f"{100 * share:.1f}", 100 * share, share=share),
                number(100 * chance, ".1f"),
                # Kappa is undefined if both maps have the same single tutor.
                number(float(cohen_kappa_score(first, second)) if chance < 1 else None, ".2f"),
                number(100 / len(one.tutors.teacher_layers), ".1f"),
                number(_distance(first, second), ".1f"),
            ]
        )
    intro = "Searches with the same student layers and the same teacher."
    if len(pairs) > 1:
        mean, chance = 100 * sum(shares) / len(pairs), 100 * sum(chances) / len(pairs)
        intro += f" Mean over {len(pairs)} pairs: {mean:.1f} % the same tutor, {chance:.1f} % expected by chance."
    return Table(
        "tutor-agreement",
        "Agreement of the tutor maps of different searches",
        [
            Column("First search"),
            Column("Second search"),
            Column("Same tutor (%)", True),
            Column("Expected by chance (%)", True, "with each map's choices shuffled over its student layers"),
            Column("Cohen's kappa", True, "agreement beyond chance: 0 none, 1 identical maps"),
            Column("Expected if uniform (%)", True),
            Column("Mean distance (teacher layers)", True),
        ],
        rows,
        intro=intro,
    )


def _agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _chance_agreement(one: TutorMap, other: TutorMap) -> float:
    """Return the expected agreement of two maps with these counts, if shuffled over the student layers."""
    counts = zip(tutor_counts(one), tutor_counts(other), strict=True)
    return sum(a * b for a, b in counts) / len(one.tutor) ** 2
