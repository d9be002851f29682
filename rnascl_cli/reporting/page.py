"""The report itself: sections of tables and figures, rendered as one HTML file and as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rnascl_cli.core.version import __version__
from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.data.comparable_groups import groups
from rnascl_cli.reporting.data.lineage import ReportModel, changed_students, models
from rnascl_cli.reporting.figures.attention_maps import MapSet
from rnascl_cli.reporting.figures.style import Plot, Rendered, render
from rnascl_cli.reporting.sections import Section, sections
from rnascl_cli.reporting.tables.missing_runs import find_gaps, warnings
from rnascl_cli.reporting.tables.provenance import ProvenanceEntry, provenance_entry, provenance_table
from rnascl_cli.reporting.tables.summary import SummaryTile, tiles
from rnascl_cli.reporting.tables.table import Table

MARK = "<!-- rnascl report -->"
"""The first line of every report.md: how an older report is known from somebody's own files."""


@dataclass(frozen=True)
class Page:
    """Everything a report says.

    Attributes:
        models: The models reported.
        overview: What was found, in a line.
        tiles: Numbers that stand out.
        warnings: Of the gradient-masking checks; loud.
        gaps: What is missing or kept apart.
        sections: Tables and figures.
        drawn: The drawn figures by name.
        provenance_table: How each document was made, in short.
        makings: The same, at length.
        version: Of this tool.
    """

    models: Sequence[ReportModel]
    overview: str
    tiles: Sequence[SummaryTile]
    warnings: Sequence[str]
    gaps: Sequence[str]
    sections: Sequence[Section]
    drawn: Mapping[str, Rendered]
    provenance_table: Table
    makings: Sequence[ProvenanceEntry]
    version: str = field(default=__version__)


Draw = Callable[[Iterable[Plot]], list[Rendered]]


def render_all(plots: Iterable[Plot]) -> list[Rendered]:
    """Draw every figure."""
    return [render(plot) for plot in plots]


ComputeMaps = Callable[[Sequence[ReportModel]], tuple[list[MapSet], list[str]]]


def build_page(
    runs: RunSet, *, paper: bool = False, draw: Draw = render_all, compute_maps: ComputeMaps | None = None
) -> Page:
    """Turn runs into a report.

    Args:
        runs: What was collected.
        paper: Whether to print all six published tables, rather than only the rows that something was
            measured for.
        draw: Renders the figures; a caller may show progress.
        compute_maps: Gives the attention maps of the models, and says in words what is missing; None for none.
    """
    found = models(runs)
    measured = groups(found)
    maps, without_maps = compute_maps(found) if compute_maps else ([], [])
    parts = sections(runs, found, measured, maps, paper=paper)
    drawn = draw(plot for part in parts for plot in part.all_plots)
    return Page(
        models=found,
        overview=_overview(runs, found),
        tiles=tiles(found, measured),
        warnings=[*changed_students(found), *warnings(measured)],
        gaps=[*find_gaps(runs, found, measured), *without_maps],
        sections=parts,
        drawn={figure.plot.name: figure for figure in drawn},
        provenance_table=provenance_table(runs.artifacts),
        makings=[provenance_entry(artifact) for artifact in runs.artifacts],
    )


def _overview(runs: RunSet, found: Sequence[ReportModel]) -> str:
    kinds = {
        "search": len(runs.searches),
        "training": len(runs.trainings),
        "adversarial fine-tuning": len(runs.finetunings),
        "attack run": len(runs.attacks),
    }
    # "searches" is the one plural here that takes more than an s.
    counts = [
        f"{count} {kind}{'' if count == 1 else 'es' if kind == 'search' else 's'}" for kind, count in kinds.items()
    ]
    attacked = sum(bool(model.attacks) for model in found)
    broken = f" {len(runs.unfinished)} unfinished." if runs.unfinished else ""
    return f"{', '.join(counts)}; {len(found)} model{'s' * (len(found) != 1)}, {attacked} of them attacked.{broken}"


def html(page: Page) -> str:
    """Render the page as one self-contained HTML file."""
    environment = _environment(autoescape=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment.get_template("report.html.j2").render(page=page)


def markdown(page: Page) -> str:
    """Render the page as Markdown, figures linked under ``figures/``."""
    environment = _environment(autoescape=False)
    environment.filters["md"] = escape_markdown
    environment.filters["fenced"] = fenced
    return environment.get_template("report.md.j2").render(page=page, mark=MARK)


def _environment(*, autoescape: bool) -> Environment:
    loader = PackageLoader("rnascl_cli.reporting", "templates")
    return Environment(
        loader=loader,
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def escape_markdown(value: Any) -> str:
    """Return text that Markdown and the HTML it becomes show as it is, in a paragraph or a table cell."""
    words = " ".join(str(value).split())
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    words = re.sub(r"([\\`*_|~])", r"\\\1", words)
    if re.search(r"\][(\[:]", words):  # a lone [a, b] is an interval; only these could become links
        words = re.sub(r"([\[\]])", r"\\\1", words)
    return re.sub(r"^([-+#]|\d+\.)(?= )", r"\\\1", words)


def fenced(value: str) -> str:
    """Return text as a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{value}\n{fence}"
