"""``rnascl cache``: lists the cache, and clears only what can be recomputed by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rnascl_cli.cli.cache import FOLDERS
from rnascl_cli.teachers.output_cache import outputs_dir
from tests.command import done, refused, rnascl

pytestmark = pytest.mark.pipeline


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path, small: list[object]) -> Path:
    """A cache with a search's teacher outputs, and a file of each other kind."""
    root = tmp_path / "cache"
    monkeypatch.setenv("RNASCL_CACHE", str(root))
    what = ["--space", "S3", "--data", "digits", "--teacher", tiny_teacher, "--epochs", 1, *small]
    done("search", *what, "--out", tmp_path / "run")
    for kind in ("images", "data", "teachers"):
        (root / FOLDERS[kind]).mkdir()
        (root / FOLDERS[kind] / "kept").write_bytes(b"1" * 5000)
    return root


def test_kinds_are_the_folders_in_use() -> None:
    assert FOLDERS["outputs"] == outputs_dir().name


def test_show(cache: Path) -> None:
    entries = json.loads(rnascl("cache", "show", "--json").out)
    assert [entry["kind"] for entry in entries] == ["outputs", "outputs", "images", "data", "teachers"]
    outputs = [entry["about"] for entry in entries if entry["kind"] == "outputs"]
    assert all("r8" in about and "30 views of 30 images" in about for about in outputs)
    assert sum("8x8" in about for about in outputs) == 1
    assert all(entry["bytes"] >= 4096 for entry in entries)
    shown = rnascl("cache", "show")
    assert shown.code == 0
    assert str(cache) in shown.err.replace("\n", "")


def test_show_of_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "none"))
    assert json.loads(rnascl("cache", "show", "--json").out) == []
    assert rnascl("cache", "clear").code == 0


def test_damaged_outputs_are_reported(cache: Path) -> None:
    for about in (cache / FOLDERS["outputs"]).glob("*/about.json"):
        about.write_text("{")
    assert "damaged" in rnascl("cache", "show", "--json").out


def test_clear_keeps_what_cannot_be_recomputed(cache: Path) -> None:
    assert rnascl("cache", "clear").code == 0
    assert {path.name for path in cache.iterdir()} == {"data", "teachers"}
    assert rnascl("cache", "clear", "teachers").code == 0
    assert {path.name for path in cache.iterdir()} == {"data"}


def test_unknown_kind_is_refused(cache: Path) -> None:
    assert "teachers" in refused("cache", "clear", "teacher")
    assert (cache / "teachers" / "kept").exists()
