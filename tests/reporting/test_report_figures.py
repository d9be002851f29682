"""Figures: drawn without a display, the same bytes each time, whatever a run is called and whatever is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.reporting.collect import collect
from rnascl_cli.reporting.drawing import Plot, marker, render
from rnascl_cli.reporting.evidence import Tutored, counts, tutored
from rnascl_cli.reporting.lineage import models
from rnascl_cli.reporting.plots import attack_plots, names
from rnascl_cli.reporting.search_plots import curves, hardening, series, slug, tutor_counts, tutor_heatmap
from rnascl_cli.reporting.summary import groups
from tests.reporting import factories as make


def test_a_figure_is_png_and_svg_and_the_same_every_time(tmp_path: Path) -> None:
    make.write_search(tmp_path / "$s_3$ 名")
    (search,) = collect([tmp_path]).searches
    plot = hardening(search)
    assert plot is not None
    one, two = render(plot), render(plot)
    assert one == two
    assert one.png.startswith(b"\x89PNG")
    assert b"<svg" in one.svg
    assert b"<dc:date>" not in one.svg
    assert one.svg != one.svg_dark


def test_missing_metrics_are_passed_over() -> None:
    history: list[dict[str, object]] = [{"loss": 1.0}, {"loss": None}, {}, {"loss": 0.5}, {"loss": "nan"}]
    assert series(history, "loss") == ([1.0, 4.0], [1.0, 0.5])


def test_no_history_no_curves(tmp_path: Path) -> None:
    make.write_search(tmp_path / "s3", epochs=0)
    (search,) = collect([tmp_path]).searches
    assert curves(search) is None
    assert hardening(search) is None


def test_no_tutors_no_heat_map(tmp_path: Path) -> None:
    make.write_search(tmp_path / "s3", paradigm="standard")
    (search,) = collect([tmp_path]).searches
    assert tutor_heatmap(search) is None


def test_tutor_counts_by_hand(tmp_path: Path) -> None:
    make.write_derived(tmp_path / "d", make.sha256("search"))
    maps: list[Tutored] = tutored(collect([tmp_path]))
    assert counts(maps[0].tutors) == [1, 0, 2, 0, 0, 2, 0, 1, 0, 0, 0, 3]
    assert [plot.name for plot in tutor_counts(maps)] == ["tutor-counts-1"]


def test_attack_figures_of_a_group(tmp_path: Path) -> None:
    make.write_train(tmp_path / "_hidden", student="a")
    results = [make.result("pgd20", eps, 0.9 - eps / 10, subset=False) for eps in (2, 8)]
    make.write_attack(tmp_path / "_hidden", student="a", results=results)
    make.write_attack(tmp_path / "again", student="a", results=results, model="again")
    found = models(collect([tmp_path]))
    found_groups = groups(found)
    assert names(found_groups[0]) == ["_hidden"]  # the same model on the same images: one measurement
    plots = attack_plots(found_groups, found)
    assert [plot.name for plot in plots] == ["clean-against-robust-a", "accuracy-by-attack-a", "accuracy-against-eps-a"]
    assert len(render(plots[2]).png) > 1000


def test_an_attack_without_results_has_no_figure(tmp_path: Path) -> None:
    make.write_attack(tmp_path / "a", student="a", results=[], worst=None)
    found = models(collect([tmp_path]))
    assert attack_plots(groups(found), found) == []


def test_captions_name_images_and_protocol(tmp_path: Path) -> None:
    make.write_chain(tmp_path)
    found = models(collect([tmp_path]))
    plots: list[Plot] = attack_plots(groups(found), found)
    assert all("500 test images" in plot.caption and "protocol pixel" in plot.caption for plot in plots)


def test_models_beyond_the_palette_differ_in_their_markers() -> None:
    assert len({(index % 7, marker(index)) for index in range(49)}) == 49


@pytest.mark.parametrize(
    ("name", "expected"), [("a/b c", "a-b-c"), ("../x", "x"), ("<script>", "script"), ("名", "run")]
)
def test_file_names_are_plain(name: str, expected: str) -> None:
    assert slug(name) == expected
