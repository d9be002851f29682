"""Documents that are no documents, for every command that reads one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.cli import app
from rnascl_cli.core.errors import LONGEST_LINE
from tests.command import done
from tests.conftest import FAST
from tests.hostile.conftest import Untouched

pytestmark = pytest.mark.pipeline

# Which commands read a document of the good world, as it lies there. A report leaves out a damaged document and shows
# the rest (tests/reporting/test_leftovers.py); where it is the only one, there is nothing to show.
READERS: dict[str, list[tuple[object, ...]]] = {
    "search/search.json": [
        ("derive", "search"),
        ("derive", "search/search.json", "--out", "new"),
        ("train", "search", "--out", "new", *FAST),
        ("report", "search", "--out", "new"),
    ],
    "train/derived.json": [
        ("train", "train/derived.json", "--out", "new", *FAST),
        ("adv-finetune", "train", "--out", "new", *FAST),
    ],
    "train/train.json": [
        ("adv-finetune", "train", "--out", "new", *FAST),
        ("attack", "train", "--out", "new"),
    ],
    "fine/adv-finetune.json": [
        ("adv-finetune", "fine", "--out", "new", *FAST),
        ("attack", "fine", "--out", "new"),
    ],
    "attack/attack.json": [("report", "attack", "--out", "new")],
}


def changed(**changes: Any) -> Callable[[str], str]:
    """A spoiler that sets top-level fields."""
    return lambda text: json.dumps(json.loads(text) | changes)


def million(text: str) -> str:
    """The document with a million layers, results or history entries: whatever it has a list of."""
    raw = json.loads(text)
    match raw["kind"]:
        case "search":
            raw |= {"student_layers": ["a"] * 10**6, "tutor_logits": [[0, 1]] * 10**6, "teacher_layers": ["a", "b"]}
        case "attack":
            raw |= {"verdicts": raw["verdicts"] * 10**6}
        case _:
            raw["architecture"]["widths"] = [16] * 10**6
    return json.dumps(raw)


SPOILERS: dict[str, tuple[Callable[[str], str], str]] = {
    "NaN": (lambda text: text.replace('"schema_version": 1', '"schema_version": 1, "x": NaN'), "NaN is not a number"),
    "infinite": (lambda text: text.replace('"schema_version": 1', '"schema_version": 1, "x": 1e400'), "is infinite"),
    "huge": (lambda text: text.replace('"seed": 0', f'"seed": {"9" * 4000}'), "more than 64 bits"),
    "negative seed": (lambda text: text.replace('"seed": 0', '"seed": -1'), "provenance.seed"),
    "wrong kind": (changed(kind="report"), "it is a 'report' document"),
    "future": (changed(schema_version=2), "schema_version is '2', this rnascl reads 1"),
    "true": (changed(schema_version=True), "schema_version is 'True'"),
    "a million": (million, ""),
    "deep": (lambda text: '{"kind": ' * 100_000, "not a JSON document"),
    "deep inside": (changed(history=[json.loads("[" * 400 + "]" * 400)]), ""),
    "long string": (changed(kind="x" * 10**6), "it is a 'xxxx"),
    "escape": (changed(kind="\x1b[31mred"), "it is a '\\x1b[31mred' document"),
    "half a pair": (lambda text: text.replace('"precision": "fp32"', '"precision": "\\ud800"'), "Invalid JSON"),
    "cut": (lambda text: text[:-100], "not a JSON document"),
    "bytes": (lambda text: "\0" * 100, "not a JSON document"),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_every_reader_refuses(world: Path, untouched: Untouched, spoiler: str) -> None:
    spoil, message = SPOILERS[spoiler]
    for file, commands in READERS.items():
        path = world / file
        good = path.read_text()
        path.write_text(spoil(good))
        for command in commands:
            line = untouched(*command)
            assert message in line, (file, command)
            assert path.name in line
        path.write_text(good)


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_pipe_is_read_as_carefully(world: Path, untouched: Untouched, spoiler: str) -> None:
    spoil, message = SPOILERS[spoiler]
    line = untouched("train", "-", "--out", "new", stdin=spoil((world / "train" / "derived.json").read_text()))
    assert message in line
    assert line.startswith("rnascl: stdin: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_classes", 10**12), ("num_classes", 1), ("input_size", 10**6), ("input_size", 4), ("space", "S" * 10**6)],
)
def test_sizes_that_no_network_has(world: Path, untouched: Untouched, field: str, value: object) -> None:
    search, derived = world / "search" / "search.json", world / "train" / "derived.json"
    search.write_text(changed(**{field: value})(search.read_text()))
    assert f"search.json: {field}: " in untouched("derive", "search")
    raw = json.loads(derived.read_text())
    raw["architecture"][field] = value
    derived.write_text(json.dumps(raw))
    assert f"derived.json: architecture.{field}: " in untouched("train", "train/derived.json", "--out", "new")


def test_a_device_that_never_ends(untouched: Untouched) -> None:
    assert "/dev/zero: larger than any rnascl document" in untouched("train", "/dev/zero", "--out", "new")


def test_names_in_a_document_are_no_commands_to_the_terminal(world: Path) -> None:
    path = world / "search" / "search.json"
    raw = json.loads(path.read_text())
    raw["provenance"]["device"] = "\x1b]0;title\x07"
    path.write_text(json.dumps(raw))
    outcome = done("derive", "search")
    assert "\x1b" not in outcome.out + outcome.err
    assert "\x07" not in outcome.out + outcome.err


def test_messages_are_short_whatever_they_quote(world: Path, untouched: Untouched) -> None:
    (world / "r.toml").write_text("".join(f"{'k' * 200}{index} = 1\n" for index in range(2000)))
    line = untouched("search", "--recipe", "r.toml", "--out", "new")
    assert len(line) <= len("rnascl: ") + LONGEST_LINE
    assert line.endswith(" ...")


def test_a_document_of_millions_of_nothings_takes_little_memory(world: Path) -> None:
    # 60 MB that would become 21 million dictionaries: 64 bytes each in Python, as many again in the checked copy.
    (world / "search" / "search.json").write_text('{"kind": "search", "history": [' + "{}," * 20_000_000 + "{}]}")
    limit = 1024**3

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done_by = subprocess.run(
        [sys.executable, "-m", "rnascl_cli", "derive", "search"],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[2])},
    )
    assert done_by.returncode == 2, done_by.stderr
    assert "holds more than 4000000 values" in done_by.stderr
    assert done_by.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not a JSON document"),
        ("[NaN]", "NaN is not a number"),
        ("[" + "0," * 5_000_000 + "0]", "holds more than 4000000 values"),
        ('{"x": 1}', ""),
        ("[99999999999999999999999]", "more than 64 bits"),
    ],
    ids=["deep", "NaN", "millions", "other names", "huge"],
)
def test_a_tutor_map_by_hand(world: Path, untouched: Untouched, text: str, message: str) -> None:
    (world / "map.json").write_text(text)
    line = untouched("derive", "search", "--tutors", "map.json")
    assert line.startswith("rnascl: --tutors map.json: ")
    assert message in line


@pytest.mark.parametrize("name", ["metrics.jsonl", "attack.partial.jsonl"])
def test_leftovers_of_millions_of_nothings(world: Path, name: str) -> None:
    """A report names what it cannot use and shows the rest."""
    (world / "train" / name).write_text('{"a": [' + "{}," * 2_000_000 + "{}]}\n")
    done("report", "train", "--out", "new")
    assert "it holds too much" in (world / "new" / "report.md").read_text()


def test_a_journal_that_is_none(world: Path, untouched: Untouched) -> None:
    for text in ("", "x", "[" * 100_000 + "\n", "{}\n", '{"a": ' + "9" * 5000 + "}\n", "\0\n"):
        (world / "train" / "attack.partial.jsonl").write_text(text)
        line = untouched("attack", "train", "--attack", "fgsm", "--device", "cpu", "--resume")
        assert "attack.partial.jsonl is " in line
