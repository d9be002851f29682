"""``teacher list``, ``show`` and ``measure``: what is published of a teacher, and what was measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.artifacts.store import read_document, sha256_file, write_document
from rnascl_cli.recipes.settings import AttackSettings
from rnascl_cli.stages.attack import attack as attack_stage
from rnascl_cli.stages.attack.plan import AttackPlan, plan_attack
from rnascl_cli.stages.teacher import registry
from rnascl_cli.stages.teacher.registry import measured_folder, usual_eps
from rnascl_cli.teachers.load import write_teacher
from tests.command import done, refused
from tests.teachers.conftest import random_teacher

MEASURE = ("--data", "digits", "--limit-test", 20, "--device", "cpu")
PUBLISHED = {"name": "Nobody2030", "data": "digits", "eps": "4/255", "clean": 0.9, "autoattack": 0.5}
SELF_TEST = {"clean": 0.85, "pgd20": 0.55, "eps": "4/255", "n": 256, "data": "digits", "fingerprint": "f" * 64}


@pytest.fixture
def mine(own_cache: Path) -> Path:
    """A teacher in the cache that knows what is published of it and what its self-test found."""
    path = own_cache / "teachers" / "mine.safetensors"
    about = {
        "source": "a test",
        "source_url": "https://example.org/mine.pt",
        "source_sha256": "a" * 64,
        "published": PUBLISHED,
        "measured": SELF_TEST,
    }
    write_teacher(path, random_teacher("r8"), architecture="r8", num_classes=10, about=about)
    return path


def row(name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads(done("teacher", "list", "--json").out)
    return next(found for found in rows if found["name"] == name)


def line(name: str) -> str:
    return next(text for text in done("teacher", "list").out.splitlines() if text.startswith(name))


def test_published_and_self_test_stand_side_by_side(mine: Path) -> None:
    assert (row("mine")["published"], row("mine")["measured"], row("mine")["attacked"]) == (PUBLISHED, SELF_TEST, None)
    assert "0.9000 / 0.5000" in line("mine")
    assert "0.8500 / 0.5500 / -" in line("mine")
    assert "not here: rnascl teacher fetch wrt34" in line("wrt34")
    assert "0.8534 / 0.5342" in line("wrt34")
    assert "0.6846 / 0.3814" in line("wrt50")


def test_measuring_leaves_the_file_as_it_is_and_its_result_beside_it(mine: Path) -> None:
    before = sha256_file(mine)
    outcome = done("teacher", "measure", "mine", *MEASURE, "--attack", "fgsm,pgd20")
    path = mine.parent / "mine.measured" / "attack.json"
    assert outcome.out == f"{path}\n"
    assert sha256_file(mine) == before
    document = read_document(path, AttackDocument)
    fgsm, pgd20 = (result.accuracy for result in document.results)
    found = json.loads(done("teacher", "show", "mine", "--json").out)["attacked"]
    assert found == row("mine")["attacked"]
    assert (found["clean"], found["pgd20"], found["autoattack"]) == (document.clean_accuracy, pgd20, None)
    assert (found["accuracies"], found["eps"], found["n"]) == ({"fgsm": fgsm, "pgd20": pgd20}, "4/255", 20)
    assert found["data"] == "digits"
    assert f"{document.clean_accuracy:.4f} / {pgd20:.4f} / -" in line("mine")
    assert "attack.json: already exists" in refused("teacher", "measure", "mine", *MEASURE)
    done("teacher", "measure", "mine", *MEASURE, "--force", "--attack", "fgsm", "--eps", "8/255")
    assert row("mine")["attacked"]["accuracies"].keys() == {"fgsm"}
    assert row("mine")["attacked"]["eps"] == "8/255"


def test_autoattack_is_measured_by_default_and_shown(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack takes a minute even here, so FGSM stands in for it: what is kept and shown is the same."""
    asked: list[AttackSettings] = []

    def quick(plan: AttackPlan, *, resume: bool) -> AttackDocument:
        directory, recipe = plan.directory, plan.recipe
        asked.append(recipe.attack)
        settings = recipe.attack.model_copy(update={"attacks": ("pgd20", "fgsm")})
        shortened = plan_attack(plan.target, recipe.model_copy(update={"attack": settings}), directory)
        document = attack_stage.attack(shortened, resume=resume)
        renamed = [result.model_copy(update={"attack": "aa"}) for result in document.results if result.attack == "fgsm"]
        document = document.model_copy(update={"results": [document.results[0], *renamed]})
        write_document(directory / "attack.json", document)
        return document

    monkeypatch.setattr(registry, "attack", quick)
    report = json.loads(done("teacher", "measure", "mine", *MEASURE, "--json").out)
    assert [(settings.attacks, settings.eps) for settings in asked] == [(("pgd20", "aa"), ("4/255",))]
    pgd20, autoattack = (result["accuracy"] for result in report["results"])
    assert row("mine")["attacked"]["autoattack"] == autoattack
    assert f"{report['clean_accuracy']:.4f} / {pgd20:.4f} / {autoattack:.4f}" in line("mine")


def test_a_measurement_of_another_file_does_not_count(mine: Path) -> None:
    done("teacher", "measure", "mine", *MEASURE, "--attack", "fgsm")
    write_teacher(mine, random_teacher("r8", num_classes=9), architecture="r8", num_classes=9, about={})
    outcome = done("teacher", "list", "--json")
    rows = {found["name"]: found for found in json.loads(outcome.out)}
    assert rows["mine"]["attacked"] is None
    assert "was measured on another file than this teacher" in " ".join(outcome.err.split())
    (mine.parent / "mine.measured" / "attack.json").write_text("{}")
    outcome = done("teacher", "show", "mine")
    assert "not an rnascl document" in " ".join(outcome.err.split())


def test_show_says_where_it_came_from_and_what_it_reaches(mine: Path) -> None:
    text = done("teacher", "show", "mine").out
    for part in (
        "a test",
        "https://example.org/mine.pt",
        "a" * 64,
        "autoattack 0.5, clean 0.9",
        "n 256, pgd20 0.55",
    ):
        assert part in text
    assert "{" not in text
    layers = [tuple(words.split()) for words in text.partition("\n\n")[2].splitlines()]
    assert layers[0] == ("layer", "channels", "side")
    assert (layers[1], layers[-1]) == (("conv1", "16", "32"), ("layer4.0.shortcut.0", "128", "4"))


def test_eps_is_that_of_its_publication_or_its_kind(mine: Path, own_cache: Path, tmp_path: Path) -> None:
    assert usual_eps("mine") == "4/255"
    plain = tmp_path / "plain.safetensors"
    write_teacher(plain, random_teacher("r8"), architecture="r8", num_classes=10, about={})
    assert usual_eps(str(plain)) == "8/255"
    assert usual_eps("timm:test_resnet") == "4/255"
    assert measured_folder(str(plain)) == tmp_path / "plain.measured"
    assert measured_folder("timm:test_resnet") == own_cache / "teachers" / "timm-test_resnet.r160_in1k.measured"


def test_measure_names_what_is_wrong(mine: Path) -> None:
    assert "no cached teacher 'mime'" in refused("teacher", "measure", "mime", *MEASURE)
    assert "--data" in refused("teacher", "measure", "mine")
    write_teacher(mine, random_teacher("r8", num_classes=9), architecture="r8", num_classes=9, about={})
    assert "has 9 classes" in refused("teacher", "measure", "mine", *MEASURE)
    assert not (mine.parent / "mine.measured").exists()
