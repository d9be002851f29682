"""Figures of attention maps for an image: student layers beside their tutors (Figures 2b, 4a, 7 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnascl_cli.reporting.figures.style import HEAT, Plot, Theme
from rnascl_cli.reporting.tables.table import slug

Map = Sequence[Sequence[float]]


@dataclass(frozen=True)
class LayerMap:
    """One layer's attention map, rows of pixels.

    Attributes:
        layer: Its index and name.
        values: The map.
        distance: Of the unit map to the tutor's, as in eq. (1); None for a tutor itself.
    """

    layer: str
    values: Map
    distance: float | None = None


@dataclass(frozen=True)
class ComparedMaps:
    """Maps of the same layers of a student trained with KL alone under the same teacher.

    Attributes:
        model: Its name.
        maps: In the order of the student's.
        mean_distance: Over all its layers, to the tutors that the other student has for them.
    """

    model: str
    maps: Sequence[LayerMap]
    mean_distance: float


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
        mean_distance: Of the student's unit maps to their tutors', over all its layers.
        baseline: A student trained with KL alone; None without one.
    """

    model: str
    teacher: str
    image: str
    pixels: Sequence[Sequence[Sequence[float]]]
    students: Sequence[LayerMap]
    tutors: Sequence[LayerMap]
    popular: Sequence[LayerMap]
    mean_distance: float
    baseline: ComparedMaps | None = None


def map_plot(maps: MapSet) -> Plot:
    """Return the figure of one student's maps."""
    rows = [("most chosen", maps.popular), ("its tutor", maps.tutors), ("student", maps.students)]
    if maps.baseline:
        rows.append(("KL alone", maps.baseline.maps))
    columns = 1 + max(len(row) for _, row in rows)

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for axis in axes.flatten():
            axis.set_axis_off()
        axes[0][0].imshow(maps.pixels)
        axes[0][0].set_title(maps.image, fontsize=8)
        for place, (words, row) in enumerate(rows):
            first = axes[place][1]
            first.text(-0.1, 0.5, words, transform=first.transAxes, rotation=90, ha="center", va="center", fontsize=9)
            for axis, found in zip(axes[place][1:], row, strict=False):
                axis.imshow(found.values, cmap=HEAT, interpolation="nearest")
                far = "" if found.distance is None else f"\ndistance {found.distance:.2f}"
                axis.set_title(f"{found.layer}{far}", fontsize=6.5)

    return Plot(
        f"maps-{slug(maps.model)}", f"{maps.model}: attention maps", _caption(maps), _size(len(rows), columns), draw
    )


def _size(rows: int, columns: int) -> tuple[float, float]:
    return (1.35 * columns + 0.4, 1.62 * rows + 0.2)


def _caption(maps: MapSet) -> str:
    words = (
        f"Attention maps for {maps.image}. Top: the layers of {maps.teacher} that most student layers chose, and how "
        "many did. Below: the tutors of student layers at regular intervals, and those student layers. Each map is "
        "scaled to its own range; bright is where the layer's squared activations are largest. distance: of unit maps, "
        f"as in eq. (1), to the tutor; over all layers its mean is {maps.mean_distance:.2f}."
    )
    if maps.baseline:
        words += (
            f" Bottom: the same layers of {maps.baseline.model}, trained with KL and no tutors; distance to the same "
            f"tutors, mean {maps.baseline.mean_distance:.2f}."
        )
    return words
