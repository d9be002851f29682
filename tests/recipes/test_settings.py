"""Merging of settings, and the errors for invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rnascl_cli.artifacts.documents import Provenance
from rnascl_cli.cli.options import RecipeOptions, build_recipe
from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.recipes.adversarial import ARD, MART, TRADES, FastAT
from rnascl_cli.recipes.load import find_recipe, parse_setting, read_recipe_file, resolve
from rnascl_cli.recipes.old_keys import upgraded
from rnascl_cli.recipes.settings import SGD, Adam, CosineSchedule, Recipe, StepSchedule

pytestmark = pytest.mark.unit


def refusal(*layers: Any) -> str:
    """The one line that laying these over the defaults gives."""
    with pytest.raises(UserError) as error:
        resolve(layers)
    assert "\n" not in str(error.value)
    return str(error.value)


def set_(*texts: str, stage: str | None = None) -> Recipe:
    """What a few --set give."""
    return resolve([parse_setting(text, stage) for text in texts])


def test_defaults_are_the_papers() -> None:
    recipe = resolve([])
    assert recipe == Recipe()
    for settings in (recipe.search, recipe.train):
        assert (settings.epochs, settings.batch_size) == (100, 128)
        assert settings.optimiser == SGD(lr=0.1, momentum=0.9, weight_decay=2e-4)
        assert settings.schedule == StepSchedule(milestones=(0.75, 0.9), factor=0.1)
        assert (settings.attention.gamma, settings.kl.weight, settings.kl.direction) == (1.0, 1.0, "student-teacher")
    assert (recipe.search.weight_share, recipe.search.paradigm) == (0.8, "rnas-cl")
    gumbel = recipe.search.gumbel
    assert (gumbel.temperature, gumbel.decay, gumbel.decay_epochs, gumbel.noise) == (5.0, 0.045, 100, "gumbel")
    assert recipe.search.cost.exponent == 1.0
    fine = recipe.adv_finetune
    assert (fine.epochs, fine.robust) == (20, TRADES(beta=6.0, eps=8 / 255, step_size=2 / 255, steps=10))


def test_later_layers_override_single_fields() -> None:
    recipe = resolve([{"search": {"epochs": 3, "batch_size": 9}}, {"search": {"epochs": 4}, "seed": 5}])
    assert (recipe.search.epochs, recipe.search.batch_size, recipe.seed) == (4, 9, 5)
    assert recipe.train.epochs == 100


def test_layers_are_not_changed() -> None:
    layer: dict[str, Any] = {"search": {"attention": {"gamma": 2.0}}}
    resolve([layer, {"search": {"attention": {"gamma": 3.0}}}])
    assert layer == {"search": {"attention": {"gamma": 2.0}}}
    assert resolve([layer]).search.attention.gamma == 2.0


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().search.epochs = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("search.attention.gamma=10", 10.0),
        ("search.attention.gamma = 1e1", 10.0),
        (" search.attention.gamma =10.0 ", 10.0),
    ],
)
def test_set_with_a_full_key(text: str, value: float) -> None:
    for stage in (None, "search", "train"):
        assert set_(text, stage=stage).search.attention.gamma == value


def test_set_inside_a_stage() -> None:
    recipe = set_("attention.gamma=10", "epochs=3", stage="train")
    assert (recipe.train.attention.gamma, recipe.train.epochs) == (10.0, 3)
    assert (recipe.search.attention.gamma, recipe.search.epochs) == (1.0, 100)


def test_set_of_each_type() -> None:
    recipe = set_(
        "seed=7",
        "space=S3",
        "teacher='r18'",
        "data.limit_train=40",
        "data.spec=folder:/a b",
        "search.paradigm=icc",
        "search.schedule.milestones=[0.5]",
        "attack.paper_code_clamp=true",
        "adv-finetune.robust.eps=4/255",
        "adv_finetune.robust.step-size=0.01",
    )
    assert (recipe.seed, recipe.space, recipe.teacher) == (7, "S3", "r18")
    assert (recipe.data.limit_train, recipe.data.spec) == (40, "folder:/a b")
    assert (recipe.search.paradigm, recipe.attack.paper_code_clamp) == ("icc", True)
    assert recipe.search.schedule == StepSchedule(milestones=(0.5,))
    assert recipe.adv_finetune.robust == TRADES(eps=4 / 255, step_size=0.01)


def test_set_to_null(provenance: Provenance) -> None:
    recipe = set_("search.gumbel.decay_epochs=null", "data.limit_train=null", "teacher = null")
    assert recipe.search.gumbel.decay_epochs is None
    assert (recipe.data.limit_train, recipe.teacher) == (None, None)
    # So an inherited limit can be taken off again.
    whole = build_recipe("train", RecipeOptions(settings=["data.limit_train=null"]), inherited=provenance)
    assert (whole.data.limit_train, whole.data.limit_test) == (None, 20)
    assert "recipe key 'search.epochs'" in refusal(parse_setting("search.epochs=null", None))


@pytest.mark.parametrize("text", ["search.epochs", "=3", " =3", ""])
def test_set_without_key_or_equals(text: str) -> None:
    with pytest.raises(UserError, match=r"--set .*: write KEY=VALUE"):
        parse_setting(text, None)


@pytest.mark.parametrize("text", ["a.=3", ".a=3", "search..epochs=3", "x=" + "[" * 5000])
def test_malformed_keys_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        set_(text)


def test_all_unknown_keys_are_reported_with_the_nearest_known_key() -> None:
    message = refusal({"sead": 1, "search": {"epoch": 3, "attention": {"gama": 1}, "zzzzzz": 1}})
    parts = message.split("; unknown recipe key ")
    assert len(parts) == 4
    for key, hint in (("sead", "seed"), ("search.epoch", "epochs"), ("search.attention.gama", "gamma")):
        assert any(f"'{key}'; did you mean '{hint}'?" in part for part in parts), key
    assert "'search.zzzzzz' (known: attention, batch_size, " in message


def test_unknown_key_of_an_optimizer_is_reported_by_its_full_key() -> None:
    assert "unknown recipe key 'search.optimiser.lrr'; did you mean 'lr'?" in refusal(
        {"search": {"optimiser": {"lrr": 0.2}}}
    )
    assert "unknown recipe key 'train.schedule.milestone'; did you mean 'milestones'?" in refusal(
        {"train": {"schedule": {"milestone": [0.5]}}}
    )


def test_unknown_keys_and_wrong_values_are_reported_together() -> None:
    message = refusal({"search": {"epochs": 0}, "data": {"holdout": 0.9}, "xyz": 1})
    assert "recipe key 'search.epochs': Input should be greater than or equal to 1" in message
    assert "recipe key 'data.holdout'" in message
    assert "unknown recipe key 'xyz'" in message


@pytest.mark.parametrize(
    "layer",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"device": "tpu"},
        {"search": {"paradigm": "rnas"}},
        {"search": {"attention": {"gamma": float("nan")}}},
        {"search": {"attention": {"gamma": float("inf")}}},
        {"search": {"optimiser": {"name": "lion"}}},
        {"search": {"optimiser": {"name": ["sgd"]}}},
        {"search": {"optimiser": 3}},
        {"search": 3},
        {"search": [1]},
        {"seed": {"a": 1}},
        {"adv_finetune": {"robust": {"eps": "8"}}},
        {"adv_finetune": {"robust": {"eps": "x"}}},
    ],
    ids=str,
)
def test_values_out_of_range(layer: dict[str, Any]) -> None:
    assert "recipe key '" in refusal(layer)


def test_stage_that_is_not_a_table_is_refused() -> None:
    assert "search" in refusal({"search": 3}, {"search": {"epochs": 2}})


def test_eps_without_its_denominator() -> None:
    message = refusal({"adv_finetune": {"robust": {"eps": "8"}}})
    assert "8 is above 1, and pixels lie in [0, 1]; did you mean 8/255?" in message


def test_another_optimizer_resets_the_table() -> None:
    recipe = set_("search.optimiser.name=adam", "search.optimiser.lr=0.01")
    assert recipe.search.optimiser == Adam(name="adam", lr=0.01)
    recipe = set_("search.optimiser.lr=0.01")
    assert recipe.search.optimiser == SGD(lr=0.01)
    recipe = set_("search.schedule.kind=cosine")
    assert recipe.search.schedule == CosineSchedule(kind="cosine")
    back = set_("search.optimiser.name=adam", "search.optimiser.name=sgd", "search.optimiser.momentum=0.5")
    assert back.search.optimiser == SGD(momentum=0.5)


def test_another_method_keeps_shared_settings() -> None:
    recipe = set_("robust.beta=3", "robust.steps=5", "robust.method=mart", stage="adv_finetune")
    assert recipe.adv_finetune.robust == MART(steps=5)
    recipe = set_("robust.eps=4/255", "robust.steps=5", "robust.method=fast-at", stage="adv_finetune")
    assert recipe.adv_finetune.robust == FastAT(eps=4 / 255)
    assert set_("robust.method=ard", "robust.alpha=0.5", stage="train").train.robust == ARD(alpha=0.5)
    assert set_("robust.method=ard", "robust=null", stage="train").train.robust is None


def test_method_option_applies_before_set(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train.robust]\nmethod = 'trades'\nbeta = 3.0\nsteps = 5\n")

    def robust(method: str, *settings: str) -> Any:
        return build_recipe(
            "train", RecipeOptions(recipe=str(path), settings=list(settings)), method=method
        ).train.robust

    assert robust("trades") == TRADES(beta=3.0, steps=5)
    assert robust("mart", "robust.kl_weight=2") == MART(kl_weight=2.0, steps=5)
    assert robust("fast-at") == FastAT()
    with pytest.raises(UserError, match=r"^unknown recipe key 'train.robust.beta' \(known: eps, kl_weight, "):
        robust("mart", "robust.beta=2")
    with pytest.raises(UserError, match=r"^unknown recipe key 'train.robust.steps'.* \(known: eps, method\)$"):
        robust("fast-at", "robust.steps=2")


def test_keys_of_another_method_are_refused() -> None:
    message = refusal({"search": {"robust": {"method": "trades", "mart_lambda": 2.0}}})
    assert message == "unknown recipe key 'search.robust.mart_lambda' (known: beta, eps, method, step_size, steps)"


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("stop.on=clean", "train.select.metric"),
        ("stop.patience=3", "train.select.patience"),
        ("stop=null", "train.select"),
        ("attention.tap=norm", "train.attention.source"),
        ("method=trades", "train.robust.method"),
        ("perturbation.eps=4/255", "train.robust.eps"),
        ("rslad_share=0.5", "train.robust.adversarial_share"),
        ("teacher_train.method=trades", "teacher_train.robust.method"),
        ("search.robust.perturbation.steps=2", "search.robust.steps"),
    ],
)
def test_renamed_key_is_refused_with_its_new_name(text: str, new: str) -> None:
    with pytest.raises(UserError, match=rf"^recipe key '\S+' was renamed; use '{new}'$"):
        set_(text, stage="train")


def test_removed_key_is_refused() -> None:
    assert refusal({"attack": {"fold": True}}).startswith("recipe key 'attack.fold' was removed: ")


@pytest.mark.parametrize("recorded", [{"train": 3}, {"train": {"robust": 3, "perturbation": {"eps": 1}}}, {"": {}}])
def test_malformed_recorded_recipes_are_upgraded_without_errors(recorded: dict[str, Any]) -> None:
    upgraded(recorded)


def test_precedence_of_command_line_layers(tmp_path: Path, provenance: Provenance) -> None:
    # defaults < the input artifact < --recipe < --set < the command's own options
    path = tmp_path / "r.toml"
    path.write_text("seed = 11\n[data]\nlimit_test = 5\n[train]\nepochs = 30\nbatch_size = 30\nparadigm = 'icc'\n")
    common = RecipeOptions(recipe=str(path), settings=["epochs=40", "batch_size=40"])
    plain = build_recipe("train", inherited=provenance)
    assert (plain.seed, plain.teacher, plain.train.epochs) == (3, "/t/r8.safetensors", 100)
    assert (plain.data.spec, plain.data.limit_train, plain.data.limit_test) == ("digits", 40, 20)
    found = build_recipe("train", common, inherited=provenance, device="cpu", epochs=50, paradigm=None)
    assert (found.seed, found.device, found.teacher) == (11, "cpu", "/t/r8.safetensors")
    assert (found.data.limit_train, found.data.limit_test) == (40, 5)
    assert (found.train.epochs, found.train.batch_size, found.train.paradigm) == (50, 40, "icc")
    given = build_recipe("train", common, inherited=provenance, seed=12, teacher="r18", data="cifar10")
    assert (given.seed, given.teacher, given.data.spec) == (12, "r18", "cifar10")
    assert given.train.epochs == 40


def test_missing_recipe() -> None:
    with pytest.raises(
        UserError, match=r"no file 'smoke/tini' and no recipe of that name; did you mean 'smoke/tiny'\?"
    ):
        find_recipe("smoke/tini")


def test_recipe_by_path_or_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("seed = 1")
    assert find_recipe(str(tmp_path / "mine.toml")) == tmp_path / "mine.toml"
    assert find_recipe("smoke/tiny") == find_recipe("smoke/tiny.toml")


@pytest.mark.parametrize("data", [b"seed = ", b"\xff\xfe", b"x = " + b"[" * 100_000, b"seed = 1\nseed = 2"])
def test_recipe_that_is_not_toml(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(data)
    with pytest.raises(UserError, match="not TOML") as error:
        read_recipe_file(path)
    assert str(path) in str(error.value)


def test_recipe_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_recipe_file(tmp_path)


def test_nearest() -> None:
    assert did_you_mean("S9", ["S3", "S5"]) in (
        "; did you mean 'S5'? (known: S3, S5)",
        "; did you mean 'S3'? (known: S3, S5)",
    )
    assert did_you_mean("zzz", ["S3"]) == " (known: S3)"
