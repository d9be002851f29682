"""Any option with any value ends with 0 or 2: never a traceback, never two lines for one mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnascl_cli.core.errors import UserError
from tests.cli.test_help_pages import COMMANDS
from tests.command import files, rnascl
from tests.property.profile import quick

pytestmark = pytest.mark.pipeline

LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}
# With these, nothing is there to begin with ...
NOTHING: dict[str, list[str]] = {
    "search": ["--data", "folder:nowhere"],
    "derive": ["nowhere"],
    "train": ["nowhere"],
    "adv-finetune": ["nowhere"],
    "attack": ["nowhere"],
    "report": ["nowhere"],
    "study": ["nowhere"],
    "quickstart": ["--device", "abacus"],
    "teacher list": [],
    "teacher show": ["nowhere"],
    "teacher import": ["nowhere"],
    "teacher measure": ["nowhere"],
    "cache show": [],
    "cache clear": ["nowhere"],
    "teacher fetch": ["nowhere"],
    "teacher train": ["--data", "folder:nowhere"],
}
# ... and with these everything is but the images, so that every option is looked at.
NO_IMAGES: dict[str, list[str]] = {
    "search": ["--paradigm", "standard"],
    "train": ["search"],
    "adv-finetune": ["train"],
    "attack": ["fine"],
    "teacher train": [],
}
# fmt: off
WORDS = (
    "0", "-1", "1e9", "1e999999999", "nan", "null", "8/255", "8/0", "0,1/255", "1,2,3", "0.5,0.5,0.5", "nan,nan,nan",
    "digits", "folder:", "cifar10:x", "r18", "r8", "S3", "L2", "cpu", "bf16", "standard", "icc", "trades", "paper-code",
    "..", "/", "/dev/null", "new", "new/x", "x.safetensors", "smoke/tiny", "-", "--", "=", "*", "$(reboot)", "%s{}",
    "é", "\x1b[31m", ",", "pgd0", "aa,aa", "fgsm,pgd1", "search.epochs=1", "epochs=", "a.b.c=1", "data=3",
    "step_size=0", "data.spec=folder:nowhere", "optimiser.name=adam", "optimiser.betas=[2,2]", "attack.eps=[1]",
    "attacks=[]",
    "map_size=1e9", "schedule.kind=cosine", "kl.temperature=1e-300", "", "a" * 300, "9" * 400, "pgd" + "9" * 30,
    "pgd" + "9" * 5000,
)
# fmt: on
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)


def options_of(command: Any) -> list[tuple[str, bool]]:
    """Each option of a command, and whether it takes a value."""
    found = []
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            found += [(name, not parameter.is_flag) for name in parameter.opts]
    return found


def tried(path: tuple[str, ...], last: list[str], world: Path, examples: int) -> None:
    """Run a command with a few options of any value, and look at how it ends."""
    options = options_of(LEAVES[path]) or [("--no-such-option", False)]
    before = files(world)

    @quick(examples)
    @given(st.lists(st.tuples(st.sampled_from(options), VALUES), max_size=4))
    def run(chosen: list[tuple[tuple[str, bool], str]]) -> None:
        arguments = [*path]
        for (name, takes_value), value in chosen:
            arguments += [name, value] if takes_value else [name]
        outcome = rnascl(*arguments, *last)
        assert outcome.code in (0, 2), (arguments, outcome)
        assert "Traceback" not in outcome.err
        if outcome.code == 2:
            assert outcome.out == ""
            assert outcome.err.count("\n") == 1, (arguments, outcome.err)
            assert outcome.err.startswith("rnascl: ")
            assert len(outcome.err) < 1000
        assert files(world) == before, arguments

    run()


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_any_option_where_nothing_is_there(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried(path, NOTHING[" ".join(path)], tmp_path, 30)


@pytest.mark.parametrize("name", NO_IMAGES)
def test_any_option_where_all_is_there_but_images(name: str, good_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_images(spec: str) -> None:
        raise UserError(f"--data {spec}: there are none")

    monkeypatch.setattr("rnascl_cli.data.load._source", no_images)
    monkeypatch.chdir(good_runs)
    tried(tuple(name.split()), NO_IMAGES[name], good_runs, 60)


@quick(60)
@given(st.lists(VALUES, max_size=4))
def test_any_words(words: list[str]) -> None:
    outcome = rnascl(*words, "--no-such-option")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_every_command_is_tried() -> None:
    assert {" ".join(path) for path in LEAVES} == set(NOTHING)
