"""Figures of attention maps for an image: student layers beside their tutors (Figures 2b, 4a, 7 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnascl_cli.reporting.drawing import HEAT, Plot, Theme
from rnascl_cli.reporting.search_plots import slug

Map = Sequence[Sequence[float]]


@dataclass(frozen=True)
class LayerMap:
    """One layer's attention map, rows of pixels."""

    layer: str
    values: Map


@dataclass(frozen=True)
class MapSet:
    """Maps of one student and its teacher for one image.

    Attributes:
        model: The student's name.
        teacher: The teacher's architecture.
        image: The image's file name.
        pixels: The image, rows of pixels of three values in [0, 1].
        students: Maps of chosen student layers.
        tutors: Maps of their tutors, in the same order.
        popular: Maps of the teacher layers that most student layers chose.
    """

    model: str
    teacher: str
    image: str
    pixels: Sequence[Sequence[Sequence[float]]]
    students: Sequence[LayerMap]
    tutors: Sequence[LayerMap]
    popular: Sequence[LayerMap]


def map_plot(maps: MapSet) -> Plot:
    """Return the figure of one student's maps."""
    rows = (("student", maps.students), ("its tutor", maps.tutors), ("most chosen", maps.popular))
    columns = 1 + max(len(row) for _, row in rows)

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for axis in axes.flatten():
            axis.set_axis_off()
        axes[0][0].imshow(maps.pixels)
        axes[0][0].set_title("image", fontsize=8)
        for place, (words, row) in enumerate(rows):
            first = axes[place][1]
            first.text(-0.1, 0.5, words, transform=first.transAxes, rotation=90, ha="center", va="center", fontsize=9)
            for axis, found in zip(axes[place][1:], row, strict=False):
                axis.imshow(found.values, cmap=HEAT, interpolation="nearest")
                axis.set_title(found.layer, fontsize=6.5)

    return Plot(
        f"maps-{slug(maps.model)}",
        f"{maps.model}: attention maps",
        f"Attention maps for {maps.image}: student layers at regular intervals (top), the layer of {maps.teacher} that "
        "each learns from (middle), and the teacher layers that most student layers chose (bottom, with how many). "
        "Each map is scaled to its own range; bright is where the layer's squared activations are largest.",
        (1.35 * columns + 0.4, 1.55 * len(rows) + 0.2),
        draw,
    )
