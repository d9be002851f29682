"""Figures: drawn without a display, the same bytes each time, whatever a run is called and whatever is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.comparable_groups import groups
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.figures.attacks import attack_plots, names, plot_styles
from rnascl_cli.reporting.figures.published import published_plots
from rnascl_cli.reporting.figures.search import curves, hardening, series
from rnascl_cli.reporting.figures.style import Plot, marker, render
from rnascl_cli.reporting.figures.tutors import tutor_counts, tutor_heatmap
from rnascl_cli.reporting.tables.table import slug
from rnascl_cli.reporting.tables.tutor_statistics import LearnedTutorMap, learned_tutor_maps
from rnascl_cli.reporting.tables.tutor_statistics import tutor_counts as counts
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
    maps: list[LearnedTutorMap] = learned_tutor_maps(collect([tmp_path]))
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


def test_published_points_have_a_panel_of_their_own(tmp_path: Path) -> None:
    """CIFAR-10 runs stand beside Table 1, one panel a protocol; runs on other data have no such figure."""
    make.write_chain(tmp_path / "cifar")
    make.write_attack(tmp_path / "cifar" / "code", student="student", protocol="paper-code")
    found = models(collect([tmp_path / "cifar"]))
    (plot,) = published_plots(groups(found), found)
    svg = render(plot).svg.decode()
    for words in ("As published,", "protocol not stated", "Measured under pixel,", "Measured under paper-code,"):
        assert f"<!-- {words}" in svg or words in svg
    assert plot.size[0] == pytest.approx(3 * 4.2)
    other = make.data("digits").model_copy(update={"classes": ["0", "1"]})
    make.write_attack(tmp_path / "digits", student="a", model="m", reference=other)
    found = models(collect([tmp_path / "digits"]))
    assert published_plots(groups(found), found) == []


def test_many_models_are_told_apart_by_how_they_were_trained(tmp_path: Path) -> None:
    for seed in range(5):
        for origin in ("searched", "random"):
            make.write_control(tmp_path, seed=seed, origin=origin, robust=0.3)
    found = models(collect([tmp_path]))
    (group,) = groups(found)
    assert {look.name for look in plot_styles(group, found)} == {"S3, rnas-cl", "S3, rnas-cl, tutors: random"}


def test_hardening_has_a_panel_for_weights_where_they_were_recorded(tmp_path: Path) -> None:
    make.write_search(tmp_path / "new")
    (search,) = collect([tmp_path]).searches
    with_weights = hardening(search)
    assert with_weights is not None
    older = [{key: value for key, value in entry.items() if "weight" not in key} for entry in search.document.history]
    document = search.document.model_copy(update={"history": older})
    without = hardening(replace(search, document=document))
    assert without is not None
    assert (with_weights.size[0], without.size[0]) == (14.0, 10.5)
    assert len(render(without).png) > 1000


@pytest.mark.parametrize(
    ("name", "expected"), [("a/b c", "a-b-c"), ("../x", "x"), ("<script>", "script"), ("名", "run")]
)
def test_file_names_are_plain(name: str, expected: str) -> None:
    assert slug(name) == expected
