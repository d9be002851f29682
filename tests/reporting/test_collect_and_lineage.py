"""Finding runs, and telling by sha256 what came from what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.published import TABLE_1, TABLES
from rnascl_cli.reporting.tables.provenance import provenance_entry
from rnascl_cli.reporting.tables.published import match
from rnascl_cli.reporting.tables.summary import model_tables
from rnascl_cli.reporting.tables.table import EMPTY
from tests.reporting import factories as make


def test_runs_are_found_at_any_depth_and_named_without_machine_paths(tmp_path: Path) -> None:
    make.write_chain(tmp_path / "runs" / "deep" / "er")
    make.write_search(tmp_path / "runs" / "other")
    runs = collect([tmp_path / "runs"])
    assert {found.run for found in runs.artifacts} == {
        "other",
        "deep/er/s3",
        "deep/er/s3-train",
        "deep/er/s3-trades",
    }


def test_one_run_is_named_by_its_folder(tmp_path: Path) -> None:
    make.write_search(tmp_path / "s3")
    assert [found.run for found in collect([tmp_path / "s3"]).artifacts] == ["s3"]


def test_overlapping_paths_count_once(tmp_path: Path) -> None:
    make.write_chain(tmp_path / "runs")
    once, twice = collect([tmp_path / "runs"]), collect([tmp_path / "runs" / "s3-train", tmp_path / "runs"])
    assert len(once.artifacts) == len(twice.artifacts) == 6


def test_hidden_folders_are_not_entered(tmp_path: Path) -> None:
    make.write_search(tmp_path / "runs" / "s3")
    make.write_search(tmp_path / "runs" / ".trash" / "old")
    assert [found.run for found in collect([tmp_path / "runs"]).artifacts] == ["s3"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.mkdir(), "no run found"),
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.write_text("{}"), "is a file"),
    ],
    ids=["empty", "absent", "file"],
)
def test_what_holds_no_run_is_a_user_error(tmp_path: Path, prepare, message: str) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "runs")
    with pytest.raises(UserError, match=message):
        collect([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "train"', "not a JSON document"),
        ('{"kind": "search", "schema_version": 1}', "'train' document is needed"),
        ('{"kind": "train", "schema_version": 99}', "schema_version"),
        ("[]", "not an rnascl document"),
    ],
)
def test_a_damaged_document_is_a_user_error_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        collect([tmp_path])
    assert "run/train.json" in str(caught.value)


def test_the_chain_is_linked_by_hash(tmp_path: Path) -> None:
    found = {model.name: model for model in models(collect([make.write_chain(tmp_path / "runs")]))}
    assert list(found) == ["s3-trades", "s3-train"]
    robust = found["s3-trades"]
    assert robust.origin == "search (s3) → derive (s3-train) → train (s3-train) → adv-finetune (s3-trades)"
    assert robust.trained == "rnas-cl + trades"
    assert [attack.run for attack in robust.attacks] == ["s3-trades"]
    assert found["s3-train"].trained == "rnas-cl"


def test_perturbed_images_from_scratch_and_in_the_search_are_said(tmp_path: Path) -> None:
    """And such students stand beside no row of the paper, whose students first meet perturbed images in fine-tuning."""
    runs = make.write_chain(tmp_path / "runs")
    plain = {model.name: model for model in models(collect([runs]))}
    assert match(plain["s3-train"], TABLE_1) is not None
    assert match(plain["s3-trades"], TABLE_1) is not None
    path = runs / "s3-train" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "rslad"}))
    found = {model.name: model for model in models(collect([runs]))}
    assert (found["s3-train"].trained, found["s3-train"].finetuned) == ("rnas-cl, rslad from scratch", None)
    assert found["s3-trades"].trained == "rnas-cl, rslad from scratch + trades"
    assert match(found["s3-train"], TABLE_1) is None
    assert match(found["s3-trades"], TABLE_1) is None
    made = found["s3-train"].artifact
    assert made is not None
    searched = replace(found["s3-train"], artifact=plain["s3-train"].artifact)
    assert searched.search is not None
    robust = searched.search.document.model_copy(update={"robust": "trades"})
    searched = replace(searched, search=replace(searched.search, document=robust))
    assert searched.trained == "rnas-cl, robust search (trades)"
    assert match(searched, TABLE_1) is None


def test_saved_weights_are_described(tmp_path: Path) -> None:
    runs = make.write_chain(tmp_path / "runs")
    path = runs / "s3-train" / "train.json"
    before = collect([runs]).trainings[0]
    assert "saved weights" not in dict(provenance_entry(before).facts)
    own = {"average": "ema", "best_epoch": 3, "validation": {"clean": 0.875, "robust": 0.4321}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    facts = dict(provenance_entry(collect([runs]).trainings[0]).facts)
    assert facts["saved weights"] == (
        "moving average of the weights; epoch 3 of 8, best on held-out images (clean 87.5%, PGD 43.2%)"
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | {"average": None}))  # from before SWA began
    facts = dict(provenance_entry(collect([runs]).trainings[0]).facts)
    assert facts["saved weights"] == "epoch 3 of 8, best on held-out images (clean 87.5%, PGD 43.2%)"


def test_names_of_folders_do_not_link(tmp_path: Path) -> None:
    """A derived document of another search in the neighbouring folder is not taken for this training's."""
    make.write_search(tmp_path / "runs" / "s3", seed=0)
    make.write_derived(tmp_path / "runs" / "s3-derived", make.sha256("a search that is not given"))
    make.write_train(tmp_path / "runs" / "s3-train", student="student")
    (model,) = models(collect([tmp_path / "runs"]))
    assert model.origin == "search (unknown origin) → derive (unknown origin) → train (s3-train)"


