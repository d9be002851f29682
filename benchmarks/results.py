"""Measured numbers: as JSON, as a table, against what is to be reached, and against those recorded before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Device = Literal["cpu", "cuda"]
ROOT = Path(__file__).parent.parent
MARKS = {"cpu": "benchmarks", "cuda": "benchmarks on a GPU"}
"""By device: the marks between which its table stands in docs/performance.md."""
BASELINE = Path(__file__).parent / "baseline.json"
DOCUMENT = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        name: A key, e.g. ``"step-32.plain"``.
        what: It in words.
        value: The number.
        n: How many rounds, images or calls it comes from.
        unit: ``"x"`` (times as fast), ``"share"`` (of one), ``"s"``, or ``""`` for another ratio or a count.
        low: Lower end of its 95 % interval; None for an exact count.
        high: Upper end.
        at_least: What is to be reached; None where more is not asked for.
        at_most: Likewise from above.
        note: The seconds or counts it comes from.
        kept: Whether it is a ratio that the baseline holds.
    """

    name: str
    what: str
    value: float
    n: int
    unit: str = ""
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    kept: bool = True

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger number is the better one."""
        return self.unit == "x" or self.at_least is not None

    @property
    def reach(self) -> str:
        """What is to be reached, in words; empty without."""
        if self.at_least is not None:
            return f"at least {_shown(self.at_least, self.unit)}"
        return "" if self.at_most is None else f"at most {_shown(self.at_most, self.unit)}"

    @property
    def met(self) -> bool | None:
        """Whether the number reaches what it is to reach; None where nothing is asked."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def shown(self) -> str:
        """The number with its interval."""
        spread = "" if self.low is None or self.high is None else f" [{_short(self.low)}, {_short(self.high)}]"
        return _shown(self.value, self.unit) + spread


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _shown(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    text = _short(value)
    return {"x": f"{text}x", "s": f"{text} s"}.get(unit, text)


def table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as a Markdown table."""
    verdict = {True: "met", False: "**not met**", None: ""}
    lines = [
        "| measured | value [95 % interval] | to be reached | | n | from |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {item.what} | {item.shown} | {item.reach} | {verdict[item.met]} | {item.n} | {item.note} |"
        for item in measurements
    ]
    return "\n".join(lines)


def write_json(path: Path, measurements: Sequence[Measurement], about: dict[str, Any]) -> None:
    """Write the measurements and the circumstances they were taken in."""
    rows = [{**asdict(item), "met": item.met} for item in measurements]
    path.write_text(json.dumps({"about": about, "measurements": rows}, indent=2) + "\n", encoding="utf-8")


def marks(device: Device) -> tuple[str, str]:
    """Return the lines before and behind a device's table."""
    return f"<!-- {MARKS[device]}: begin -->", f"<!-- {MARKS[device]}: end -->"


def write_document(measurements: Sequence[Measurement], about: dict[str, Any], *, device: Device = "cpu") -> None:
    """Replace the table of a device in docs/performance.md."""
    begin_mark, end_mark = marks(device)
    circumstances = ", ".join(f"{name} {value}" for name, value in about.items())
    head, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    assert begin, f"{DOCUMENT} has lost its mark {begin_mark}"
    assert end, f"{DOCUMENT} has lost its mark {end_mark}"
    DOCUMENT.write_text(
        f"{head}{begin_mark}\n{circumstances}.\n\n{table(measurements)}\n{end_mark}{tail}", encoding="utf-8"
    )


@dataclass(frozen=True)
class Moved:
    """A ratio beside the recorded one.

    Attributes:
        name: Of the measurement.
        before: Recorded.
        now: Measured.
        worse: By which share it is worse; negative where it is better.
        tolerance: How much worse it may be.
    """

    name: str
    before: float
    now: float
    worse: float
    tolerance: float

    @property
    def fell(self) -> bool:
        """Whether it is worse by more than the tolerance."""
        return self.worse > self.tolerance

    def __str__(self) -> str:
        direction = "worse" if self.worse > 0 else "better"
        verdict = "FELL" if self.fell else "ok"
        return (
            f"{verdict:4}  {self.name}: {_short(self.before)} -> {_short(self.now)}, {abs(self.worse):.0%} {direction}"
        )


TIMED_TOLERANCE, COUNTED_TOLERANCE = 0.15, 0.02


def record_baseline(measurements: Sequence[Measurement], path: Path = BASELINE) -> None:
    """Write the ratios that later runs are compared with; those of groups that did not run stay."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for item in measurements:
        if item.kept:
            tolerance = COUNTED_TOLERANCE if item.low is None else TIMED_TOLERANCE
            held[item.name] = {
                "value": float(f"{item.value:.4g}"),
                "better": "higher" if item.higher_is_better else "lower",
                "tolerance": tolerance,
            }
    path.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def compare(measurements: Sequence[Measurement], path: Path = BASELINE) -> list[Moved]:
    """Return each measured ratio beside the recorded one, those that fell first."""
    held = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for item in measurements:
        if item.name in held:
            before, tolerance = held[item.name]["value"], held[item.name]["tolerance"]
            change = item.value / before - 1
            worse = -change if held[item.name]["better"] == "higher" else change
            found.append(Moved(item.name, before, item.value, worse, tolerance))
    return sorted(found, key=lambda moved: moved.worse - moved.tolerance, reverse=True)
