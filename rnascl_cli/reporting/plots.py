"""Figures of accuracy under attack: Figures 1, 3, 5 and 10 of the paper, from measured runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rnascl_cli.artifacts.documents import AttackResult
from rnascl_cli.reporting.drawing import HATCHES, Plot, Theme, colour, label, legend_below, line, marker
from rnascl_cli.reporting.lineage import Model
from rnascl_cli.reporting.summary import ATTACK_NAMES, SAME, Group, Measured, attack_name, usual_eps

TEACHER_AREA = 90.0


def attack_plots(groups: Sequence[Group], models: Sequence[Model]) -> list[Plot]:
    """Return the figures of each group of comparable measurements."""
    order = {id(model): index for index, model in enumerate(models)}
    plots = []
    for group in groups:
        usual = usual_eps(group)
        if usual is None:
            continue
        # Two attack runs of one model share its colour, and differ in their names.
        looks = [order[id(found.model)] for found in group.measured]
        plots += [_trade_off(group, looks, usual), _bars(group, looks, usual)]
        if _sizes(group, None) > 1:
            plots.append(_against_eps(group, looks))
    return plots


def names(group: Group) -> list[str]:
    """Return one name a measurement: the model's, and the attack run's where a model was attacked twice."""
    times = Counter(found.model.name for found in group.measured)
    return [
        f"{found.model.name} ({found.attack.run})" if times[found.model.name] > 1 else found.model.name
        for found in group.measured
    ]


def _at(measured: Measured, attack: str, eps: float) -> AttackResult | None:
    results = measured.attack.document.results
    return next((r for r in results if r.attack == attack and abs(r.eps_value - eps) < SAME), None)


def _attacks(group: Group) -> list[str]:
    found = {result.attack for measured in group.measured for result in measured.attack.document.results}
    known = [name for name in ATTACK_NAMES if name in found]
    return known + sorted(found - set(known))


def _sizes(group: Group, attack: str | None) -> int:
    """Return how many sizes of perturbation above zero one measurement went through, at most."""
    return max(
        len({r.eps_value for r in found.attack.document.results if r.attack == (attack or r.attack)} - {0.0})
        for found in group.measured
    )


def _where(group: Group) -> str:
    return f"{group.n:,} test images of data {group.letter}, protocol {group.protocol}"


def _trade_off(group: Group, looks: Sequence[int], eps: AttackResult) -> Plot:
    present = _attacks(group)
    chosen = [name for name in ("pgd20", "aa") if name in present] or present[:1]

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
        handles: dict[str, Any] = {}
        for axis, attack in zip(axes, chosen, strict=True):
            for found, look, name in zip(group.measured, looks, names(group), strict=True):
                result = _at(found, attack, eps.eps_value)
                if result is not None:
                    handles.setdefault(name, _point(axis, found, result, look, theme))
            axis.set_xlabel("Clean accuracy (%)")
            axis.set_title(f"{attack_name(attack)}, eps {eps.eps}")
            axis.margins(0.15)
        axes[0].set_ylabel("Accuracy under attack (%)")
        axes[0].set_ylim(bottom=min(0.0, axes[0].get_ylim()[0]))
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"clean-against-robust-{group.letter.lower()}",
        f"Clean against robust accuracy ({group.letter})",
        f"{_where(group)}. A larger marker is a larger network (area by the root of its params); a hollow one is a "
        "network of unrecorded size, such as a teacher. Bars: 95 % intervals, where a subset was attacked.",
        (4.6 * len(chosen) + 0.6, 4.4 + 0.22 * math.ceil(len(group.measured) / 2)),
        draw,
    )


def _point(axis: Any, found: Measured, result: AttackResult, look: int, theme: Theme) -> Any:
    clean, robust = 100 * found.attack.document.clean_accuracy, 100 * result.accuracy
    built = found.model.architecture
    area = TEACHER_AREA if built is None else 30 + 160 * math.sqrt(built.params / 1e6)
    if result.confidence_interval is not None:
        low, high = result.confidence_interval
        axis.vlines(clean, 100 * low, 100 * high, color=colour(look), linewidth=1, alpha=0.8)
    return axis.scatter(
        clean,
        robust,
        s=area,
        marker=marker(look),
        color="none" if built is None else colour(look),
        edgecolors=colour(look) if built is None else theme.ink,
        linewidths=1.6 if built is None else 0.6,
    )


def _bars(group: Group, looks: Sequence[int], eps: AttackResult) -> Plot:
    attacks = _attacks(group)

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        width = 0.82 / len(group.measured)
        handles = []
        for place, (found, look) in enumerate(zip(group.measured, looks, strict=True)):
            shift = (place - (len(group.measured) - 1) / 2) * width
            clean = found.attack.document.clean_accuracy
            entries = [(0, clean, found.interval(clean))]
            for index, attack in enumerate(attacks, 1):
                if (result := _at(found, attack, eps.eps_value)) is not None:
                    entries.append((index, result.accuracy, result.confidence_interval))
            bars = axis.bar(
                [index + shift for index, _, _ in entries],
                [100 * share for _, share, _ in entries],
                width,
                color=colour(look),
                hatch=HATCHES[place % len(HATCHES)],
                edgecolor=theme.paper if theme.paper != "none" else "#15181c",
                linewidth=0.5,
            )
            _whiskers(axis, [(index + shift, share, interval) for index, share, interval in entries], theme)
            handles.append(bars)
        axis.set_xticks(range(len(attacks) + 1), ["Clean", *(attack_name(name) for name in attacks)])
        axis.set_ylabel("Accuracy (%)")
        axis.set_ylim(0, 100)
        axis.grid(visible=False, axis="x")
        legend_below(figure, handles, names(group))

    return Plot(
        f"accuracy-by-attack-{group.letter.lower()}",
        f"Accuracy under each attack ({group.letter})",
        f"{_where(group)}; attacks at eps {eps.eps}. No bar: not measured (a measured 0 % stands in the table). "
        "Whiskers: 95 % intervals, where a subset was attacked.",
        (max(7.0, 0.45 * (len(attacks) + 1) * max(len(group.measured), 2)), 4.4 + 0.12 * len(group.measured)),
        draw,
    )


def _whiskers(axis: Any, entries: Sequence[tuple[float, float, tuple[float, float] | None]], theme: Theme) -> None:
    for place, _, interval in entries:
        if interval is not None:
            axis.vlines(place, 100 * interval[0], 100 * interval[1], color=theme.ink, linewidth=1)


def _against_eps(group: Group, looks: Sequence[int]) -> Plot:
    swept = [name for name in _attacks(group) if _sizes(group, name) > 1] or _attacks(group)[:1]

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(math.ceil(len(swept) / 3), min(3, len(swept)), squeeze=False, sharey=True).flatten()
        handles: dict[str, Any] = {}
        for axis, attack in zip(axes, swept, strict=False):
            for found, look, name in zip(group.measured, looks, names(group), strict=True):
                track = _sweep(found, attack)
                if track:
                    (drawn,) = axis.plot(
                        [255 * eps for eps, _ in track],
                        [100 * share for _, share in track],
                        color=colour(look),
                        linestyle=line(look) if len(track) > 2 else "none",
                        marker=marker(look),
                        label=label(name),
                    )
                    handles.setdefault(name, drawn)
            axis.set_title(attack_name(attack))
            axis.set_xlabel("eps (× 1/255)")
            axis.set_ylim(0, 100)
        for axis in axes[len(swept) :]:
            axis.set_axis_off()
        axes[0].set_ylabel("Accuracy (%)")
        legend_below(figure, list(handles.values()), list(handles))

    return Plot(
        f"accuracy-against-eps-{group.letter.lower()}",
        f"Accuracy against the size of the perturbation ({group.letter})",
        f"{_where(group)}. eps 0 is clean accuracy. A lone marker is a model attacked at one size only.",
        (1.2 + 3.4 * min(3, len(swept)), 1.2 + 3.2 * math.ceil(len(swept) / 3)),
        draw,
    )


def _sweep(found: Measured, attack: str) -> list[tuple[float, float]]:
    track = {r.eps_value: r.accuracy for r in found.attack.document.results if r.attack == attack}
    if len(set(track) - {0.0}) > 1:
        track = {0.0: found.attack.document.clean_accuracy} | track
    return sorted(track.items())
