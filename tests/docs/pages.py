"""README.md and docs/ as data: code blocks, headings, links and inline code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RUNNABLE = "<!-- runnable -->"
GENERATED = re.compile(r"<!-- (study|benchmarks)[^\n]*: begin -->.*?<!-- \1[^\n]*: end -->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: Path below the repository's root.
        line: Line of the opening fence, from 1.
        language: After the fence; empty where there is none.
        text: Content.
        runnable: The line above is :data:`RUNNABLE`.
    """

    page: str
    line: int
    language: str
    text: str
    runnable: bool


def page_name(page: Path) -> str:
    """Return a page's path below the repository's root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for index, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = index
            continue
        runnable = start > 0 and lines[start - 1] == RUNNABLE
        yield Block(page_name(page), start + 1, lines[start][3:].strip(), "\n".join(lines[start + 1 : index]), runnable)
        start = None
    assert start is None, f"{page}: the fence of line {start} is not closed"


def prose(page: Path) -> str:
    """Return a page without its fenced blocks and without what a command wrote into it."""
    text = GENERATED.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(page: Path) -> list[str]:
    """Return what stands in single backticks on a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the simple commands of a shell block as words: split at ``|``, ``;`` and ``&``, without comments."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word not in {"|", ";", "&&", "&"}:
                words.append(word)
            elif words:
                yield words
                words = []