def test_an_attacked_file_is_a_teacher_by_hash_or_of_unknown_origin(tmp_path: Path) -> None:
    make.write_train(tmp_path / "runs" / "s3-train", student="student")
    make.write_attack(tmp_path / "runs" / "a", student="teacher", model="/somewhere/r18.safetensors")
    make.write_attack(tmp_path / "runs" / "b", student="stranger", model="found.safetensors")
    found = {model.name: model for model in models(collect([tmp_path / "runs"]))}
    assert found["r18.safetensors"].kind == "teacher"
    assert found["found.safetensors"].kind == "unknown"
    assert "unknown origin" in found["found.safetensors"].origin


def test_copies_of_a_document_are_one_model(tmp_path: Path) -> None:
    make.write_train(tmp_path / "runs" / "one", student="student")
    (tmp_path / "runs" / "copy").mkdir()
    (tmp_path / "runs" / "copy" / "train.json").write_bytes((tmp_path / "runs" / "one" / "train.json").read_bytes())
    assert [model.name for model in models(collect([tmp_path / "runs"]))] == ["copy"]


def test_a_student_of_a_rival_loss_is_named_by_it_and_is_no_row_of_the_paper(tmp_path: Path) -> None:
    derived = make.write_derived(tmp_path / "sp", "0" * 64)
    make.write_train(tmp_path / "sp", student="sp", derived_sha256=derived, paradigm="standard", distill="sp")
    make.write_train(tmp_path / "ce", student="ce", derived_sha256=derived, paradigm="standard")
    make.write_finetune(tmp_path / "sp-fine", student="fine", source="sp", paradigm="standard", distill="sp")
    make.write_finetune(tmp_path / "sp-kl", student="kl", source="sp", paradigm="kl", distill="sp")
    found = {model.name: model for model in models(collect([tmp_path]))}
    trained = {name: model.trained for name, model in found.items()}
    assert trained == {"sp": "sp", "ce": "standard", "sp-fine": "sp + trades", "sp-kl": "sp, then kl + trades"}
    assert all(model.tutors is None for model in found.values())
    assert [match(model, TABLES[1]) is not None for model in (found["ce"], found["sp"])] == [True, False]
    assert match(found["sp-fine"], TABLES[0]) is None
    # The teacher of the rival is the fine-tuned student's too, though its own document names none.
    for name, seen in (("sp", True), ("sp-fine", True), ("ce", False)):
        (table,) = model_tables([found[name]])
        assert (table.rows[0][3].text != EMPTY) is seen
    alone = {model.name: model for model in models(collect([tmp_path / "sp-fine"]))}
    assert alone["sp-fine"].trained == "sp + trades"
