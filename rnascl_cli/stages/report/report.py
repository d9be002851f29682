"""The report stage: run directories in, ``report.md``, ``report.html`` and ``figures/`` out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from rnascl_cli.artifacts.store import write_bytes, write_text
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.progress import long_progress
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.figures.style import Plot, Rendered, render
from rnascl_cli.reporting.page import MARK, Page, build_page, html, markdown
from rnascl_cli.reporting.tables.json_summary import ReportSummary, summarize_models

MARKDOWN, HTML, FIGURES = "report.md", "report.html", "figures"


def report(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    force: bool = False,
    paper: bool = False,
    image: Path | None = None,
) -> ReportSummary:
    """Write a report on ``runs``.

    Everything is read and rendered before anything is written, so an error leaves the disk as it was.

    Args:
        runs: Run directories, or folders of them.
        out: Where to; ``report`` beside the first of ``runs`` by default.
        force: Replace an older report, or write beside other files, in a folder that is not empty.
        paper: Print the paper's tables whole.
        image: Show the attention maps of students and tutors for this image. Without it no network is read.

    Raises:
        UserError: No run is found, no document of any could be read, or ``out`` may not be written to.
    """
    folder = out if out is not None else runs[0].resolve().parent / "report"
    shown = str(out) if out is not None else _beside(runs[0])
    _check(folder, shown, force=force)
    compute = None
    if image is not None:
        from rnascl_cli.stages.report.attention_maps import attention_maps  # brings torch

        compute = functools.partial(attention_maps, image=image)
    page = build_page(collect(runs), paper=paper, draw=_draw, compute_maps=compute)
    texts = {MARKDOWN: markdown(page), HTML: html(page)}
    files = _write(folder, page, texts)
    return ReportSummary(
        out=shown,
        files=files,
        models=summarize_models(page.models),
        warnings=list(page.warnings),
        gaps=list(page.caveats),
    )


def _beside(run: Path) -> str:
    """Return the default folder as the user would write it."""
    return str(run.parent / "report") if run.name not in ("", "..") else str(run.resolve().parent / "report")


def _check(folder: Path, shown: str, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {shown}: is a file; name a folder")
    if (folder / FIGURES).is_symlink():
        raise UserError(f"--out {shown}: its {FIGURES} is a link, and figures are not written through one; remove it")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out {shown}: already exists; use another name or --force")


def _draw(plots: Iterable[Plot]) -> list[Rendered]:
    todo = list(plots)
    drawn = []
    with long_progress("drawing figures", len(todo)) as advance:
        for plot in todo:
            drawn.append(render(plot))
            advance()
    return drawn


def _write(folder: Path, page: Page, texts: dict[str, str]) -> list[str]:
    """Write the report, the page last, and return the files' names."""
    try:
        _drop_older(folder)
        files = []
        for figure in page.drawn.values():
            for ending, data in (("png", figure.png), ("svg", figure.svg)):
                name = f"{FIGURES}/{figure.plot.name}.{ending}"
                write_bytes(folder / name, data)
                files.append(name)
        for name, text in texts.items():
            write_text(folder / name, text)
            files.append(name)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from None
    return files


def _drop_older(folder: Path) -> None:
    """Remove the figures of an older report, known by the first line of its Markdown; leave all else alone."""
    older = folder / MARKDOWN
    if not older.is_file() or not older.read_bytes().startswith(MARK.encode()):
        return
    text = older.read_text(encoding="utf-8", errors="replace")
    for figure in [*(folder / FIGURES).glob("*.png"), *(folder / FIGURES).glob("*.svg")]:
        if f"]({FIGURES}/{figure.name})" in text:
            figure.unlink()
