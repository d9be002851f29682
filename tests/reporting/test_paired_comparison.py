"""Learned tutors and control maps, paired by seed, network, settings and images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.comparable_groups import groups
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.data.paired_comparison import TutorComparison, tutor_comparisons
from rnascl_cli.reporting.figures.paired_comparison import comparison_plot
from rnascl_cli.reporting.figures.style import render
from rnascl_cli.reporting.page import build_page, html
from rnascl_cli.reporting.tables.paired_comparison import comparison_tables, missing_controls
from tests.reporting import factories as make
from tests.reporting.test_report_stage import read, undrawn

# PGD-20 of the students below, by tutors and seed.
ROBUST = {"searched": (0.34, 0.38), "random": (0.30, 0.31), "same-depth": (0.35, 0.37)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of students under learned, random and same-depth tutors."""
    for origin, shares in ROBUST.items():
        for seed, share in enumerate(shares):
            make.write_control(tmp_path, seed=seed, origin=origin, robust=share)  # type: ignore[arg-type]
    return tmp_path


def compared(folder: Path) -> list[TutorComparison]:
    return tutor_comparisons(groups(models(collect([folder]))))


def test_means_and_paired_differences_by_hand(runs: Path) -> None:
    """Learned: mean 36, s.d. sqrt(2) * 2 = 2.8. Against random: +4, +7, mean 5.5, s.d. 2.1; same depth: -1, +1."""
    (comparison,) = compared(runs)
    means, by_seed = comparison_tables(comparison)
    assert [column.label for column in means.columns] == [
        *("Students", "Tutors", "Seeds", "Clean", "Δ", "PGD-20 8/255", "Δ"),
    ]
    assert [[cell.text for cell in row] for row in means.rows] == [
        ["S3, rnas-cl", "learned", "2", "70.0 ± 0.0", "", "36.0 ± 2.8", ""],
        ["S3, rnas-cl", "random", "2", "70.0 ± 0.0", "±0.0 ± 0.0", "30.5 ± 0.7", "+5.5 ± 2.1"],
        ["S3, rnas-cl", "same relative depth", "2", "70.0 ± 0.0", "±0.0 ± 0.0", "36.0 ± 1.4", "±0.0 ± 1.4"],
    ]
    assert means.emphasized == {0}
    assert [row[0].text for row in by_seed.rows] == [
        *("searched-0", "random-0", "same-depth-0", "searched-1", "random-1", "same-depth-1"),
    ]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    make.write_control(tmp_path, seed=0, origin="searched", robust=0.34)
    make.write_control(tmp_path, seed=0, origin="last-layer", robust=0.30)
    means, _ = comparison_tables(compared(tmp_path)[0])
    assert [cell.text for cell in means.rows[1]][-2:] == ["30.0", "+4.0"]


def test_another_seed_is_no_pair(tmp_path: Path) -> None:
    make.write_control(tmp_path, seed=0, origin="searched", robust=0.34)
    make.write_control(tmp_path, seed=1, origin="random", robust=0.30)
    means, _ = comparison_tables(compared(tmp_path)[0])
    assert means.rows[1][-1].text == "–"
    assert "no pair" in means.rows[1][-1].note


def test_other_settings_are_another_family(tmp_path: Path) -> None:
    make.write_control(tmp_path, seed=0, origin="searched", robust=0.34)
    make.write_control(tmp_path, seed=0, origin="random", robust=0.30, epochs=9)
    assert compared(tmp_path) == []


def test_protocols_are_compared_apart(runs: Path) -> None:
    for name in ("searched-0", "random-0"):
        results = [make.result("pgd20", 8, 0.5)]
        make.write_attack(runs / f"{name}-code", student=name, results=results, protocol="paper-code")
    found = compared(runs)
    assert [comparison.name for comparison in found] == ["pixel", "paper-code"]
    assert [len(comparison.runs) for comparison in found] == [6, 2]


def test_missing_controls(runs: Path, tmp_path: Path) -> None:
    assert missing_controls(compared(runs)) == [
        "Controls not given: last layer only "
        "(rnascl derive RUN --tutors random|same-depth|last-layer | rnascl train -)."
    ]
    assert "Controls show whether" in missing_controls([])[0]
    make.write_control(runs, seed=0, origin="last-layer", robust=0.2)
    assert missing_controls(compared(runs)) == []


def test_a_control_is_named_so_and_is_no_row_of_the_paper(runs: Path) -> None:
    found = {model.name: model for model in models(collect([runs]))}
    assert found["searched-0"].trained == "rnas-cl"
    assert found["random-1"].trained == "rnas-cl, tutors: random"
    words = read(html(build_page(collect([runs]), draw=undrawn))).words
    assert "measured: searched-0" in words
    assert "measured: random-0" not in words
    reason = "the paper's tables have no row of this kind (rnas-cl, tutors: random)"
    assert f"random-0, random-1: {reason}" in words


def test_the_figure(runs: Path) -> None:
    plot = comparison_plot(compared(runs)[0])
    assert plot.name == "tutor-comparison-pixel"
    svg = render(plot).svg.decode()
    assert svg.startswith("<?xml")
    assert "protocol pixel" in plot.caption


def test_documents_without_an_origin_are_learned_maps(tmp_path: Path) -> None:
    make.write_control(tmp_path, seed=0, origin="searched", robust=0.34)
    file = tmp_path / "searched-0" / "derived.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    del raw["tutors"]["origin"]
    file.write_text(json.dumps(raw), encoding="utf-8")
    (model,) = models(collect([tmp_path]))
    assert model.tutors is not None
    assert model.tutors.origin == "searched"
