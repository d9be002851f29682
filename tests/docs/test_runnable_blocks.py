"""The blocks of README.md and docs/ that are marked as runnable run, on digits, as they are printed.

README.md's blocks run first. Those of each other page continue in a copy of the folder that README.md's leave, so that
they may use its runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import done
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands, page_name

pytestmark = pytest.mark.pipeline

README = ROOT / "README.md"
RUNNABLE = {page: [block for block in blocks(page) if block.runnable] for page in PAGES}
OTHER_PAGES = [page for page in PAGES if page != README and RUNNABLE[page]]


def run_block(block: Block, folder: Path) -> None:
    """Run a block in ``folder``: Python, or lines of rnascl commands that may be piped into one another."""
    where = f"{block.page}:{block.line}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if block.language == "python":
            exec(compile(block.text, where, "exec"), {})
            return
        for line in block.text.replace("\\\n", " ").splitlines():
            output: str | None = None
            for words in commands(line):
                assert words[0] == "rnascl", f"{where}: only rnascl runs here, not {words[0]}"
                output = done(*words[1:], stdin=output).out


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the blocks of README.md leave."""
    folder = tmp_path_factory.mktemp("readme")
    for block in RUNNABLE[README]:
        run_block(block, folder)
    return folder


def test_readme(after_readme: Path) -> None:
    for name in ("search/search.json", "train/attack.json", "trades/student.safetensors", "trades/attack.json"):
        assert (after_readme / "runs" / name).is_file()
    assert (after_readme / "report" / "report.html").is_file()


@pytest.mark.parametrize("page", OTHER_PAGES, ids=page_name)
def test_other_page(page: Path, after_readme: Path, tmp_path: Path) -> None:
    shutil.copytree(after_readme, tmp_path / "work")
    for block in RUNNABLE[page]:
        run_block(block, tmp_path / "work")


def test_several_pages_have_runnable_blocks() -> None:
    assert len(OTHER_PAGES) >= 6
