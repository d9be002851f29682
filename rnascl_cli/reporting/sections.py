"""Sections of the report as data, rendered as HTML and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.data.paired_comparison import tutor_comparisons
from rnascl_cli.reporting.figures import search, tutors
from rnascl_cli.reporting.figures.attacks import attack_plots
from rnascl_cli.reporting.figures.attention_maps import MapSet, map_plot
from rnascl_cli.reporting.figures.paired_comparison import comparison_plot
from rnascl_cli.reporting.figures.published import published_plots
from rnascl_cli.reporting.figures.style import Plot
from rnascl_cli.reporting.tables.attacks import attack_tables
from rnascl_cli.reporting.tables.audit import AuditCard, audit_cards
from rnascl_cli.reporting.tables.paired_comparison import comparison_tables, missing_controls
from rnascl_cli.reporting.tables.pareto import front_students, front_table
from rnascl_cli.reporting.tables.published import published_tables, unmatched
from rnascl_cli.reporting.tables.summary import headline, model_tables
from rnascl_cli.reporting.tables.table import Table
from rnascl_cli.reporting.tables.tutor_statistics import (
    agreement_table,
    entropy_table,
    learned_tutor_maps,
    similarity_table,
)

MAX_OPEN = 6
"""A collapsible section with more figures than this starts closed."""
STAGES_WITH_CURVES = ("search", "train", "adv-finetune")


@dataclass(frozen=True)
class CollapsibleSection:
    """Figures under a heading that can be collapsed."""

    title: str
    plots: Sequence[Plot]

    @property
    def open(self) -> bool:
        """Whether the figures are visible without a click."""
        return len(self.plots) <= MAX_OPEN


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: Anchor.
        title: Heading.
        words: Paragraphs under the heading.
        plots: Figures.
        tables: Tables.
        cards: Audits.
        collapsible: Further figures.
    """

    name: str
    title: str
    words: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[AuditCard] = ()
    collapsible: Sequence[CollapsibleSection] = ()

    @property
    def all_plots(self) -> list[Plot]:
        """All figures of the section."""
        return [*self.plots, *(plot for part in self.collapsible for plot in part.plots)]


def sections(
    runs: RunSet,
    models: Sequence[ReportModel],
    groups: Sequence[ComparableGroup],
    maps: Sequence[MapSet],
    *,
    paper: bool,
) -> list[Section]:
    """Return the sections of the report.

    Args:
        runs: The collected runs.
        models: Their models.
        groups: The measurements of the models.
        maps: Attention maps for an image; empty without one.
        paper: Whether to show the published tables in full.
    """
    parts = [
        _summary(groups),
        *([_attacks(models, groups)] if groups else []),
        _published(models, groups, paper=paper),
        _runs(runs, models),
        _tutors(runs, groups, maps),
    ]
    return _unique_names(parts)


def _summary(groups: Sequence[ComparableGroup]) -> Section:
    words = []
    if not groups:
        words.append("No attack run is given, so robust accuracy is unknown.")
    if len({group.protocol for group in groups}) > 1:
        words.append(
            "The attacks use two protocols. Under pixel, eps is in units of the pixel range; under paper-code it is in "
            "units of normalized inputs, where 8/255 is about a quarter as large. Do not compare numbers of different "
            "protocols."
        )
    return Section("summary", "Summary", words, tables=list(map(headline, groups)), cards=audit_cards(groups))


def _attacks(models: Sequence[ReportModel], groups: Sequence[ComparableGroup]) -> Section:
    tables = [table for group in groups for table in attack_tables(group)]
    return Section("attacks", "Attacks", (), attack_plots(groups, models), tables)


def _published(models: Sequence[ReportModel], groups: Sequence[ComparableGroup], *, paper: bool) -> Section:
    tables = published_tables(models, full=paper)
    words = [] if tables else ["The paper's tables have no row for these runs."]
    if missing := unmatched(models):
        words.append("No published row: " + "; ".join(missing) + ".")
    if tables:
        words.append(
            "Each measured number has its protocol beside it. The protocol of the published numbers is not known for "
            "certain (see the footnotes), so a difference may be due to the protocol."
        )
    title = "Published tables" if paper else "Comparison with the paper"
    return Section("published", title, words, published_plots(groups, models), tables)


def _runs(runs: RunSet, models: Sequence[ReportModel]) -> Section:
    curves, without = [], []
    for artifact in runs.artifacts:
        if artifact.document.kind in STAGES_WITH_CURVES:
            plot = search.curves(artifact)
            if plot is None:
                without.append(f"{artifact.run} ({artifact.document.kind})")
            else:
                curves.append(plot)
    for unfinished in runs.unfinished:
        if plot := search.history_plot(unfinished.run, "unfinished", unfinished.history):
            curves.append(plot)
    entropies = [plot for plot in map(search.hardening, runs.searches) if plot]
    searches = [*entropies, *map(search.width_choices, runs.searches)]
    words = [f"No training curves of {', '.join(without)}: no history was recorded."] if without else []
    if not runs.searches:
        words.append("No search run is given, so the search is not shown.")
    collapsible = (CollapsibleSection("Searches", searches), CollapsibleSection("Training curves", curves))
    front = front_students(models)
    tables = [*model_tables(models), *([front_table(front)] if front else [])]
    plots = [search.front_plot(front)] if front else []
    return Section("runs", "Search and training", words, plots, tables, collapsible=_nonempty(collapsible))


def _nonempty(parts: Sequence[CollapsibleSection]) -> list[CollapsibleSection]:
    return [part for part in parts if part.plots]


def _tutors(runs: RunSet, groups: Sequence[ComparableGroup], maps_of_image: Sequence[MapSet]) -> Section:
    maps = learned_tutor_maps(runs)
    agreement = agreement_table(maps)
    comparisons = tutor_comparisons(groups)
    tables = [
        *(table for comparison in comparisons for table in comparison_tables(comparison)),
        *(table for table in (agreement, entropy_table(runs), similarity_table(maps)) if table is not None),
    ]
    plots = [
        *map(comparison_plot, comparisons),
        *tutors.tutor_choices(maps),
        *tutors.tutor_counts(maps),
    ]
    logits = [plot for plot in map(tutors.tutor_heatmap, runs.searches) if plot is not None]
    collapsible = _nonempty(
        (
            CollapsibleSection("Attention maps", list(map(map_plot, maps_of_image))),
            CollapsibleSection("Tutor logits", logits),
        )
    )
    if not maps:
        words = ["No derived document with learned tutors is given."]
        return Section("tutors", "Tutors", words, plots, tables, collapsible=collapsible)
    words = missing_controls(comparisons)
    if agreement is None:
        words.append(
            "No two searches have the same student layers and teacher, so the agreement between seeds is unknown."
        )
    return Section("tutors", "Tutors", words, plots, tables, collapsible=collapsible)


def _unique_names(parts: Sequence[Section]) -> list[Section]:
    """Number figures whose run names give the same file name (``a/b`` and ``a b``)."""
    times: Counter[str] = Counter()

    def renamed(plots: Sequence[Plot]) -> list[Plot]:
        found = []
        for plot in plots:
            times[plot.name] += 1
            again = times[plot.name] > 1
            found.append(replace(plot, name=f"{plot.name}-{times[plot.name]}") if again else plot)
        return found

    return [
        replace(
            part,
            plots=renamed(part.plots),
            collapsible=[replace(group, plots=renamed(group.plots)) for group in part.collapsible],
        )
        for part in parts
    ]
