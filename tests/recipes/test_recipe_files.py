"""Every recipe that comes with rnascl: it is read, says what the paper says, and takes its first steps."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.artifacts.store import write_document
from rnascl_cli.distill.gumbel import temperature_at
from rnascl_cli.engine.optimise import learning_rate
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.recipes import SGD, CosineSchedule, Recipe, StepSchedule, find_recipe, read_recipe_file, resolve
from rnascl_cli.recipes import recipes_folder as folder
from rnascl_cli.spaces import SPACES
from rnascl_cli.stages.adv_finetune import adv_finetune
from rnascl_cli.stages.derive import derive
from rnascl_cli.stages.search import search
from rnascl_cli.stages.train import train

FILES = sorted(folder().rglob("*.toml"))
NAMES = [str(path.relative_to(folder()).with_suffix("")) for path in FILES]
TABLE_1 = [f"cifar10/rnas-cl-{space}-wrt34{end}" for space in ("s3", "s5", "s7", "m", "l") for end in ("", "-trades")]


def recipe_named(name: str) -> Recipe:
    return resolve([read_recipe_file(find_recipe(name))])


def keys(table: dict[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value


@pytest.mark.unit
def test_all_recipes_are_there() -> None:
    imagenet = [f"imagenet100/rnas-cl-{space}-wrt50" for space in ("is", "im", "i")]
    assert sorted(NAMES) == sorted([*TABLE_1, "cifar10/paper-code", *imagenet, "smoke/quickstart", "smoke/tiny"])


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_says_what_it_is_for(name: str) -> None:
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
@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_has_section_4_1s_settings(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.space == name.split("-")[2].upper()
    assert (recipe.teacher, recipe.data.spec, recipe.data.limit_train) == ("wrt34", "cifar10", None)
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
    assert (recipe.search.paradigm, recipe.search.weight_share) == ("rnas-cl", 0.8)
    if name.endswith("-trades"):
        fine = recipe.adv_finetune
        assert (fine.method, fine.epochs, fine.beta, fine.perturbation.steps) == ("trades", 20, 6.0, 10)
        assert (fine.perturbation.eps, fine.perturbation.step_size) == (8 / 255, 2 / 255)
    assert {"fgsm", "pgd20", "mi-fgsm"} <= set(recipe.attack.attacks)
    assert (recipe.attack.eps, recipe.attack.protocol) == (("8/255",), "pixel")


@pytest.mark.unit
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet100/")])
def test_imagenet_has_section_4_1s_settings(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.space == name.split("-")[2].upper()
    for settings, epochs in ((recipe.search, 100), (recipe.train, 200)):
        assert (settings.epochs, settings.batch_size) == (epochs, 256)
        assert settings.optimiser == SGD(lr=0.05, momentum=0.9, weight_decay=4e-5)
        assert settings.schedule == CosineSchedule(kind="cosine")


@pytest.mark.unit
def test_paper_code_differs_where_the_notes_say() -> None:
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


def two_steps(name: str, teacher: Path) -> Recipe:
    """The recipe with twenty digits in batches of ten, one epoch, and a small teacher."""
    short = {"epochs": 1, "batch_size": 10}
    return resolve(
        [
            read_recipe_file(find_recipe(name)),
            {
                "teacher": str(teacher),
                "device": "cpu",
                "data": {"spec": "digits", "limit_train": 20, "limit_test": 10, "holdout": 0.0},
                "search": short,
                "train": short,
                "adv_finetune": short | {"perturbation": {"steps": 2}},
            },
        ]
    )


@pytest.mark.unit
@pytest.mark.parametrize("name", [name for name in TABLE_1 if name.endswith("-trades")])
def test_adversarial_rows_search_and_train_as_the_others(name: str) -> None:
    with_trades, without = recipe_named(name), recipe_named(name.removesuffix("-trades"))
    assert (with_trades.search, with_trades.train) == (without.search, without.train)


@pytest.mark.pipeline
@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-trades")])
def test_two_steps_of_the_search(name: str, tmp_path: Path, tiny_teacher: Path) -> None:
    document = search(two_steps(name, tiny_teacher), RunDirectory.claim(tmp_path / "run"))
    assert document.space == recipe_named(name).space
    assert len(document.history) == 1
    assert any(logit != 0 for block in document.width_logits for logit in block)


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["cifar10/rnas-cl-s3-wrt34-trades", "cifar10/paper-code", "smoke/quickstart"])
def test_two_steps_of_the_other_stages(name: str, tmp_path: Path, tiny_teacher: Path) -> None:
    recipe = two_steps(name, tiny_teacher)
    search(recipe, RunDirectory.claim(tmp_path / "search"))
    derived = derive(tmp_path / "search")
    write_document(tmp_path / "derived.json", derived)
    trained = train(derived, recipe, RunDirectory.claim(tmp_path / "train"))
    tuned = adv_finetune(tmp_path / "train", recipe, RunDirectory.claim(tmp_path / "fine"))
    assert (len(trained.history), len(tuned.history)) == (1, 1)
