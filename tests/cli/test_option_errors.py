"""A wrong value is named by what was typed: the option, or the key of ``--set`` and of a recipe file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rnascl_cli.cli import adv_finetune, attack, options, quickstart, search, teacher, train
from rnascl_cli.cli.options import NAMES, build_recipe
from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes import Option
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
def test_an_option_is_named_with_its_value_and_what_it_may_be(
    command: tuple[str, ...], given: tuple[str, str], line: str
) -> None:
    assert refused(*command, *given) == f"rnascl: {line}"


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (SEARCH, ("--pareto", "few")),
        (SEARCH, ("--epochs", "many")),
        (TRAIN, ("--patience", "-1")),
    ],
)
def test_an_option_that_is_no_such_number_is_named(command: tuple[str, ...], given: tuple[str, str]) -> None:
    assert f"'{given[0]}'" in refused(*command, *given)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stop.on=foo", "recipe key 'train.stop.on': Input should be 'robust' or 'clean'"),
        ("train.method=foo", "recipe key 'train.method': Input should be 'trades', 'mart', "),
        ("average.kind=foo", "recipe key 'train.average': Input tag 'foo'"),
        ("distill.name=foo", "recipe key 'train.distill': Input tag 'foo'"),
        ("device=foo", "recipe key 'device': Input should be "),
        ("train.select=foo", "unknown recipe key 'train.select'"),
    ],
)
def test_a_setting_and_a_recipe_file_are_named_by_their_key(setting: str, message: str, world: Path) -> None:
    key, _, value = setting.partition("=")
    whole = key if key == "device" or key.startswith("train.") else f"train.{key}"
    (world / "mine.toml").write_text(f"{whole} = '{value}'\n", encoding="utf-8")
    for given in (("--set", setting), ("--recipe", "mine.toml")):
        line = refused(*TRAIN, *given)
        assert line.startswith(f"rnascl: {message}")
        assert "--" not in line
        # An option beside it that is right changes nothing.
        assert line == refused(*TRAIN, *given, "--epochs", "1", "--patience", "2")


def test_each_mistake_is_named_by_where_it_was_made() -> None:
    line = refused(*TRAIN, "--select", "foo", "--average", "bar", "--set", "epochs=0", "--set", "data.holdout=2")
    for words in (
        "--select foo: one of last, robust, clean",
        "--average bar: one of ema, swa",
        "recipe key 'train.epochs': Input should be greater than or equal to 1",
        "recipe key 'data.holdout': Input should be less than or equal to 0.5",
    ):
        assert words in line
    assert line.count("; ") == 3


def test_an_option_wins_over_a_wrong_setting() -> None:
    wrong = ["method=foo", "stop.on=foo", "average.kind=foo"]
    own = {"method": "mart", "stop": options.choice("clean", None), "average": options.kind("swa")}
    found = build_recipe("train", recipe=None, settings=wrong, own=own).train
    assert (found.method, found.stop and found.stop.on, found.average and found.average.kind) == (
        "mart",
        "clean",
        "swa",
    )


def test_what_select_and_patience_mean() -> None:
    def stop(select: str | None, patience: int | None, *settings: str) -> Any:
        own = {"stop": options.choice(select, patience)}
        found = build_recipe("train", recipe=None, settings=settings, own=own).train.stop
        return found and (found.on, found.patience, found.steps)

    assert stop(None, None) is None
    assert stop(None, 3) == ("robust", 3, 10)
    assert stop("clean", None) == ("clean", None, 10)
    assert stop("clean", 3, "stop.steps=5") == ("clean", 3, 5)
    assert stop(None, None, "stop.patience=4") == ("robust", 4, 10)
    assert stop("last", None, "stop.patience=4") is None
    with pytest.raises(UserError, match="--patience: with --select last"):
        options.choice("last", 3)


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
    given |= {"out": Path("new"), "recipe": "smoke/tiny"} if path == "quickstart" else {}
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
    monkeypatch.setattr("rnascl_cli.recipes.resolve", stop)
    monkeypatch.setattr(options, "count", lambda text, _: text)
    monkeypatch.setattr(train, "_read", lambda _: bare)
    monkeypatch.setattr("rnascl_cli.stages.training.adv_finetune.source_run", lambda _: (bare, None))
    monkeypatch.setattr("rnascl_cli.stages.attack.target.find_target", lambda _: bare)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("path", FUNCTIONS)
def test_each_key_is_called_like_the_option_that_set_it(path: str) -> None:
    named, typed = laid(path)
    assert {"seed", "device"} <= set(named)
    for key, option in named.items():
        assert option.name == typed[str(option.value)], key


@pytest.mark.usefixtures("stopped")
def test_every_name_is_of_an_option() -> None:
    found = {
        key.removeprefix(f"{stage}."): option.name
        for path in FUNCTIONS
        for stage in [path.replace("-", "_").replace(" ", "_").replace("teacher_measure", "attack")]
        for key, option in laid(path)[0].items()
    }
    assert NAMES.items() <= found.items()
