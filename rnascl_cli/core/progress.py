"""Progress with time left: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rnascl_cli.core.console import info, stderr

Advance = Callable[..., None]
SECONDS_BETWEEN_LINES = 60.0  # about other work, where stderr is no terminal
LINE_EVERY = 30.0  # seconds between the lines about a download where stderr is no terminal


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


@contextlib.contextmanager
def long_progress(label: str, total: int) -> Iterator[Advance]:
    """As :func:`progress`; where stderr is no terminal, a line a minute, with the time left at this pace."""
    started = last = time.monotonic()
    done = 0
    with progress(label, total) as bar:

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += steps
            bar(steps, note)
            now = time.monotonic()
            if not stderr.is_terminal and now - last > SECONDS_BETWEEN_LINES and done:
                last = now
                left = (now - started) * (total - done) / done
                info(f"{label}: {100 * done / total:.0f} % done, about {left / 60:.0f} min left")

        yield advance


@contextlib.contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar of bytes, with speed and time left, while the body runs.

    Yields:
        ``show(done, total)``: what has arrived, and the whole, None where nobody knows. Where stderr is no terminal
        it prints a line now and then.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)
        last = time.monotonic()

        def show(done: int, total: int | None) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            if not stderr.is_terminal and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                info(f"{label}: {decimal(done)}{'' if total is None else f' of {decimal(total)}'}")

        yield show


def say_epoch(stage: str, entry: dict[str, Any], epochs: int) -> None:
    """Print one epoch's metrics as a line, with the time left at this pace."""
    shown = (
        *("loss", "ce", "kl", "attention", "distill", "adversarial", "weighted_kl", "clean_kl"),
        *("train_accuracy", "train_robust_accuracy", "holdout_accuracy", "holdout_robust_accuracy"),
        "n_f",
        "expected_macs",
    )
    parts = [f"{name} {_short(entry[name])}" for name in shown if entry.get(name) is not None]
    done, seconds = entry["epoch"] + 1, entry["seconds"]
    left = _clock((epochs - done) * seconds)
    info(f"{stage} epoch {done}/{epochs}: {', '.join(parts)}; {seconds:.0f} s, {left} left")


def _short(value: float) -> str:
    if value >= 1e4:
        return f"{value / 1e6:.2f}M"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
