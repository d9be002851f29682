"""What the tutor maps say: agreement of searches, how decided they were, how like simple maps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.tables.tutor_statistics import (
    agreement_table,
    entropy,
    entropy_table,
    learned_tutor_maps,
    similarity_table,
    softmax,
)
from tests.reporting import factories as make
from tests.reporting.test_report_tables import cell, gaps


def test_softmax_by_hand() -> None:
    assert softmax([0.0, 0.0]) == [0.5, 0.5]
    assert softmax([1000.0, 0.0]) == [1.0, 0.0]


def test_agreement_between_seeds_by_hand(tmp_path: Path) -> None:
    """Seeds 0 and 1 differ in the last three of nine layers, by two teacher layers each."""
    for seed in (0, 1):
        searched = make.write_search(tmp_path / "runs" / f"s{seed}", seed=seed)
        make.write_derived(tmp_path / "runs" / f"d{seed}", searched, seed=seed)
    maps = learned_tutor_maps(collect([tmp_path / "runs"]))
    table = agreement_table(maps)
    assert table is not None
    assert [found.text for found in table.rows[0]] == [
        "s0 (seed 0)",
        "s1 (seed 1)",
        "66.7",
        "12.3",  # layers chosen by both: 1*1 + 2*2 + 2*2 + 1*1 = 10 of 81
        "0.62",  # Cohen's kappa: (6/9 - 10/81) / (1 - 10/81) = 44/71
        "8.3",
        "0.7",
    ]
    control = similarity_table(maps)
    assert control is not None
    # Relative depth gives 0, 1, 3, 4, 6, 7, 8, 10, 11 (halves to even), which agrees in layers 0, 5 and 8 of nine;
    # the last three have the last teacher layer.
    assert cell(control, "s0", "Last layer").text == "33.3"
    assert cell(control, "s0", "Same relative depth").text == "33.3"


def test_entropies_at_the_end_of_a_search(tmp_path: Path) -> None:
    """One logit of 0.5 among twelve near 0.1 is hardly a choice; one of 3 is, whatever the temperature."""
    make.write_search(tmp_path / "s3", tutor_logit=0.5)
    make.write_search(tmp_path / "firm")
    table = entropy_table(collect([tmp_path]))
    assert table is not None
    assert float(cell(table, "s3", "Entropy of tutors").text) > 0.9
    assert 0.5 < float(cell(table, "firm", "Entropy of tutors").text) < 0.7
    said = gaps(tmp_path)
    assert "s3: the tutor probabilities were nearly uniform" in said
    assert "firm: the tutor probabilities" not in said
    assert entropy([0.0, 0.0, 0.0]) == pytest.approx(1.0)
    # p = (3/4, 1/4): H = ln 4 - (3/4) ln 3, over ln 2
    assert entropy([math.log(3), 0.0]) == pytest.approx((math.log(4) - 0.75 * math.log(3)) / math.log(2))
    assert entropy([5.0]) == 0.0


def test_a_derived_document_copied_by_training_counts_once(tmp_path: Path) -> None:
    searched = make.write_search(tmp_path / "runs" / "s3")
    make.write_derived(tmp_path / "runs" / "one", searched)
    make.write_derived(tmp_path / "runs" / "two", searched)
    make.write_derived(tmp_path / "runs" / "control", searched, origin="random")  # no map that was learned
    assert [found.run for found in learned_tutor_maps(collect([tmp_path / "runs"]))] == ["s3"]
    # Without the search, the run that holds the map gives it its name.
    assert [found.run for found in learned_tutor_maps(collect([tmp_path / "runs" / "one"]))] == ["one"]
