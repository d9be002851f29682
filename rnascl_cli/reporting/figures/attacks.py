"""Figures of accuracy under attack: Figures 1, 3, 5, 10 and 11 of the paper, from measured runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnascl_cli.artifacts.documents import AttackResult
from rnascl_cli.reporting.data.comparable_groups import (
    ATTACK_NAMES,
    EPS_UNITS,
    ComparableGroup,
    ComparableResult,
    attack_name,
    common_eps,
)
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.figures.style import Plot, Theme, color_of, label, legend_below, line, marker, shading

TEACHER_AREA = 90.0
MAX_COLORS = 8
"""With more models than this, models with the same training share a color."""


@dataclass(frozen=True)
class PlotStyle:
    """Color and marker index of a measurement, and its name in the legend."""

    index: int
    name: str


def attack_plots(groups: Sequence[ComparableGroup], models: Sequence[ReportModel]) -> list[Plot]:
    """Return the figures of each group of comparable measurements."""
    plots = []
    for group in groups:
        eps = common_eps(group)
        if eps is None:
            continue
        styles = plot_styles(group, models)
        plots += [_trade_off(group, styles, eps), _by_attack(group, eps)]
        if _sizes(group, None) > 1:
            plots.append(_against_eps(group, styles))
    return plots


def plot_styles(group: ComparableGroup, models: Sequence[ReportModel]) -> list[PlotStyle]:
    """Return the style of each measurement; a model has the same style in all groups."""
    if len(group.measurements) <= MAX_COLORS:
        order = {id(model): index for index, model in enumerate(models)}
        named = zip(group.measurements, names(group), strict=True)
        return [PlotStyle(order[id(found.model)], name) for found, name in named]
    kinds = list(dict.fromkeys(_kind(model) for model in models))
    return [PlotStyle(kinds.index(_kind(found.model)), _kind(found.model)) for found in group.measurements]


def _kind(model: ReportModel) -> str:
    return f"{model.architecture.space}, {model.trained}" if model.architecture else model.trained


def names(group: ComparableGroup) -> list[str]:
    """Return a name for each measurement: the model, and the attack run if the model was attacked twice."""
    times = Counter(found.model.name for found in group.measurements)
    return [
        f"{found.model.name} ({found.attack.run})" if times[found.model.name] > 1 else found.model.name
        for found in group.measurements
    ]


def _attacks(group: ComparableGroup) -> list[str]:
    found = {result.attack for measurement in group.measurements for result in measurement.attack.document.results}
    known = [name for name in ATTACK_NAMES if name in found]
    return known + sorted(found - set(known))


def _sizes(group: ComparableGroup, attack: str | None) -> int:
    """Return the largest number of different eps above zero in one measurement."""
    return max(
        len({r.eps_value for r in found.attack.document.results if r.attack == (attack or r.attack)} - {0.0})
        for found in group.measurements
    )


def _where(group: ComparableGroup) -> str:
    norm = "" if group.norm == "Linf" else f", norm {group.norm}"
    return f"{group.n:,} test images of data {group.letter}, protocol {group.protocol}{norm}"


def _trade_off(group: ComparableGroup, styles: Sequence[PlotStyle], eps: AttackResult) -> Plot:
    present = _attacks(group)
    chosen = [name for name in ("pgd20", "aa") if name in present] or present[:1]

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
        handles: dict[str, Any] = {}
        for axis, attack in zip(axes, chosen, strict=True):
            scatter(axis, group, styles, attack, eps.eps_value, theme, handles)
            axis.set_xlabel("Clean accuracy (%)")
            axis.set_title(f"{attack_name(attack)}, eps {eps.eps}")
            axis.margins(0.15)
        axes[0].set_ylabel("Accuracy under attack (%)")
        above_zero(axes[0])
        add_sizes(handles, axes[0], [found.model for found in group.measurements], theme)
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"clean-against-robust-{group.letter.lower()}",
        f"Clean and robust accuracy ({group.letter})",
        f"{_where(group)}. Marker area grows with the square root of the params; hollow markers are networks of "
        "unrecorded size, such as teachers. Bars: 95 % intervals, if a subset was attacked.",
        (3.7 * len(chosen) + 0.6, 4.2 + 0.22 * math.ceil(len({style.name for style in styles}) / 2)),
        draw,
    )


def scatter(
    axis: Any,
    group: ComparableGroup,
    styles: Sequence[PlotStyle],
    attack: str,
    eps: float,
    theme: Theme,
    handles: dict[str, Any],
) -> None:
    """Draw accuracy under an attack over clean accuracy for each measurement, and add legend ``handles``."""
    for found, style in zip(group.measurements, styles, strict=True):
        result = found.result_at(attack, eps)
        if result is not None:
            handles.setdefault(style.name, _point(axis, found, result, style.index, theme))


def area(params: int) -> float:
    """Return the area of the marker of a network of this size, in square points."""
    return 30 + 160 * math.sqrt(params / 1e6)


def above_zero(axis: Any) -> None:
    """Let the vertical axis start just below zero if its margin would start it far below."""
    low, high = axis.get_ylim()
    if low < 0:
        axis.set_ylim(bottom=-0.035 * high)


def add_sizes(handles: dict[str, Any], axis: Any, models: Sequence[ReportModel], theme: Theme) -> None:
    """Add the smallest and the largest network to the legend, as outlines."""
    sizes = sorted({model.architecture.params for model in models if model.architecture})
    for params in dict.fromkeys((sizes[0], sizes[-1])) if sizes else ():
        outline = axis.scatter([], [], s=area(params), color="none", edgecolors=theme.ink, linewidths=0.8)
        handles.setdefault(f"{params / 1e6:.2g} M params", outline)


def _point(axis: Any, found: ComparableResult, result: AttackResult, style: int, theme: Theme) -> Any:
    clean, robust = 100 * found.attack.document.clean_accuracy, 100 * result.accuracy
    built = found.model.architecture
    if result.confidence_interval is not None:
        low, high = result.confidence_interval
        axis.vlines(clean, 100 * low, 100 * high, color=color_of(style), linewidth=1, alpha=0.8)
    return axis.scatter(
        clean,
        robust,
        s=TEACHER_AREA if built is None else area(built.params),
        marker=marker(style),
        color="none" if built is None else color_of(style),
        edgecolors=color_of(style) if built is None else theme.ink,
        linewidths=1.6 if built is None else 0.6,
        zorder=3,
    )


def _by_attack(group: ComparableGroup, eps: AttackResult) -> Plot:
    attacks = [
        name for name in _attacks(group) if any(found.result_at(name, eps.eps_value) for found in group.measurements)
    ]
    labels = ["Clean", *(attack_name(name) for name in attacks)]
    rows = list(zip(group.measurements, names(group), strict=True))
    shades = shading(len(labels))

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        handles: dict[str, Any] = {}
        for row, (found, _) in enumerate(rows):
            clean = found.attack.document.clean_accuracy
            marks = [(0, clean, found.interval(clean))]
            for index, attack in enumerate(attacks, 1):
                if (result := found.result_at(attack, eps.eps_value)) is not None:
                    marks.append((index, result.accuracy, result.confidence_interval))
            shares = [100 * share for _, share, _ in marks]
            axis.hlines(row, min(shares), max(shares), color=theme.faint, linewidth=11, alpha=0.6, zorder=1)
            for index, share, interval in marks:
                place = row + 0.64 * (index / max(len(labels) - 1, 1) - 0.5)  # equal accuracies would hide each other
                if interval is not None:
                    axis.hlines(place, 100 * interval[0], 100 * interval[1], color=theme.ink, linewidth=0.8)
                look = {"marker": marker(index), "color": shades[index], "edgecolors": theme.ink, "linewidths": 0.6}
                point = axis.scatter(100 * share, place, s=46, zorder=3, **look)
                handles.setdefault(labels[index], point)
        axis.set_yticks(range(len(rows)), [label(name) for _, name in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(-1.5, 101.5)
        axis.set_xlabel(f"Accuracy (%), attacks at eps {eps.eps}")
        axis.grid(visible=False, axis="y")
        order = [name for name in labels if name in handles]
        legend_below(figure, [handles[name] for name in order], order)

    return Plot(
        f"accuracy-by-attack-{group.letter.lower()}",
        f"Accuracy under each attack ({group.letter})",
        f"{_where(group)}; attacks at eps {eps.eps}. One row per model; the bar spans from clean accuracy to the "
        "strongest attack. Missing markers were not measured. Whiskers: 95 % intervals, if a subset was attacked.",
        (7.9, 1.6 + max(0.62 * len(rows), 1.0)),
        draw,
    )


def _against_eps(group: ComparableGroup, styles: Sequence[PlotStyle]) -> Plot:
    swept = [name for name in _attacks(group) if _sizes(group, name) > 1] or _attacks(group)[:1]
    # 1/255 is a pixel step; it has no meaning for a Euclidean norm.
    scale, units = (255.0, EPS_UNITS[group.protocol]) if group.norm == "Linf" else (1.0, "L2 over an image's pixels")

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(math.ceil(len(swept) / 3), min(3, len(swept)), squeeze=False, sharey=True).flatten()
        handles: dict[str, Any] = {}
        for axis, attack in zip(axes, swept, strict=False):
            for found, style in zip(group.measurements, styles, strict=True):
                track = _sweep(found, attack)
                if track:
                    (curve,) = axis.plot(
                        [scale * eps for eps, _ in track],
                        [100 * share for _, share in track],
                        color=color_of(style.index),
                        linestyle=line(style.index) if len(track) > 2 else "none",
                        marker=marker(style.index),
                        clip_on=False,
                        zorder=3,
                    )
                    handles.setdefault(style.name, curve)
            axis.set_title(attack_name(attack))
            axis.set_xlabel(f"eps ({units})")
            axis.set_ylim(0, 100)
            axis.set_xlim(left=0)
        for axis in axes[len(swept) :]:
            axis.set_axis_off()
        axes[0].set_ylabel("Accuracy (%)")
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"accuracy-against-eps-{group.letter.lower()}",
        f"Accuracy over eps ({group.letter})",
        f"{_where(group)}. eps 0 is clean accuracy. A single marker is a model attacked at one eps only.",
        (1.2 + 3.4 * min(3, len(swept)), 1.4 + 3.2 * math.ceil(len(swept) / 3)),
        draw,
    )


def _sweep(found: ComparableResult, attack: str) -> list[tuple[float, float]]:
    track = {r.eps_value: r.accuracy for r in found.attack.document.results if r.attack == attack}
    if len(set(track) - {0.0}) > 1:
        track = {0.0: found.attack.document.clean_accuracy} | track
    return sorted(track.items())
