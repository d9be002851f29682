"""Errors name the option that was given, or the key of ``--set`` and recipe files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rnascl_cli.cli import adv_finetune, attack, quickstart, search, teacher, train
from rnascl_cli.cli.options import StudentOptions, build_recipe
from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes.errors import Option
from tests.cli.test_help_pages import COMMANDS
from tests.command import refused
from tests.reporting.factories import write_search

pytestmark = pytest.mark.unit

METHODS = "trades, mart, pgd-at, fast-at, ard, rslad"
SEARCH = ("search", "--paradigm", "standard", "--data", "digits")
TRAIN = ("train", "runs/s3", "--data", "digits")
TEACHER = ("teacher", "train", "--data", "digits")
CASES: list[tuple[tuple[str, ...], tuple[str, str], str]] = [
    (SEARCH, ("--paradigm", "foo"), "--paradigm foo: one of rnas-cl, icc, kl, standard"),
    (SEARCH, ("--robust", "foo"), "--robust foo: one of trades, fast-at, rslad"),
    (SEARCH, ("--device", "tpu"), "--device tpu: one of auto, cpu, cuda"),
    (SEARCH, ("--precision", "fp8"), "--precision fp8: one of auto, fp32, bf16"),
    (SEARCH, ("--batch-size", "1"), "--batch-size 1: should be greater than or equal to 2"),
    (SEARCH, ("--seed", "4294967296"), "--seed 4294967296: should be less than 4294967296"),
    (SEARCH, ("--pareto", "1"), "--pareto 1: should be greater than or equal to 2"),
    (SEARCH, ("--pareto", "1000"), "--pareto 1000: should be less than or equal to 100"),
    (SEARCH, ("--max-macs", "abc"), "--max-macs: 'abc' is not a number; write 8M, 0.2M, 900k or 8e6"),
    (TRAIN, ("--select", "foo"), "--select foo: one of last, robust, clean"),
    (TRAIN, ("--select", "null"), "--select null: one of last, robust, clean"),
    (TRAIN, ("--select", ""), "--select '': one of last, robust, clean"),
    (TRAIN, ("--average", "foo"), "--average foo: one of ema, swa"),
    (TRAIN, ("--method", "foo"), f"--method foo: one of {METHODS}"),
    (TRAIN, ("--method", "x" * 2000), f"--method {'x' * 40}: one of {METHODS}"),
    (TRAIN, ("--distill", "foo"), "--distill foo: one of kd, at, sp, vid, rkd, crd, pkt"),
    (TRAIN, ("--distill", "3"), "--distill 3: one of kd, at, sp, vid, rkd, crd, pkt"),
    (TEACHER, ("--method", "foo"), "--method foo: one of pgd-at, trades, fgsm-rs"),
    (TEACHER, ("--eps", "8"), "--eps: 8 is above 1, and pixels lie in [0, 1]; did you mean 8/255?"),
    (TEACHER, ("--eps", "x"), "--eps: 'x' is not a number; write 8/255 or 0.03"),
]


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a search."""
    write_search(tmp_path / "runs" / "s3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "given", "line"), CASES, ids=[f"{' '.join(case[0][:2])} {' '.join(case[1])[:30]}" for case in CASES]
)
def test_error_names_option_value_and_choices(command: tuple[str, ...], given: tuple[str, str], line: str) -> None:
    assert refused(*command, *given) == f"rnascl: {line}"


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (SEARCH, ("--pareto", "few")),
        (SEARCH, ("--epochs", "many")),
        (TRAIN, ("--patience", "-1")),
    ],
)
def test_error_names_option_with_an_invalid_number(command: tuple[str, ...], given: tuple[str, str]) -> None:
    assert f"'{given[0]}'" in refused(*command, *given)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("select.metric=foo", "recipe key 'train.select.metric': Input should be 'robust' or 'clean'"),
        ("robust.method=foo", "recipe key 'train.robust': Input tag 'foo'"),
        ("average.kind=foo", "recipe key 'train.average': Input tag 'foo'"),
        ("distill.name=foo", "recipe key 'train.distill': Input tag 'foo'"),
        ("device=foo", "recipe key 'device': Input should be "),
        ("train.selekt=foo", "unknown recipe key 'train.selekt'"),
    ],
)
def test_error_names_the_key_of_set_and_recipe_files(setting: str, message: str, world: Path) -> None:
    key, _, value = setting.partition("=")
    whole = key if key == "device" or key.startswith("train.") else f"train.{key}"
    (world / "mine.toml").write_text(f"{whole} = '{value}'\n", encoding="utf-8")
    for given in (("--set", setting), ("--recipe", "mine.toml")):
        line = refused(*TRAIN, *given)
        assert line.startswith(f"rnascl: {message}")
        assert "--" not in line
        # An option beside it that is right changes nothing.
        assert line == refused(*TRAIN, *given, "--epochs", "1", "--patience", "2")


