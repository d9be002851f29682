"""To be one of several processes, without the others."""

from __future__ import annotations

import pytest


def become(monkeypatch: pytest.MonkeyPatch, number: int, count: int, *, on_each_machine: int | None = None) -> None:
    """Be one of several ranks, as far as their number goes; all are on one machine by default."""
    monkeypatch.setattr("rnascl_cli.core.distributed._store", object())
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_each_machine or count))
