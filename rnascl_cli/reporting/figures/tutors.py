"""Figures of tutor maps: logits, choices, how many student layers chose each teacher layer (Figures 4b, 6 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.distill.tutor_baselines import same_depth_tutors
from rnascl_cli.reporting.data.collect import Artifact
from rnascl_cli.reporting.figures.style import HEAT, PALETTE, Plot, Theme, color_of, legend_below, marker
from rnascl_cli.reporting.tables.table import slug
from rnascl_cli.reporting.tables.tutor_statistics import LearnedTutorMap, by_layers, softmax
from rnascl_cli.reporting.tables.tutor_statistics import tutor_counts as counts

NAMED_LAYERS = 45


def tutor_heatmap(found: Artifact[SearchDocument]) -> Plot | None:
    """Return the softmax of the tutor logits, student layers by teacher layers; None without tutors."""
    document = found.document
    if not document.tutor_logits or not document.teacher_layers:
        return None
    students, teachers = len(document.student_layers), len(document.teacher_layers)

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        shares = [softmax(row) for row in document.tutor_logits]
        relative = [[teachers * share for share in row] for row in shares]
        image = axis.imshow(relative, cmap=HEAT, aspect="auto", interpolation="nearest")
        axis.plot(
            [row.index(max(row)) for row in shares],
            range(students),
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor=PALETTE[1],
            markeredgecolor="#fff",
            markeredgewidth=0.7,
        )
        _layer_ticks(axis.xaxis, document.teacher_layers, rotation=90)
        _layer_ticks(axis.yaxis, document.student_layers, rotation=0)
        axis.set_xlabel("Teacher layer")
        axis.set_ylabel("Student layer")
        axis.grid(visible=False)
        # The color scale spans the data, so its ticks need enough digits.
        figure.colorbar(image, ax=axis, label="Softmax relative to uniform", fraction=0.04, format="%.5g")

    return Plot(
        f"tutors-{slug(found.run)}",
        f"{found.run}: tutors",
        "Softmax of the tutor logits at the end of the search (temperature 1, no noise), first layers at the top "
        f"left, relative to the uniform 1/{teachers}. The color scale spans the data. Dots: the tutors of derive.",
        (min(14.0, 3.2 + 0.22 * teachers), min(14.0, 2.4 + 0.17 * students)),
        draw,
    )


def _layer_ticks(axis: Any, layers: Sequence[str], *, rotation: int) -> None:
    if len(layers) <= NAMED_LAYERS:
        axis.set_ticks(range(len(layers)), [f"{name} ({index})" for index, name in enumerate(layers)])
        axis.set_tick_params(labelsize=7, labelrotation=rotation)
    else:
        axis.set_ticks(range(0, len(layers), 5))


def tutor_counts(maps: Sequence[LearnedTutorMap]) -> list[Plot]:
    """Return the number of student layers that chose each teacher layer: a figure per teacher, a panel per search."""
    by_teacher: dict[tuple[str, tuple[str, ...]], list[LearnedTutorMap]] = {}
    for found in maps:
        key = (found.tutors.teacher.sha256, tuple(found.tutors.teacher_layers))
        by_teacher.setdefault(key, []).append(found)
    return [_counts(index, group) for index, group in enumerate(by_teacher.values(), 1)]


def tutor_choices(maps: Sequence[LearnedTutorMap]) -> list[Plot]:
    """Return the tutor of each student layer, a color per search; one figure per teacher and student layers."""
    return [_choices(index, group) for index, group in enumerate(by_layers(maps), 1)]


def _choices(index: int, maps: Sequence[LearnedTutorMap]) -> Plot:
    first = maps[0].tutors
    students, teachers = len(first.student_layers), len(first.teacher_layers)

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        (depth,) = axis.plot(same_depth_tutors(students, teachers), color=theme.ink, linestyle=":", linewidth=1)
        handles = [depth]
        for place, found in enumerate(maps):
            shift = (place - (len(maps) - 1) / 2) * min(0.2, 0.8 / len(maps))
            where = [layer + shift for layer in range(students)]
            look = {"marker": marker(place), "color": color_of(place), "edgecolors": theme.ink, "linewidths": 0.4}
            handles.append(axis.scatter(where, found.tutors.tutor, s=30, zorder=3, **look))
        axis.set_xlabel("Student layer, first to last")
        axis.set_ylabel(f"Layer of the teacher ({first.teacher.architecture})")
        axis.set_ylim(-0.7, teachers - 0.3)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
        named = [f"{found.run}, seed {found.seed}" for found in maps]
        legend_below(figure, handles, ["same relative depth", *named])

    return Plot(
        f"tutor-choices-{index}",
        f"Tutor of each student layer (teacher {first.teacher.architecture})",
        f"One point per student layer; layers are counted from 0. {maps[0].space}, teacher "
        f"{first.teacher.architecture}, sha256 {first.teacher.sha256[:12]}. Dotted: tutors of the same relative depth.",
        (max(7.0, 2.0 + 0.17 * students), 4.6),
        draw,
    )


def _counts(index: int, maps: Sequence[LearnedTutorMap]) -> Plot:
    teacher = maps[0].tutors.teacher
    layers = maps[0].tutors.teacher_layers

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
        handles = []
        for place, (axis, found) in enumerate(zip(axes, maps, strict=True)):
            handles.append(axis.bar(range(len(layers)), counts(found.tutors), color=color_of(place), width=0.8))
            axis.set_ylabel("Student layers")
            axis.yaxis.get_major_locator().set_params(integer=True)
            axis.grid(visible=False, axis="x")
        if len(layers) <= NAMED_LAYERS:
            _layer_ticks(axes[-1].xaxis, layers, rotation=90)
        axes[-1].set_xlabel(f"Layer of the teacher ({teacher.architecture})")
        named = [f"{found.run}: {found.space}, seed {found.seed}, {len(found.tutors.tutor)} layers" for found in maps]
        legend_below(figure, handles, named)

    return Plot(
        f"tutor-counts-{index}",
        f"Number of student layers per tutor (teacher {teacher.architecture})",
        f"Teacher {teacher.architecture}, sha256 {teacher.sha256[:12]}. One panel per search; layers count from 0.",
        (max(7.0, 2.0 + 0.2 * len(layers)), 1.9 + 1.7 * len(maps)),
        draw,
    )