def test_all_errors_are_reported_by_their_origin() -> None:
    line = refused(*TRAIN, "--select", "foo", "--average", "bar", "--set", "epochs=0", "--set", "data.holdout=2")
    for words in (
        "--select foo: one of last, robust, clean",
        "--average bar: one of ema, swa",
        "recipe key 'train.epochs': Input should be greater than or equal to 1",
        "recipe key 'data.holdout': Input should be less than or equal to 0.5",
    ):
        assert words in line
    assert line.count("; ") == 3


def test_option_overrides_an_invalid_setting() -> None:
    wrong = StudentOptions(settings=["robust.method=foo", "select.metric=foo", "average.kind=foo"])
    found = build_recipe("train", wrong, method="mart", select="clean", average="swa").train
    assert found.select is not None
    assert found.average is not None
    assert (found.method, found.select.metric, found.average.kind) == ("mart", "clean", "swa")


def test_select_and_patience() -> None:
    def selection(select: str | None, patience: int | None, *settings: str) -> Any:
        options = StudentOptions(settings=list(settings), select=select, patience=patience)
        found = build_recipe("train", options).train.select
        return found and (found.metric, found.patience, found.steps)

    assert selection(None, None) is None
    assert selection(None, 3) == ("robust", 3, 10)
    assert selection("clean", None) == ("clean", None, 10)
    assert selection("clean", 3, "select.steps=5") == ("clean", 3, 5)
    assert selection(None, None, "select.patience=4") == ("robust", 4, 10)
    assert selection("last", None, "select.patience=4") is None
    with pytest.raises(UserError, match="--patience: needs a selection metric"):
        selection("last", 3)


class Laid(Exception):  # noqa: N818
    """What a command lays over the recipe."""

    def __init__(self, named: Mapping[str, Option]) -> None:
        super().__init__()
        self.named = named


FUNCTIONS: dict[str, Any] = {
    "search": search.command,
    "train": train.command,
    "adv-finetune": adv_finetune.command,
    "attack": attack.command,
    "quickstart": quickstart.command,
    "teacher import": teacher.import_command,
    "teacher fetch": teacher.fetch_command,
    "teacher train": teacher.train_command,
    "teacher measure": teacher.measure_command,
}
NOT_OF_THE_RECIPE = {"recipe", "settings", "mean", "std", "out"}


def laid(path: str) -> tuple[Mapping[str, Option], dict[str, str]]:
    """Call a command with its parameters' names for values; return what it lays, and the option of each name."""
    parameters = COMMANDS[tuple(path.split())].params
    typed = {item.name: item.opts[0] for item in parameters if item.param_type_name == "option"}
    given: dict[str, Any] = {name: name for name in typed if name not in NOT_OF_THE_RECIPE and name != "help"}
    given |= {item.name: [item.name] for item in parameters if item.param_type_name == "argument"}
    given |= {"out": Path("new"), "recipe": "smoke/tiny", "context": None} if path == "quickstart" else {}
    expected = set(inspect.signature(FUNCTIONS[path]).parameters)
    with pytest.raises(Laid) as stop:
        FUNCTIONS[path](**{name: value for name, value in given.items() if name in expected})
    return stop.value.named, typed


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands take any values, read nothing, and stop at the recipe."""

    def stop(_: object, *, options: Mapping[str, Option]) -> None:
        raise Laid(options)

    bare = SimpleNamespace(provenance=None)
    monkeypatch.setattr("rnascl_cli.recipes.load.resolve", stop)
    monkeypatch.setattr(train, "_read", lambda _: bare)
    monkeypatch.setattr("rnascl_cli.stages.training.adv_finetune.source_run", lambda _: (bare, None))
    monkeypatch.setattr("rnascl_cli.stages.attack.target.find_target", lambda _: bare)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("path", FUNCTIONS)
def test_keys_are_reported_as_the_options_that_set_them(path: str) -> None:
    named, typed = laid(path)
    assert {"seed", "device"} <= set(named)
    for key, option in named.items():
        assert option.name == typed[str(option.value)], key
