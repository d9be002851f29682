"""Built-in recipes: they are valid, have the settings of the paper, and run two steps of every stage."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from rnascl_cli.artifacts.documents import Baseline
from rnascl_cli.attacks.registry import AttackOptions, build_attacks
from rnascl_cli.distill.gumbel import temperature_at
from rnascl_cli.engine.optimizer import learning_rate
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.recipes.adversarial import TRADES, FastAT
from rnascl_cli.recipes.load import STUDIES, find_recipe, read_recipe_file, resolve
from rnascl_cli.recipes.load import recipes_folder as folder
from rnascl_cli.recipes.settings import SGD, CosineSchedule, Recipe, StepSchedule
from rnascl_cli.reporting.published import TABLES, PublishedRow, PublishedTable
from rnascl_cli.spaces import SPACES
from rnascl_cli.stages.attack.attack import attack
from rnascl_cli.stages.attack.plan import plan_attack
from rnascl_cli.stages.attack.target import find_target
from rnascl_cli.stages.search.derive import derive
from rnascl_cli.stages.search.search import search
from rnascl_cli.stages.teacher.train import train_teacher
from rnascl_cli.stages.training.adv_finetune import adv_finetune
from rnascl_cli.stages.training.train import train
from rnascl_cli.teachers.architectures import architecture_named
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from tests.photographs import write_photographs

FILES = sorted(path for path in folder().rglob("*.toml") if path.parent.name != STUDIES)
NAMES = [str(path.relative_to(folder()).with_suffix("")) for path in FILES]
TABLE_1 = [f"cifar10/rnas-cl-{space}-wrt34{end}" for space in ("s3", "s5", "s7", "m", "l") for end in ("", "-trades")]
TABLE_2 = [  # beside three rows that stand in Table 1 too
    *(f"cifar10/standard-{space}" for space in ("s3", "s5", "s7")),
    *(f"cifar10/rnas-cl-{space}-{teacher}" for space in ("s3", "s5", "s7") for teacher in ("r50", "r18")),
]
TABLE_3 = [f"imagenet100/rnas-cl-i-{teacher}{end}" for teacher in ("r18", "r50", "wrt50") for end in ("", "-trades")]
TABLE_5 = ["imagenet/standard-i-fast-at", "imagenet/rnas-cl-i-wrt50-fast-at"]
FIGURE_11 = [f"cifar10/distill/{name}-s3-wrt34" for name in get_args(Baseline)]
OTHERS = [
    "cifar10/paper-code",
    "cifar10/rnas-cl-s3-r18-gamma400",
    "cifar10/rnas-cl-s5-9m-r18",
    "cifar10/rnas-cl-s5-r18-gamma400",
    "imagenet100/rnas-cl-im-wrt50",
    "imagenet100/rnas-cl-is-wrt50",
    "smoke/quickstart",
    "smoke/tiny",
]
CLASSES = [str(number) for number in range(10)]  # as many as the tiny teacher's
SHOWN = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd10": "PGD-10 at 4/255",
    "mi-fgsm": "MI-FGSM",
    "cw": "CW",
    "aa": "AutoAttack",
}


def recipe_named(name: str) -> Recipe:
    return resolve([read_recipe_file(find_recipe(name))])


def keys(table: dict[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value


@pytest.mark.unit
def test_recipe_list() -> None:
    assert sorted(NAMES) == sorted([*TABLE_1, *TABLE_2, *TABLE_3, *TABLE_5, *FIGURE_11, *OTHERS])
    assert len(NAMES) == 10 + 9 + 6 + 2 + 7 + 8


def recipe_of(table: PublishedTable, row: PublishedRow) -> str:
    """The recipe of one of the paper's own rows; Table 5 gives no space, I is ours."""
    taught = f"-{row.teacher}" if row.teacher else ""
    return f"{table.dataset}/{row.paradigm}-{(row.space or 'I').lower()}{taught}" + (
        f"-{row.finetuned}" if row.finetuned else ""
    )


OWN_ROWS = [
    (table, row)
    for table in (TABLES[0], TABLES[1], TABLES[2], TABLES[3], TABLES[4])
    for row in table.rows
    if row.paradigm is not None
]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("table", "row"), OWN_ROWS, ids=[f"table-{table.number}-{recipe_of(table, row)}" for table, row in OWN_ROWS]
)
def test_every_row_of_rnas_cl_in_the_paper_has_a_recipe(table: PublishedTable, row: PublishedRow) -> None:
    name = recipe_of(table, row)
    assert name in NAMES
    text = find_recipe(name).read_text(encoding="utf-8")
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"Table {table.number}" in comment.splitlines()[0]
    assert row.method in comment.splitlines()[0]
    recipe = recipe_named(name)
    assert set(row.measures) - {"clean"} <= set(recipe.attack.attacks)
    assert recipe.attack.eps == (table.eps,)
    for measure, value in row.measures.items():
        assert re.search(rf"\b{SHOWN[measure]} {value:g}[,\s]", comment), measure
    if row.finetuned is not None:
        assert recipe.adv_finetune.method == row.finetuned
    assert recipe.search.paradigm == {"imagenet100": "icc"}.get(table.dataset, row.paradigm)


