"""Downloads in a hurry, for tests: no patience, small files, and what came of it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from rnascl_cli.engine.download import DownloadError, Patience, downloaded, parse_address

QUICK = Patience(connect=2.0, stall=0.2, attempts=3, pause=0.01, redirects=5)
DATA = b"PK\x03\x04" + random.Random(0).randbytes(300_000)
OTHER = b"PK\x03\x04" + random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()

Capture = pytest.CaptureFixture[str]


class Got(NamedTuple):
    """A download."""

    data: bytes
    name: str
    sha256: str
    checked: bool


def fetch(folder: Path, address: str, *, sha256: str | None = None, fresh: bool = False) -> Got:
    with downloaded(parse_address(address), folder, sha256=sha256, fresh=fresh, patience=QUICK) as file:
        assert file.size == file.path.stat().st_size
        return Got(file.path.read_bytes(), file.path.name, file.sha256, file.checked)


def refused(folder: Path, address: str, *, sha256: str | None = None) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(folder, address, sha256=sha256)
    return str(caught.value)


def parts(folder: Path) -> list[int]:
    """The sizes of what is kept of files under way."""
    return [path.stat().st_size for path in folder.glob("*/file.part")]


def said(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().err.split())


SCAN = """<form id="download-form" action="{action}" method="get"><input type="hidden" name="id" \
value="1-Z"><input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="u-1"></form>"""
