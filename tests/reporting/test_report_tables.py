"""What stands in the tables: unlike numbers apart, worst cases, intervals, comparisons with the paper."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from rnascl_cli.artifacts.documents import DataReference, Verdicts
from rnascl_cli.core.statistics import wilson_interval
from rnascl_cli.reporting.data.collect import collect, short_spec
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, groups
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.tables.attacks import attack_tables
from rnascl_cli.reporting.tables.missing_runs import find_caveats
from rnascl_cli.reporting.tables.provenance import changed_settings, provenance_entry
from rnascl_cli.reporting.tables.published import dataset_of, published_tables, unmatched
from rnascl_cli.reporting.tables.summary import headline, model_tables
from rnascl_cli.reporting.tables.table import Cell, Table, accuracy, compact_widths, number, points
from tests.reporting import factories as make


def cell(table: Table, row: str, column: str) -> Cell:
    """Return the cell in the first row that begins with ``row``."""
    labels = [heading.label for heading in table.columns]
    found = next(cells for cells in table.rows if cells[0].text == row)
    return found[labels.index(column)]


def grouped(folder: Path) -> list[ComparableGroup]:
    """Return the groups of the runs in a folder."""
    return groups(models(collect([folder])))


def gaps(folder: Path) -> str:
    """Return what is said to be missing."""
    runs = collect([folder])
    found = models(runs)
    return "\n".join(find_caveats(runs, found, groups(found)))


def test_wilson_interval_by_hand() -> None:
    """50 of 100: (0.5 + z^2/200) / (1 + z^2/100) -+ ... = 0.4038, 0.5962."""
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson_interval(0.0, 500)
    assert low == 0.0
    assert high == pytest.approx(3.8415 / (500 + 3.8415), abs=1e-5)


def test_how_numbers_are_written() -> None:
    assert accuracy(0.41234, 10000).text == "41.23"
    assert accuracy(0.41234, 500, interval=(0.37, 0.456)).text == "41.2 [37.0, 45.6]"
    assert number(None, ".2f").value is None
    assert [points(value).text for value in (1.26, -1.26, 0.01, None)] == ["+1.3", "−1.3", "±0.0", "–"]
    assert compact_widths([16, 16, 16, 32, 64, 64]) == "16×3, 32, 64×2"
    assert [short_spec(spec) for spec in ("digits", "folder:/a/b/cifar/")] == ["digits", "folder:cifar"]


def test_accuracies_of_one_group(tmp_path: Path) -> None:
    make.write_chain(tmp_path / "runs")
    (group,) = grouped(tmp_path / "runs")
    (table,) = attack_tables(group)
    assert cell(table, "s3-trades", "PGD-20 8/255").text == "43.0 [39.0, 47.0]"
    assert cell(table, "s3-trades", "Worst case 8/255").text == "38.0 [33.9, 42.3]"
    summary = headline(group)
    assert cell(summary, "s3-trades", "Params (M)").text == f"{make.architecture().params / 1e6:.3f}"
    assert cell(summary, "s3-trades", "Worst case 8/255").text == "38.0 [33.9, 42.3]"
    assert cell(summary, "s3-trades", "Worst case 8/255").share == 0.38
    assert cell(summary, "s3-trades", "Audit").text == "not audited"
    warned = cell(summary, "s3-train", "Warnings")
    assert warned.alert
    assert "masked" in warned.note
    assert "500 test images" in table.intro
    assert "/images" not in table.intro  # where the images lie is of this machine alone


@pytest.mark.parametrize("other", ["protocol", "data", "images"])
def test_unlike_measurements_never_share_a_table(tmp_path: Path, other: str) -> None:
    make.write_train(tmp_path / "runs" / "train", student="student")
    make.write_attack(tmp_path / "runs" / "a", student="student")
    folder = tmp_path / "runs" / "b"
    if other == "protocol":
        make.write_attack(folder, student="student", protocol="paper-code")
    elif other == "data":
        make.write_attack(folder, student="student", reference=make.data("others"))
    else:
        make.write_attack(folder, student="student", n=400)
    found = grouped(tmp_path / "runs")
    assert [len(group.measurements) for group in found] == [1, 1]
    assert found[0].protocol == "pixel"
    assert "must not be compared" in gaps(tmp_path / "runs")


def test_other_sizes_have_a_table_of_their_own(tmp_path: Path) -> None:
    results = [make.result("pgd20", eps, 0.9 - eps / 10) for eps in (2, 4, 8)]
    make.write_attack(tmp_path / "runs" / "swept", student="a", results=results, model="swept")
    make.write_attack(tmp_path / "runs" / "single", student="b", results=[make.result("pgd20", 8, 0.2)], model="single")
    (group,) = grouped(tmp_path / "runs")
    usual, other = attack_tables(group)
    assert [heading.label for heading in usual.columns][-1] == "PGD-20 8/255"
    assert [heading.label for heading in other.columns] == ["Model", "Clean", "PGD-20 2/255", "PGD-20 4/255"]
    assert [row[0].text for row in other.rows] == ["swept"]


def test_the_same_attack_with_other_settings_has_its_own_column(tmp_path: Path) -> None:
    make.write_attack(tmp_path / "runs" / "a", student="a", results=[make.result("pgd20", 8, 0.4)], model="a")
    make.write_attack(
        tmp_path / "runs" / "b", student="b", results=[make.result("pgd20", 8, 0.5, step=0.8 / 255)], model="b"
    )
    (group,) = grouped(tmp_path / "runs")
    labels = [heading.label for heading in attack_tables(group)[0].columns if heading.label.startswith("PGD")]
    assert len(labels) == 2
    assert any("step 0.003137" in label for label in labels)


def test_worst_case_from_verdicts_when_not_recorded(tmp_path: Path) -> None:
    """Ten images; FGSM breaks 0 and 1, PGD 1 and 2: three are broken, seven are left."""
    verdicts = [
        Verdicts(attack="fgsm", eps="8/255", broken=[0, 1]),
        Verdicts(attack="pgd20", eps="8/255", broken=[1, 2]),
        Verdicts(attack="pgd20", eps="4/255", broken=[5]),
    ]
    results = [make.result("fgsm", 8, 0.8), make.result("pgd20", 8, 0.8), make.result("pgd20", 4, 0.9)]
    make.write_attack(
        tmp_path / "runs", student="a", n=10, worst=None, clean=1.0, results=results, verdicts=verdicts, model="a"
    )
    (group,) = grouped(tmp_path)
    assert group.measurements[0].worst_case == pytest.approx(0.7)


def test_partial_attacks_are_named_and_marked(tmp_path: Path) -> None:
    asked = {"attacks": ["clean", "fgsm", "aa"], "eps": ["8/255"]}
    make.write_attack(
        tmp_path / "runs" / "a", student="a", results=[make.result("fgsm", 8, 0.4)], asked=asked, model="a"
    )
    make.write_attack(tmp_path / "runs" / "b", student="b", model="b")
    (group,) = grouped(tmp_path / "runs")
    missing = cell(attack_tables(group)[0], "a", "AutoAttack 8/255")
    assert (missing.text, missing.alert) == ("no result", True)
    assert "a: the attack run is partial; no result of AutoAttack at eps 0.03137" in gaps(tmp_path / "runs")


def test_an_attack_without_results_is_said(tmp_path: Path) -> None:
    make.write_attack(tmp_path / "runs" / "a", student="a", results=[], worst=None, model="a")
    (group,) = grouped(tmp_path / "runs")
    assert attack_tables(group)[0].rows
    assert "attack.json has no results" in gaps(tmp_path / "runs")


def test_missing_stages_are_said(tmp_path: Path) -> None:
    make.write_search(tmp_path / "runs" / "lonely")
    make.write_train(tmp_path / "runs" / "train", student="student")
    make.write_finetune(tmp_path / "runs" / "tuned", student="robust", source="not given")
    said = gaps(tmp_path / "runs")
    assert "lonely: searched only" in said
    assert "tuned: unknown origin; the training before the fine-tuning is not given" in said
    assert "not attacked, robust accuracy unknown: train, tuned" in said
    assert "train: no derived document is given" in said


def test_students_on_different_data_have_different_tables(tmp_path: Path) -> None:
    make.write_train(tmp_path / "runs" / "a", student="a")
    make.write_train(tmp_path / "runs" / "b", student="b", reference=make.data("subset"))
    tables = model_tables(models(collect([tmp_path / "runs"])))
    assert [[row[0].text for row in table.rows] for table in tables] == [["a"], ["b"]]
    assert "separate tables" in gaps(tmp_path / "runs")


def test_measured_beside_the_published_row_of_the_same_teacher(tmp_path: Path) -> None:
    make.write_chain(tmp_path / "runs")
    tables = {table.title: table for table in published_tables(models(collect([tmp_path / "runs"])), full=False)}
    second = next(table for title, table in tables.items() if title.startswith("Table 2"))
    # Published RNAS-CL-S3-R18: 88.47 clean, 26.35 under PGD-20; measured 89.4 and 0.4.
    assert second.rows[0][0].text == "RNAS-CL-S3-R18"
    assert second.rows[1][0].text == "measured: s3-train"
    assert [column.label for column in second.columns][-4:] == ["Clean", "Δ", "PGD-20ᵃ", "Δ"]
    assert [found.text for found in second.rows[1][-4:]] == ["89.4", "+0.9", "0.4", "−26.0"]
    assert [found.text for found in second.rows[0][-4:]] == ["88.47", "", "26.35", ""]
    first = next(table for title, table in tables.items() if title.startswith("Table 1"))
    assert "teacher r18, not wrt34" in first.rows[1][2].text
    fourth = next(table for title, table in tables.items() if title.startswith("Table 4"))
    assert [row[0].text for row in fourth.rows][1] == "measured: s3-trades"
    assert "pixel, n = 500" in fourth.rows[1][3].text


def test_protocols_are_compared_with_the_paper_apart(tmp_path: Path) -> None:
    make.write_train(tmp_path / "runs" / "s3", student="student")
    make.write_attack(tmp_path / "runs" / "a", student="student", results=[make.result("pgd20", 8, 0.1)])
    make.write_attack(
        tmp_path / "runs" / "b", student="student", results=[make.result("pgd20", 8, 0.3)], protocol="paper-code"
    )
    titles = [table.title for table in published_tables(models(collect([tmp_path / "runs"])), full=False)]
    assert [title.rsplit(" ", 1)[1] for title in titles if title.startswith("Table 2")] == ["pixel", "paper-code"]


def test_other_data_are_not_compared_with_the_paper(tmp_path: Path) -> None:
    digits = DataReference(
        spec="digits",
        fingerprint=make.sha256("digits"),
        classes=[str(digit) for digit in range(10)],
        train_images=1400,
        holdout_images=37,
        test_images=360,
    )
    make.write_train(tmp_path / "runs" / "s3", student="student", reference=digits)
    make.write_attack(tmp_path / "runs" / "s3", student="student", reference=digits)
    found = models(collect([tmp_path / "runs"]))
    assert dataset_of(digits) is None
    assert published_tables(found, full=False) == []
    assert unmatched(found) == ["s3: measured on digits, which the paper does not use"]


def test_paper_tables_are_whole(tmp_path: Path) -> None:
    make.write_chain(tmp_path / "runs")
    tables = published_tables(models(collect([tmp_path / "runs"])), full=True)
    assert [table.title[:7] for table in tables] == [f"Table {number}" for number in range(1, 7)]
    published = [row for row in tables[0].rows if "measured" not in row[0].text]
    assert len(published) == 38
    columns = [column.label for column in tables[0].columns]
    assert columns == [
        *("Method", "Source", "Training", "Protocol, images"),
        *("Clean", "Δ", "FGSMᵃᵇ", "Δ", "PGD-20ᵇ", "Δ", "MI-FGSMᵇ", "Δ", "Params (M)", "MACs (M)"),
    ]
    assert published[0][-2].text == "3.3"
    assert published[0][-1].text == "500*"
    assert published[5][6].text == "-"  # MVV2-ARD has no FGSM number
    assert tables[0].sortable
    assert "Δ" not in [column.label for column in tables[2].columns]  # nothing is measured on ImageNet-100


def test_provenance_entry(tmp_path: Path) -> None:
    make.write_train(tmp_path / "run", student="student", epochs=8)
    (found,) = collect([tmp_path / "run"]).artifacts
    entry = provenance_entry(found)
    facts = dict(entry.facts)
    assert entry.command == "rnascl train --out 'runs/train 1'"
    assert facts["teacher"] == f"r18 (r18.safetensors, sha256 {make.TEACHER_SHA256[:12]})"
    assert facts["rnascl"] == "0.1.0, commit abcdef123456"
    assert facts["non-default settings"] == "train.epochs=8"
    assert facts["data fingerprint"] == make.data().fingerprint
    assert facts["data"].startswith("folder:cifar10, 10 classes; 49,000 training images")


def test_changed_settings_of_the_stage_alone() -> None:
    recipe = {"train": {"kl": {"weight": 0.5}}, "search": {"epochs": 3}}
    assert changed_settings(recipe, "train") == ["train.kl.weight=0.5"]
    assert changed_settings({}, "attack") == []


def test_attack_runs_of_one_model_on_the_same_images_are_one_row(tmp_path: Path) -> None:
    """PGD-20 breaks images 0-2 in one run, FGSM at another eps is in a second; the worst case sees both runs."""
    derived = make.write_derived(tmp_path / "m", make.write_search(tmp_path / "s3"))
    make.write_train(tmp_path / "m", student="student", derived_sha256=derived)
    broken = [Verdicts(attack="pgd20", eps="8/255", broken=[0, 1, 2])]
    more = [
        Verdicts(attack="fgsm", eps="8/255", broken=[2, 3]),
        Verdicts(attack="fgsm", eps="2/255", broken=[3]),
    ]
    write = partial(make.write_attack, student="student", n=10, clean=1.0)
    write(tmp_path / "m", results=[make.result("pgd20", 8, 0.7)], verdicts=broken, worst=0.7)
    sweep = [make.result("fgsm", 2, 0.9), make.result("fgsm", 8, 0.8), make.result("pgd20", 8, 0.1)]
    write(tmp_path / "m-sweep", results=sweep, verdicts=more, worst=0.8, warnings=["masked"])
    (model,) = [model for model in models(collect([tmp_path])) if model.attacks]
    (merged,) = model.attacks
    assert [(item.attack, item.eps, item.accuracy) for item in merged.document.results] == [
        *(("pgd20", "8/255", 0.7), ("fgsm", "2/255", 0.9), ("fgsm", "8/255", 0.8)),  # the earlier run's PGD-20 is shown
    ]
    assert merged.document.warnings == ["masked"]
    (group,) = groups([model])
    (measured,) = group.measurements
    assert measured.worst_case == pytest.approx(0.6)


def test_seeds_hold_out_images_of_their_own_and_share_a_table(tmp_path: Path) -> None:
    """Another fingerprint under another seed is the same data; under the same seed, the images have changed."""
    make.write_train(tmp_path / "a", student="a", seed=0)
    make.write_train(tmp_path / "b", student="b", seed=1, reference=make.data("drawn by another seed"))
    (table,) = model_tables(models(collect([tmp_path])))
    assert [row[0].text for row in table.rows] == ["a", "b"]
    assert "the first of 2: each seed draws its own held-out images" in table.intro
    assert "separate tables" not in gaps(tmp_path)
    make.write_train(tmp_path / "c", student="c", seed=1, reference=make.data("changed"))
    assert len(model_tables(models(collect([tmp_path])))) == 3


def test_drawn_test_images_are_of_their_seed_alone(tmp_path: Path) -> None:
    for seed in (0, 1):
        reference = make.data(f"drawn {seed}").model_copy(update={"limit_test": 500})
        make.write_train(tmp_path / f"s{seed}", student=f"{seed}", seed=seed, reference=reference)
    assert len(model_tables(models(collect([tmp_path])))) == 2


def test_what_one_of_several_attack_runs_was_asked_and_did_not_do_is_said(tmp_path: Path) -> None:
    write = partial(make.write_attack, student="a", model="m")
    write(tmp_path / "a", results=[make.result("fgsm", 8, 0.4)], asked={"attacks": ["fgsm"], "eps": ["8/255"]})
    write(tmp_path / "b", results=[make.result("pgd20", 8, 0.3)], asked={"attacks": ["pgd20", "aa"], "eps": ["8/255"]})
    assert "no result of AutoAttack at eps 0.03137" in gaps(tmp_path)
    write(tmp_path / "c", results=[make.result("aa", 8, 0.2, step=None)])
    assert "no result of AutoAttack" not in gaps(tmp_path)


def test_every_number_names_the_attack_run_it_comes_from(tmp_path: Path) -> None:
    write = partial(make.write_attack, student="a", model="m")
    write(tmp_path / "a", results=[make.result("fgsm", 8, 0.4)])
    write(tmp_path / "b", results=[make.result("pgd20", 8, 0.3)])
    (group,) = grouped(tmp_path)
    (table,) = attack_tables(group)
    assert cell(table, "m", "FGSM 8/255").note.startswith("attack run a; ")
    assert cell(table, "m", "PGD-20 8/255").note.startswith("attack run b; ")


def test_norms_never_share_a_table(tmp_path: Path) -> None:
    other = make.result("pgd20", 8, 0.9).model_copy(update={"norm": "L2"})
    make.write_attack(tmp_path / "a", student="a", model="m")
    make.write_attack(tmp_path / "b", student="a", model="m", results=[other], worst=0.9)
    found = grouped(tmp_path)
    assert [(group.norm, len(group.measurements)) for group in found] == [("Linf", 1), ("L2", 1)]
    assert "two norms" in gaps(tmp_path)
    assert "norm L2" in attack_tables(found[1])[0].intro


def test_the_worst_case_of_a_model_attacked_beyond_the_usual_eps(tmp_path: Path) -> None:
    """Ten images: 0 and 1 fall at 8/255, six of them at 16/255; the summary tells 8/255, which both were given."""
    verdicts = [
        Verdicts(attack="pgd20", eps="8/255", broken=[0, 1]),
        Verdicts(attack="pgd20", eps="16/255", broken=[0, 1, 2, 3, 4, 5]),
    ]
    results = [make.result("pgd20", 8, 0.8), make.result("pgd20", 16, 0.4)]
    write = partial(make.write_attack, n=10, clean=1.0)
    write(tmp_path / "a", student="a", model="far", results=results, verdicts=verdicts, worst=0.4)
    write(tmp_path / "b", student="b", model="near", results=results[:1], verdicts=verdicts[:1], worst=0.8)
    (group,) = grouped(tmp_path)
    summary = headline(group)
    for name in ("far", "near"):
        assert cell(summary, name, "Worst case 8/255").text.startswith("80.0")


def test_an_attack_of_other_strength_than_published_is_marked_beside_the_paper(tmp_path: Path) -> None:
    weak = make.result("pgd20", 8, 0.5).model_copy(update={"standard": False})
    make.write_train(tmp_path / "s3", student="student")
    make.write_attack(tmp_path / "s3", student="student", results=[weak])
    table = next(
        table
        for table in published_tables(models(collect([tmp_path])), full=False)
        if table.title.startswith("Table 2")
    )
    assert table.rows[1][-2].text == "50.0†"
    assert any(note.startswith("†") for note in table.notes)
