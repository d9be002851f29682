"""Ratios against what is to be reached and against those recorded before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Measurement, compare, record_baseline, table
from benchmarks.timing import interval, take_turns

pytestmark = pytest.mark.unit

FASTER = Measurement("step.plain", "step", 8.0, 9, unit="x", low=7.5, high=8.5, at_least=7.0, note="8 s / 1 s")
SMALLER = Measurement("memory.peak", "peak", 0.3, 1, at_most=0.25)


def test_what_is_reached() -> None:
    assert FASTER.met is True
    assert SMALLER.met is False
    assert Measurement("x", "x", 1.0, 1).met is None


def test_times_as_fast_is_better_when_higher_with_an_aim_or_without() -> None:
    assert FASTER.higher_is_better
    assert Measurement("step.small", "step", 3.0, 9, unit="x").higher_is_better
    assert not SMALLER.higher_is_better


def test_the_table() -> None:
    assert table([FASTER, SMALLER]).splitlines()[2:] == [
        "| step | 8.00x [7.50, 8.50] | at least 7.00x | met | 9 | 8 s / 1 s |",
        "| peak | 0.300 | at most 0.250 | **not met** | 1 |  |",
    ]


@pytest.mark.parametrize(
    ("now", "fell"), [((8.0, 0.3), []), ((6.9, 0.3), []), ((6.7, 0.3), ["step.plain"]), ((8.0, 0.31), ["memory.peak"])]
)
def test_a_ratio_falls_when_it_is_worse_by_more_than_the_tolerance(
    tmp_path: Path, now: tuple[float, float], fell: list[str]
) -> None:
    baseline = tmp_path / "baseline.json"
    record_baseline([FASTER, SMALLER], baseline)
    measured = [
        Measurement("step.plain", "step", now[0], 9, unit="x", low=1.0, high=9.0, at_least=7.0),
        Measurement("memory.peak", "peak", now[1], 1, at_most=0.25),
        Measurement("new", "not recorded yet", 1.0, 1),
    ]
    moved = compare(measured, baseline)
    assert {line.name for line in moved} == {"step.plain", "memory.peak"}
    assert [line.name for line in moved if line.fell] == fell
    assert all(str(line).startswith("FELL" if line.fell else "ok") for line in moved)


def test_seconds_are_not_recorded(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    record_baseline([FASTER, Measurement("startup.help", "help", 0.2, 5, unit="s", kept=False)], baseline)
    assert list(json.loads(baseline.read_text())) == ["step.plain"]


def test_the_table_goes_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "performance.md"
    (begin, end), (begin_gpu, end_gpu) = results.marks("cpu"), results.marks("cuda")
    document.write_text(f"before\n{begin}\nold\n{end}\nbetween\n{begin_gpu}\nold\n{end_gpu}\nafter\n")
    monkeypatch.setattr(results, "DOCUMENT", document)
    results.write_document([FASTER], {"measured": "2030-01-01", "threads": 2})
    text = document.read_text()
    assert text.startswith(f"before\n{begin}\nmeasured 2030-01-01, threads 2.\n\n| measured |")
    assert text.endswith(f"| 8 s / 1 s |\n{end}\nbetween\n{begin_gpu}\nold\n{end_gpu}\nafter\n")
    results.write_document([SMALLER], {"measured": "2031-01-01"}, device="cuda")
    text = document.read_text()
    assert f"| 8 s / 1 s |\n{end}\nbetween\n{begin_gpu}\nmeasured 2031-01-01.\n" in text
    assert text.endswith(f"{end_gpu}\nafter\n")


def test_the_document_and_the_baseline_are_there() -> None:
    text = results.DOCUMENT.read_text(encoding="utf-8")
    assert all(text.count(mark) == 1 for mark in (*results.marks("cpu"), *results.marks("cuda")))
    held = json.loads(results.BASELINE.read_text(encoding="utf-8"))
    assert all({"value", "better", "tolerance"} == set(row) for row in held.values())
    assert "operators.plain" in held


def test_sides_take_turns() -> None:
    order: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = take_turns(sides, rounds=3, calls={"a": 2})
    assert order == ["a", "b", *"aab", *"baa", *"aab"]
    assert {name: len(row) for name, row in times.items()} == {"a": 3, "b": 3}


def test_the_interval_is_of_the_ratio_of_medians() -> None:
    times = {"slow": [10.0, 12.0, 11.0, 40.0, 11.0], "fast": [1.0, 1.0, 1.0, 1.0, 2.0]}
    value, low, high = interval(times, lambda median: median["slow"] / median["fast"])
    assert value == 11.0
    assert 5.5 <= low <= value <= high <= 40.0
