"""All commands and options, pinned because scripts rely on their names."""

from __future__ import annotations

import pytest

from tests.cli.test_help_pages import COMMANDS

pytestmark = pytest.mark.unit

STAGE = (
    "--teacher --paradigm --data --limit-train --limit-test --recipe --set --epochs --batch-size --seed --device "
    "--precision --deterministic --out --force --resume --json"
)
CHOICE = "--average --select --patience"
SURFACE = {
    "": "--version",
    "search": f"--space --robust --max-macs --max-params --pareto {STAGE}",
    "derive": "RUN_OR_SEARCH_JSON --tutors --max-macs --max-params --point --out --force --json",
    "train": f"DERIVED|- --method --distill {CHOICE} {STAGE}",
    "adv-finetune": f"RUN --method {CHOICE} {STAGE}",
    "attack": "MODEL... --attack --eps --norm --protocol --step-size --restarts --audit --data --limit-test --recipe "
    "--set --batch-size --seed --device --precision --deterministic --out --force --resume --json",
    "report": "RUN... --out --paper --image --force --json",
    "study": "FILE --data --teacher --out --jobs --minutes --only --plan --into --json",
    "quickstart": "--out --recipe --seed --device --force",
    "cache": "",
    "cache show": "--json",
    "cache clear": "[KIND]...",
    "teacher": "",
    "teacher list": "--json",
    "teacher show": "NAME|FILE --json",
    "teacher import": "FILE --arch --public --mean --std --data --limit-test --seed --device --out --force --json",
    "teacher fetch": "NAME|ADDRESS --arch --mean --std --sha256 --data --limit-test --seed --device --out "
    "--force --json",
    "teacher measure": "NAME|FILE --data --attack --eps --limit-test --recipe --set --batch-size --seed --device "
    "--precision --deterministic --force --resume --json",
    "teacher train": "--arch --from --method --eps --data --limit-train --limit-test --recipe --set --epochs "
    "--batch-size --seed --device --precision --deterministic --out --force --resume --json",
}
# CONTRACT.md: what scripts rely on.
CONTRACT = {
    "search": "--space --teacher --paradigm --out --data --limit-train --limit-test --recipe --set --epochs --seed",
    "derive": "--out --json",
    "train": "--teacher --data --limit-train --limit-test --recipe --set --epochs --batch-size --seed --device --out",
    "adv-finetune": "--method --epochs --precision --force --resume --json",
    "attack": "--attack --eps --protocol --audit --data --limit-test",
    "report": "--out",
    "teacher import": "--arch --out",
    "quickstart": "--out",
}


def names(path: tuple[str, ...]) -> list[str]:
    """A command's arguments and options, as one would write them."""
    found: list[str] = []
    for parameter in COMMANDS[path].params:
        if parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        found += parameter.opts if is_option else [parameter.metavar or parameter.name]
    return found


def test_all_commands() -> None:
    assert {" ".join(path) for path in COMMANDS} == set(SURFACE)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_arguments_and_options(path: tuple[str, ...]) -> None:
    assert sorted(names(path)) == sorted(SURFACE[" ".join(path)].split())


@pytest.mark.parametrize("command", CONTRACT)
def test_contract(command: str) -> None:
    assert set(CONTRACT[command].split()) <= set(names(tuple(command.split())))
