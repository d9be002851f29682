"""What a report says, part by part: words, figures, tables and cards, told once for HTML and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rnascl_cli.reporting.data.collect import RunSet
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.figures import search, tutors
from rnascl_cli.reporting.figures.attacks import attack_plots
from rnascl_cli.reporting.figures.attention_maps import MapSet, map_plot
from rnascl_cli.reporting.figures.paired_comparison import comparison_plot
from rnascl_cli.reporting.figures.published import published_plots
from rnascl_cli.reporting.figures.style import Plot
from rnascl_cli.reporting.tables.attacks import attack_tables
from rnascl_cli.reporting.tables.audit import AuditCard, audit_cards
from rnascl_cli.reporting.tables.paired_comparison import comparison_tables, comparisons, control_words
from rnascl_cli.reporting.tables.pareto import fronts
from rnascl_cli.reporting.tables.published import beside_published, paper_tables, unmatched
from rnascl_cli.reporting.tables.summary import headline, model_tables
from rnascl_cli.reporting.tables.table import Table
from rnascl_cli.reporting.tables.tutor_statistics import agreement_table, decided_table, likeness_table, tutored

UNFOLDED = 6
"""Up to so many figures of a fold are shown at once."""
STAGES_WITH_CURVES = ("search", "train", "adv-finetune")


@dataclass(frozen=True)
class CollapsibleSection:
    """Figures behind a heading of their own, folded away where there are many."""

    title: str
    plots: Sequence[Plot]

    @property
    def unfolded(self) -> bool:
        """Whether they are shown at once."""
        return len(self.plots) <= UNFOLDED


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor.
        title: Its heading.
        words: Paragraphs under the heading.
        plots: Its figures, to be drawn.
        tables: Its tables.
        cards: Its audits.
        folds: Further figures.
    """

    name: str
    title: str
    words: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[AuditCard] = ()
    folds: Sequence[CollapsibleSection] = ()

    @property
    def all_plots(self) -> list[Plot]:
        """All its figures."""
        return [*self.plots, *(plot for fold in self.folds for plot in fold.plots)]


def sections(
    runs: RunSet,
    found: Sequence[ReportModel],
    measured: Sequence[ComparableGroup],
    maps: Sequence[MapSet],
    *,
    paper: bool,
) -> list[Section]:
    """Return the parts of the report in their order.

    Args:
        runs: What was collected.
        found: The models in it.
        measured: Their measurements.
        maps: Attention maps for an image, where one was given.
        paper: Whether to print all published tables whole.
    """
    parts = [
        _summary(measured),
        *([_attacks(found, measured)] if measured else []),
        _published(found, measured, paper=paper),
        _runs(runs, found),
        _tutors(runs, measured, maps),
    ]
    return _unique_names(parts)


def _summary(measured: Sequence[ComparableGroup]) -> Section:
    words = []
    if not measured:
        words.append("No attack run is given: nothing is known about robustness.")
    if len({group.protocol for group in measured}) > 1:
        words.append(
            "Two protocols are present. Under pixel, eps is in units of the pixel range; under paper-code it is in "
            "units of normalised inputs, where 8/255 is about a quarter as large. Numbers of one are not numbers of "
            "the other."
        )
    return Section("summary", "Summary", words, tables=list(map(headline, measured)), cards=audit_cards(measured))


def _attacks(found: Sequence[ReportModel], measured: Sequence[ComparableGroup]) -> Section:
    tables = [table for group in measured for table in attack_tables(group)]
    return Section("attacks", "Under attack", (), attack_plots(measured, found), tables)


def _published(found: Sequence[ReportModel], measured: Sequence[ComparableGroup], *, paper: bool) -> Section:
    tables = paper_tables(found) if paper else beside_published(found)
    words = [] if tables else ["The paper's tables have no row for these runs."]
    if missing := unmatched(found):
        words.append("Without a published row: " + "; ".join(missing) + ".")
    if tables:
        words.append(
            "Each measured number carries its protocol. A published number's protocol is not known for certain "
            "(see the footnotes), so a difference mixes what was measured and how."
        )
    title = "The paper's tables" if paper else "Beside the paper"
    return Section("published", title, words, published_plots(measured, found), tables)


def _runs(runs: RunSet, found: Sequence[ReportModel]) -> Section:
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
    hardened = [plot for plot in map(search.hardening, runs.searches) if plot]
    searches = [*hardened, *map(search.width_choices, runs.searches)]
    words = [f"No history was recorded, so there are no curves, for {', '.join(without)}."] if without else []
    if not runs.searches:
        words.append("No search run is given: how the choices hardened is not shown.")
    folds = (CollapsibleSection("How the searches chose", searches), CollapsibleSection("Training curves", curves))
    front_tables, front_plots = fronts(found)
    tables = [*model_tables(found), *front_tables]
    return Section("runs", "Search and training", words, front_plots, tables, folds=_filled(folds))


def _filled(folds: Sequence[CollapsibleSection]) -> list[CollapsibleSection]:
    return [fold for fold in folds if fold.plots]


def _tutors(runs: RunSet, measured: Sequence[ComparableGroup], maps_of_image: Sequence[MapSet]) -> Section:
    maps = tutored(runs)
    agreement = agreement_table(maps)
    compared = comparisons(measured)
    tables = [
        *(table for comparison in compared for table in comparison_tables(comparison)),
        *(table for table in (agreement, decided_table(runs), likeness_table(maps)) if table is not None),
    ]
    plots = [
        *map(comparison_plot, compared),
        *tutors.tutor_choices(maps),
        *tutors.tutor_counts(maps),
    ]
    logits = [plot for plot in map(tutors.tutor_heatmap, runs.searches) if plot is not None]
    folds = _filled(
        (
            CollapsibleSection("Attention maps", list(map(map_plot, maps_of_image))),
            CollapsibleSection("Tutor logits", logits),
        )
    )
    if not maps:
        words = ["No derived document with learned tutors is given."]
        return Section("tutors", "Tutors", words, plots, tables, folds=folds)
    words = control_words(compared)
    if agreement is None:
        words.append(
            "No two searches share student layers and teacher, so whether seeds agree on the tutors cannot be told."
        )
    return Section("tutors", "Tutors", words, plots, tables, folds=folds)


def _unique_names(parts: Sequence[Section]) -> list[Section]:
    """Tell figures apart whose run names look alike as file names (``a/b`` and ``a b``)."""
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
            part, plots=renamed(part.plots), folds=[replace(fold, plots=renamed(fold.plots)) for fold in part.folds]
        )
        for part in parts
    ]
