"""Work that lasts says how far it is, where no bar can be seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rnascl_cli.core import progress as module
from rnascl_cli.core.progress import long_progress

pytestmark = pytest.mark.unit


def test_a_line_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 50.0, 100.0, 110.0, 180.0])  # the start, and after each step
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with long_progress("drawing", 8) as advance:
        for _ in range(4):
            advance()
    lines = capsys.readouterr().err.splitlines()
    # 2 of 8 in 100 s leave 300 s; 4 of 8 in 180 s leave 180 s. Between them, not a minute had passed.
    assert lines == ["drawing: 25 % done, about 5 min left", "drawing: 50 % done, about 3 min left"]
