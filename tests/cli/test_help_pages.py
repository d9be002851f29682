"""Help pages, whose examples parse, and the version."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from rnascl_cli import __version__
from rnascl_cli.cli.app import app
from tests.command import done, rnascl

pytestmark = pytest.mark.unit

ROOT: Any = typer.main.get_command(app)


def walk(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, with the words that lead to it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


COMMANDS = dict(walk())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    outcome = done(*path, "--help")
    assert outcome.err == ""
    assert outcome.out.startswith(f"Usage: {' '.join(('rnascl', *path))} ")
    assert "Example: rnascl " in outcome.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_example_parses(path: tuple[str, ...]) -> None:
    example = COMMANDS[path].epilog.removeprefix("Example: ")
    for part in re.split(r"\s(?:\||&&)\s", example):
        words = shlex.split(part)
        assert words[0] == "rnascl"
        command, rest = ROOT, words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert not hasattr(command, "commands"), f"{part}: names no command"
        command.make_context("rnascl", list(rest))  # raises where an option is unknown or an argument missing


@pytest.mark.parametrize("path", [path for path in COMMANDS if path], ids=" ".join)
def test_every_option_has_help(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        assert parameter.help, f"{' '.join(path)} {parameter.name}"


def test_version() -> None:
    assert done("--version").out == f"rnascl {__version__}\n"


@pytest.mark.parametrize("path", [(), ("teacher",)], ids=["rnascl", "rnascl teacher"])
def test_without_a_command(path: tuple[str, ...]) -> None:
    outcome = rnascl(*path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Usage: rnascl" in outcome.err