@pytest.mark.unit
def test_four_tables_have_thirty_such_rows() -> None:
    assert len([table for table, _ in OWN_ROWS if table.number in (1, 2, 3, 5)]) == 10 + 12 + 6 + 2
    named = {recipe_of(table, row) for table, row in OWN_ROWS}
    assert named == {*TABLE_1, *TABLE_2, *TABLE_3, *TABLE_5}


@pytest.mark.unit
@pytest.mark.parametrize("name", [*TABLE_1, *TABLE_2, *TABLE_3, *TABLE_5])
def test_teacher_can_be_fetched(name: str) -> None:
    recipe, standard = recipe_named(name), "/standard-" in name
    assert (recipe.teacher is None) == standard
    if recipe.teacher is not None:
        image = 32 if name.startswith("cifar10/") else 224
        assert architecture_named(PUBLIC[recipe.teacher].architecture).input_size == image
    assert (recipe.search.paradigm == "standard") == standard


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_and_documented(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.space in SPACES
    text = find_recipe(name).read_text(encoding="utf-8")
    assert text.startswith("# ")
    # What is written is what is used.
    for key, value in keys(tomllib.loads(text)):
        found: Any = recipe.model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        if isinstance(value, str) and "/255" in value:
            value = int(value.split("/")[0]) / 255
        if found != value:
            assert key == "attack.eps", key


@pytest.mark.unit
@pytest.mark.parametrize("name", [*TABLE_1, *TABLE_2])
def test_cifar_recipes_have_the_settings_of_section_4_1(name: str) -> None:
    recipe = recipe_named(name)
    words = name.removeprefix("cifar10/").removeprefix("rnas-cl-").removeprefix("standard-").split("-")
    assert recipe.space == words[0].upper()
    assert recipe.teacher == (words[1] if len(words) > 1 else None)
    assert (recipe.data.spec, recipe.data.limit_train, recipe.data.holdout) == ("cifar10", None, 0.0)
    for settings in (recipe.search, recipe.train):
        assert (settings.epochs, settings.batch_size) == (100, 128)
        assert settings.optimiser == SGD(lr=0.1, momentum=0.9, weight_decay=2e-4)
        rates = [learning_rate(settings.schedule, 0.1, epoch / 100) for epoch in (0, 74, 75, 89, 90, 99)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        assert settings.attention.gamma == 1.0
    gumbel = recipe.search.gumbel
    warm = temperature_at(
        10, epochs=100, start=gumbel.temperature, decay=gumbel.decay, decay_epochs=gumbel.decay_epochs
    )
    assert warm == pytest.approx(5.0 * 2.718281828**-0.45)
    assert recipe.search.weight_share == 0.8
    if name.endswith("-trades"):
        fine = recipe.adv_finetune
        assert (fine.epochs, fine.robust) == (20, TRADES(beta=6.0, eps=8 / 255, step_size=2 / 255, steps=10))
    assert "pgd20" in recipe.attack.attacks
    assert (recipe.attack.eps, recipe.attack.protocol) == (("8/255",), "pixel")


@pytest.mark.unit
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet")])
def test_imagenet_recipes_have_the_settings_of_section_4_1(name: str) -> None:
    recipe = recipe_named(name)
    dataset, _, words = name.partition("/")
    assert recipe.space == words.removeprefix("rnas-cl-").removeprefix("standard-").split("-")[0].upper()
    assert (recipe.data.spec, recipe.data.augment) == (dataset, "resized-crop-flip")
    assert recipe.data.keep == "auto"
    for settings, epochs in ((recipe.search, 100), (recipe.train, 200)):
        assert (settings.epochs, settings.batch_size) == (epochs, 256)
        assert settings.optimiser == SGD(lr=0.05, momentum=0.9, weight_decay=4e-5)
        assert settings.schedule == CosineSchedule(kind="cosine")


@pytest.mark.unit
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet")])
def test_imagenet_recipes_are_fine_tuned_as_in_their_table(name: str) -> None:
    recipe, tables = recipe_named(name), tomllib.loads(find_recipe(name).read_text(encoding="utf-8"))
    fine = recipe.adv_finetune
    if name in TABLE_5:
        assert fine.robust == FastAT(eps=4 / 255)
        assert (recipe.attack.attacks, recipe.attack.eps) == (("pgd10",), ("4/255",))
    elif name.endswith("-trades"):
        assert (fine.epochs, fine.robust) == (20, TRADES(beta=6.0, eps=8 / 255, steps=10))
    else:
        assert "adv_finetune" not in tables
    if "adv_finetune" in tables:
        assert (fine.batch_size, fine.optimiser, fine.schedule) == (256, recipe.train.optimiser, recipe.train.schedule)


@pytest.mark.unit
def test_paper_code_recipe() -> None:
    recipe = recipe_named("cifar10/paper-code")
    assert recipe.search.gumbel_optimiser.name == "adam"
    assert (recipe.search.gumbel_optimiser.lr, recipe.search.gumbel_optimiser.weight_decay) == (0.1, 1e-4)
    assert (recipe.search.cost.scale, recipe.search.cost.exponent) == (0.2, 0.5)
    for settings in (recipe.search, recipe.train):
        assert (settings.attention.map_size, settings.attention.norm) == (14, "batch")
    assert (recipe.train.kl.weight, recipe.train.kl.direction) == (0.0, "teacher-student")
    assert recipe.attack.protocol == "paper-code"
    assert recipe.attack.step_size == pytest.approx(0.8 / 255)
    assert recipe.train.schedule == StepSchedule()


@pytest.mark.unit
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-trades")])
def test_adversarial_recipes_search_and_train_like_the_others(name: str) -> None:
    with_trades, without = recipe_named(name), recipe_named(name.removesuffix("-trades"))
    assert (with_trades.search, with_trades.train) == (without.search, without.train)


@pytest.mark.unit
@pytest.mark.parametrize("name", FIGURE_11)
def test_baseline_recipes_train_the_network_of_table_1_with_published_settings(name: str) -> None:
    recipe, ours = recipe_named(name), recipe_named("cifar10/rnas-cl-s3-wrt34")
    rival = name.removeprefix("cifar10/distill/").partition("-")[0]
    assert recipe.train.distill == resolve([{"train": {"distill": {"name": rival}}}]).train.distill
    assert recipe.train.model_copy(update={"distill": None}) == ours.train
    assert (recipe.teacher, recipe.data, recipe.search) == (ours.teacher, ours.data, ours.search)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 64-pixel squares: for the ImageNet recipes, whose 224 pixels tests/data takes."""
    return write_photographs(tmp_path_factory.mktemp("squares"), CLASSES, train=1, test=1, shapes=[(64, 64)])


def two_steps(name: str, *, teacher: Path, squares: Path) -> Recipe:
    """The recipe with four images in batches of two, one epoch, and a small teacher with random weights."""
    short = {"epochs": 1, "batch_size": 2}
    spec = f"folder:{squares}" if name.startswith("imagenet") else "digits"
    recipe = recipe_named(name)
    return resolve(
        [
            read_recipe_file(find_recipe(name)),
            {
                "teacher": None if recipe.teacher is None and recipe.search.paradigm == "standard" else str(teacher),
                "device": "cpu",
                "precision": "fp32",
                "data": {"spec": spec, "limit_train": 4, "limit_test": 2, "holdout": 0.0},
                "search": short,
                "train": short,
                "adv_finetune": short,
                # AutoAttack alone would take a minute; tests/attacks runs it.
                "attack": {"attacks": [attack for attack in recipe.attack.attacks if attack != "aa"], "batch_size": 2},
                "teacher_train": short,
            },
        ]
    )


@pytest.mark.pipeline
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_every_stage(name: str, tmp_path: Path, tiny_teacher: Path, squares: Path) -> None:
    recipe = two_steps(name, teacher=tiny_teacher, squares=squares)
    build_attacks(recipe_named(name).attack.attacks, AttackOptions(), norm="Linf")
    searched = search(recipe, RunDirectory.open(tmp_path / "search"))
    assert searched.space == recipe_named(name).space
    assert any(logit != 0 for block in searched.width_logits for logit in block)
    assert bool(searched.tutor_logits) == (recipe.search.paradigm != "standard")
    derived = derive(tmp_path / "search")
    trained = train(derived, recipe, RunDirectory.open(tmp_path / "train"))
    last = tmp_path / "train"
    if "adv_finetune" in tomllib.loads(find_recipe(name).read_text(encoding="utf-8")):
        last = tmp_path / "fine"
        tuned = adv_finetune(tmp_path / "train", recipe, RunDirectory.open(last))
        assert (tuned.method, len(tuned.history)) == (recipe.adv_finetune.method, 1)
    attacked = attack(plan_attack(find_target(str(last)), recipe, last))
    assert [result.attack for result in attacked.results] == list(recipe.attack.attacks)
    assert (len(searched.history), len(trained.history), attacked.n) == (1, 1, 2)
    assert trained.distill == (recipe.train.distill.name if recipe.train.distill else None)
    assert (trained.provenance.data.train_images if trained.provenance.data else 0) == 4


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["smoke/quickstart", "smoke/tiny"])
def test_two_steps_of_the_teacher(name: str, tmp_path: Path, tiny_teacher: Path, squares: Path) -> None:
    recipe = two_steps(name, teacher=tiny_teacher, squares=squares)
    recipe = resolve(
        [recipe.model_dump(), {"data": {"limit_train": 20, "holdout": 0.5}, "teacher_train": {"batch_size": 5}}]
    )
    trained = train_teacher(recipe, tmp_path / "r8.safetensors", RunDirectory.open(tmp_path / "training"))
    assert trained.path.is_file()
