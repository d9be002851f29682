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
from rnascl_cli.reporting.tables.missing_runs import find_caveats, masking_warnings
from rnascl_cli.reporting.tables.provenance import ProvenanceEntry, provenance_entry, provenance_table
from rnascl_cli.reporting.tables.summary import SummaryTile, tiles
from rnascl_cli.reporting.tables.table import Table

MARK = "<!-- rnascl report -->"
"""First line of every report.md; only files that start with it are replaced."""


@dataclass(frozen=True)
class Page:
    """A report as data.

    Attributes:
        models: The models.
        overview: One line about the runs.
        tiles: Key numbers.
        warnings: Warnings of the gradient-masking checks.
        caveats: Missing, partial or incomparable results.
        sections: Tables and figures.
        drawn: The rendered figures by name.
        provenance_table: Provenance of each document, in short.
        provenance: Provenance of each document, in full.
        version: Version of this tool.
    """

    models: Sequence[ReportModel]
    overview: str
    tiles: Sequence[SummaryTile]
    warnings: Sequence[str]
    caveats: Sequence[str]
    sections: Sequence[Section]
    drawn: Mapping[str, Rendered]
    provenance_table: Table
    provenance: Sequence[ProvenanceEntry]
    version: str = field(default=__version__)


Draw = Callable[[Iterable[Plot]], list[Rendered]]


def render_all(plots: Iterable[Plot]) -> list[Rendered]:
    """Draw every figure."""
    return [render(plot) for plot in plots]


ComputeMaps = Callable[[Sequence[ReportModel]], tuple[list[MapSet], list[str]]]


def build_page(
    runs: RunSet, *, paper: bool = False, draw: Draw = render_all, compute_maps: ComputeMaps | None = None
) -> Page:
    """Build a report from runs.

    Args:
        runs: The collected runs.
        paper: Whether to show all six published tables in full, rather than only the rows with a measured counterpart.
        draw: Renders the figures; a caller may show progress.
        compute_maps: Returns the attention maps of the models and what is missing in words; None for no maps.
    """
    found = models(runs)
    measurements = groups(found)
    maps, without_maps = compute_maps(found) if compute_maps else ([], [])
    parts = sections(runs, found, measurements, maps, paper=paper)
    drawn = draw(plot for part in parts for plot in part.all_plots)
    return Page(
        models=found,
        overview=_overview(runs, found),
        tiles=tiles(found, measurements),
        warnings=[*changed_students(found), *masking_warnings(measurements)],
        caveats=[*find_caveats(runs, found, measurements), *without_maps],
        sections=parts,
        drawn={figure.plot.name: figure for figure in drawn},
        provenance_table=provenance_table(runs.artifacts),
        provenance=[provenance_entry(artifact) for artifact in runs.artifacts],
    )


def _overview(runs: RunSet, found: Sequence[ReportModel]) -> str:
    kinds = {
        "search": len(runs.searches),
        "training": len(runs.trainings),
        "adversarial fine-tuning": len(runs.finetunings),
        "attack run": len(runs.attacks),
    }
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
    """Escape text for a paragraph or a table cell of Markdown."""
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
