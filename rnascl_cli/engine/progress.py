"""Progress with time left: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnascl_cli.console import say, stderr

Advance = Callable[..., None]


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show a bar of ``total`` steps while the body runs.

    Yields:
        ``advance(steps=1, note="")``: moves the bar on and sets the note behind the label. It does nothing
        where stderr is no terminal.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=total)

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, description=f"{label} {note}".rstrip())

        yield advance


def say_epoch(stage: str, entry: dict[str, Any], epochs: int) -> None:
    """Print one epoch's metrics as a line, with the time left at this pace."""
    shown = (
        *("loss", "ce", "kl", "attention", "adversarial"),
        *("train_accuracy", "train_robust_accuracy", "holdout_accuracy", "holdout_robust_accuracy"),
        "n_f",
        "expected_macs",
    )
    parts = [f"{name} {_short(entry[name])}" for name in shown if entry.get(name) is not None]
    done, seconds = entry["epoch"] + 1, entry["seconds"]
    left = _clock((epochs - done) * seconds)
    say(f"{stage} epoch {done}/{epochs}: {', '.join(parts)}; {seconds:.0f} s, {left} left")


def _short(value: float) -> str:
    return f"{value / 1e6:.2f}M" if value >= 1e4 else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
