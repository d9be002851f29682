"""The report itself: sections of tables and figures, rendered as one HTML file and as Markdown."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rnascl_cli import __version__
from rnascl_cli.reporting import search_plots
from rnascl_cli.reporting.collect import RunSet
from rnascl_cli.reporting.compare import beside_published, paper_tables, unmatched
from rnascl_cli.reporting.drawing import Plot, Rendered, render
from rnascl_cli.reporting.evidence import agreement_table, control_table, decided_table, tutored
from rnascl_cli.reporting.gaps import find_gaps, warnings
from rnascl_cli.reporting.lineage import Model, models
from rnascl_cli.reporting.making import Making, making
from rnascl_cli.reporting.map_plots import MapSet, map_plot
from rnascl_cli.reporting.plots import attack_plots
from rnascl_cli.reporting.summary import Group, attack_tables, groups, model_tables
from rnascl_cli.reporting.tables import Table

MARK = "<!-- rnascl report -->"
"""The first line of every report.md: how an older report is known from somebody's own files."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor.
        title: Its heading.
        words: Paragraphs under the heading.
        tables: Its tables.
        plots: Its figures, to be drawn.
    """

    name: str
    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Page:
    """Everything a report says.

    Attributes:
        models: The models reported.
        overview: What was found, in a line.
        warnings: Of the gradient-masking checks; loud.
        gaps: What is missing or kept apart.
        sections: Tables and figures.
        drawn: The drawn figures by name.
        makings: How each document was made.
        version: Of this tool.
    """

    models: Sequence[Model]
    overview: str
    warnings: Sequence[str]
    gaps: Sequence[str]
    sections: Sequence[Section]
    drawn: Mapping[str, Rendered]
    makings: Sequence[Making]
    version: str = field(default=__version__)


Draw = Callable[[Iterable[Plot]], list[Rendered]]


def render_all(plots: Iterable[Plot]) -> list[Rendered]:
    """Draw every figure."""
    return [render(plot) for plot in plots]


ComputeMaps = Callable[[Sequence[Model]], tuple[list[MapSet], list[str]]]


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
    sections = _unique_names(
        [_summary(found, measured), _published(found, paper=paper), _runs(runs), _tutors(runs, maps)],
    )
    drawn = draw(plot for section in sections for plot in section.plots)
    return Page(
        models=found,
        overview=_overview(runs, found),
        warnings=warnings(measured),
        gaps=[*find_gaps(runs, found, measured), *without_maps],
        sections=sections,
        drawn={figure.plot.name: figure for figure in drawn},
        makings=[making(artifact) for artifact in runs.artifacts],
    )


def _overview(runs: RunSet, found: Sequence[Model]) -> str:
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
    return f"{', '.join(counts)}; {len(found)} model{'s' * (len(found) != 1)}, {attacked} of them attacked."


def _summary(found: Sequence[Model], measured: Sequence[Group]) -> Section:
    words = []
    if not measured:
        words.append("No attack run is given: nothing is known about robustness.")
    if len({group.protocol for group in measured}) > 1:
        words.append(
            "Two protocols are present. Under pixel, eps is in units of the pixel range; under paper-code it is in "
            "units of normalised inputs, where 8/255 is about a quarter as large. Numbers of one are not numbers of "
            "the other."
        )
    tables = [*(table for group in measured for table in attack_tables(group)), *model_tables(found)]
    return Section("summary", "Summary", words, tables, attack_plots(measured, found))


def _published(found: Sequence[Model], *, paper: bool) -> Section:
    tables = paper_tables(found) if paper else beside_published(found)
    words = [] if tables else ["The paper's tables have no row for these runs."]
    if missing := unmatched(found):
        words.append("Without a published row: " + "; ".join(missing) + ".")
    if tables:
        words.append(
            "Each measured number carries its protocol. A published number's protocol is not known for certain "
            "(see the footnotes), so a difference mixes what was measured and how."
        )
    return Section("published", "The paper's tables" if paper else "Beside the paper", words, tables)


def _runs(runs: RunSet) -> Section:
    plots: list[Plot] = []
    without = []
    for artifact in runs.artifacts:
        if artifact.document.kind in ("search", "train", "adv-finetune"):
            plot = search_plots.curves(artifact)
            if plot is None:
                without.append(f"{artifact.run} ({artifact.document.kind})")
            else:
                plots.append(plot)
    for search in runs.searches:
        plots += [plot for plot in (search_plots.hardening(search), search_plots.width_choices(search)) if plot]
    words = [f"No history was recorded, so there are no curves, for {', '.join(without)}."] if without else []
    if not runs.searches:
        words.append("No search run is given: how the choices hardened is not shown.")
    return Section("runs", "Search and training", words, plots=plots)


def _tutors(runs: RunSet, maps_of_image: Sequence[MapSet]) -> Section:
    maps = tutored(runs)
    agreement = agreement_table(maps)
    tables = [table for table in (decided_table(runs), control_table(maps), agreement) if table is not None]
    plots = [
        *search_plots.tutor_counts(maps),
        *(plot for plot in map(search_plots.tutor_heatmap, runs.searches) if plot is not None),
        *map(map_plot, maps_of_image),
    ]
    words = []
    if not maps:
        words.append("No derived document with tutors is given.")
    elif agreement is None:
        words.append(
            "No two searches share student layers and teacher, so whether seeds agree on the tutors cannot be told."
        )
    return Section("tutors", "Tutors", words, tables, plots)


def _unique_names(sections: Sequence[Section]) -> list[Section]:
    """Tell figures apart whose run names look alike as file names (``a/b`` and ``a b``)."""
    times: Counter[str] = Counter()
    renamed = []
    for section in sections:
        plots = []
        for plot in section.plots:
            times[plot.name] += 1
            again = times[plot.name] > 1
            plots.append(replace(plot, name=f"{plot.name}-{times[plot.name]}") if again else plot)
        renamed.append(replace(section, plots=plots))
    return renamed


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
