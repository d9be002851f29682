"""A working folder in which everything is good, for each test to spoil one thing in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import files, refused
from tests.hostile.good_runs import write_runs


@pytest.fixture(scope="session")
def good_world(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """``r8.safetensors``, ``search/``, ``train/``, ``fine/`` and ``attack/``; never to be changed."""
    root = tmp_path_factory.mktemp("good") / "world"
    root.mkdir()
    shutil.copy(tiny_teacher, root / "r8.safetensors")
    write_runs(root, root / "r8.safetensors")
    return root


@pytest.fixture
def world(good_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good world to spoil; the working folder of the test."""
    shutil.copytree(good_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


class Untouched:
    """Runs commands that must be refused and leave every file as it was."""

    def __init__(self, world: Path) -> None:
        self.world = world

    def __call__(self, *arguments: object, stdin: str | None = None) -> str:
        """The one line of the refusal."""
        before = files(self.world)
        line = refused(*arguments, stdin=stdin)
        assert files(self.world) == before
        assert not (self.world / "new").exists()
        return line


@pytest.fixture
def untouched(world: Path) -> Untouched:
    """See :class:`Untouched`."""
    return Untouched(world)
