"""Study files: the built-in ones are valid, and errors are reported before any step runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes.base import leaves
from rnascl_cli.recipes.load import STUDIES, recipes_folder
from rnascl_cli.recipes.study import find_study, read_study
from rnascl_cli.stages.study.plan import plan_study

pytestmark = pytest.mark.unit

NAMES = sorted(path.stem for path in (recipes_folder() / STUDIES).glob("*.toml"))
SOUND = """
title = "t"
spaces = ["S3"]
reference = "standard"
[[arm]]
name = "standard"
[[arm]]
name = "other"
network_of = "standard"
[[finetuning]]
name = "trades"
[[measurement]]
name = "pgd"
of = ["trades"]
"""


def study_file(folder: Path, text: str) -> Path:
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return folder / "study.toml"


@pytest.mark.parametrize("name", NAMES)
def test_built_in_studies_can_be_planned(name: str) -> None:
    study = read_study(find_study(name))
    plan = plan_study(study)
    assert {place.arm for place in plan.students} == {arm.name for arm in study.arm}
    assert {place.stage for place in plan.students} == {"train", *(item.name for item in study.finetuning)}


def test_main_study_has_all_compared_arms() -> None:
    arms = {arm.name: arm for arm in read_study(find_study("cifar10-cpu")).arm}
    assert {arms[name].search.get("paradigm", "rnas-cl") for name in ("standard", "kl", "icc", "rnas-cl")} == {
        "standard",
        "kl",
        "icc",
        "rnas-cl",
    }
    assert {arm.tutors for arm in arms.values()} >= {"searched", "random", "same-depth", "last-layer"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('reference = "standard"', 'reference = "standart"', "did you mean 'standard'"),
        ('network_of = "standard"', 'network_of = "nobody"', "network_of must name an arm that searches"),
        ('name = "other"', 'name = "standard"', "two arms are called 'standard'"),
        ('of = ["trades"]', 'of = ["trade"]', "no stage 'trade'"),
        ('title = "t"', 'title = "t"\nseed = 3', "unknown key 'seed'"),
        ('spaces = ["S3"]', "spaces = []", "spaces"),
        ('network_of = "standard"', 'network_of = "standard"\nsearch = {epochs = 1}', "leave one out"),
        ('name = "trades"', 'name = "train"', "is called 'train'"),
        ('title = "t"', "title = ", "not TOML"),
    ],
)
def test_invalid_study_files_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SOUND
    with pytest.raises(UserError, match=said):
        read_study(study_file(tmp_path, SOUND.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('spaces = ["S3"]', 'spaces = ["S4"]', "S4"),
        ('name = "pgd"', 'name = "pgd"\nsettings = {epz = "8/255"}', r"measurement 'pgd'.*attack\.epz.*did you mean"),
        ('name = "standard"', 'name = "standard"\ntrain = {epochs = 0}', r"arm 'standard'.*train\.epochs"),
        ('name = "trades"', 'name = "trades"\nsettings = {method = "nothing"}', "finetuning 'trades'"),
    ],
)
def test_settings_are_checked_before_any_step(tmp_path: Path, old: str, new: str, said: str) -> None:
    study = read_study(study_file(tmp_path, SOUND.replace(old, new, 1)))
    with pytest.raises(UserError, match=said):
        plan_study(study)


def test_missing_study() -> None:
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        find_study("smoek")


def test_leaves_yield_tags_first() -> None:
    table = {"optimiser": {"lr": 0.1, "name": "adam"}, "epochs": 3}
    assert list(leaves(table)) == [("optimiser.name", "adam"), ("optimiser.lr", 0.1), ("epochs", 3)]
