"""Figures of what happened in a run: curves, choices hardening, widths and tutors (Figures 4b, 6 and 8)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Rectangle

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AnyDocument, SearchDocument, TrainDocument
from rnascl_cli.reporting.collect import Artifact
from rnascl_cli.reporting.drawing import (
    HEAT,
    MANY_POINTS,
    PALETTE,
    Plot,
    Theme,
    colour,
    legend_below,
    line,
    marker,
    plain_log,
)
from rnascl_cli.reporting.evidence import Tutored, counts, softmax
from rnascl_cli.spaces import SPACES, network_cost

LOSS_TERMS = {
    "loss": "whole loss",
    "gumbel_loss": "whole loss, Gumbel step",
    "ce": "cross-entropy",
    "kl": "KL to the teacher",
    "attention": "attention, eq. (1)",
    "adversarial": "adversarial term",
}
ACCURACIES = {"train_accuracy": "training images", "holdout_accuracy": "held-out images"}
ENTROPIES = {"width_entropy": "widths", "tutor_entropy": "tutors"}
LOG_FROM = 50.0
NAMED_LAYERS = 45

History = Sequence[dict[str, Any]]


def slug(name: str) -> str:
    """Return a file name's part for a run: letters, digits, dots and dashes only."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower() or "run"


def series(history: History, key: str) -> tuple[list[float], list[float]]:
    """Return the epochs, counted from 1, and the values of one metric; entries without it are passed over."""
    epochs, values = [], []
    for index, entry in enumerate(history):
        value = entry.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            epochs.append(float(index + 1))
            values.append(float(value))
    return epochs, values


def curves(found: Artifact[AnyDocument]) -> Plot | None:
    """Return loss terms, accuracies and learning rate over the epochs; None without a history."""
    document = found.document
    if not isinstance(document, SearchDocument | TrainDocument | AdvFinetuneDocument):
        return None
    history = document.history
    terms = {key: words for key, words in LOSS_TERMS.items() if series(history, key)[1]}
    accuracies = {key: words for key, words in ACCURACIES.items() if series(history, key)[1]}
    if not terms and not accuracies:
        return None

    def draw(figure: Any, theme: Theme) -> None:
        left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 2.6))
        _lines(left, history, terms, 1.0)
        values = [value for key in terms for value in series(history, key)[1]]
        if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
            plain_log(left.yaxis)
        left.set_ylabel("Loss (nats; attention: distance)")
        _lines(middle, history, accuracies, 100.0)
        middle.set_ylabel("Accuracy (%)")
        _lines(right, history, {"lr": "learning rate"}, 1.0, legend=False)
        right.set_ylabel("Learning rate")
        if min(series(history, "lr")[1], default=0.0) > 0:
            plain_log(right.yaxis)

    return Plot(
        f"curves-{slug(found.run)}-{document.kind}",
        f"{found.run}: {document.kind}",
        "Means over each epoch: terms of the loss (left), accuracy on augmented training images and on held-out "
        "images (middle), learning rate (right). Missing lines were not recorded.",
        (11.0, 3.4),
        draw,
    )


def _lines(axis: Any, history: History, keys: dict[str, str], scale: float, *, legend: bool = True) -> None:
    for index, (key, words) in enumerate(keys.items()):
        epochs, values = series(history, key)
        axis.plot(
            epochs,
            [scale * value for value in values],
            color=colour(index),
            linestyle=line(index),
            marker=marker(index) if len(values) <= MANY_POINTS else None,
            label=words,
        )
    axis.set_xlabel("Epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(history) == 1:
        axis.set_xticks([1])  # a lone epoch would be given fractions around it
    if legend and keys:
        axis.legend()


def hardening(found: Artifact[SearchDocument]) -> Plot | None:
    """Return temperature, entropies and expected MACs over the search; None where none was recorded."""
    document = found.document
    history = document.history
    recorded = {key: words for key, words in ENTROPIES.items() if series(history, key)[1]}
    if not recorded and not series(history, "temperature")[1]:
        return None

    def draw(figure: Any, theme: Theme) -> None:
        left, middle, right = figure.subplots(1, 3)
        _lines(left, history, {"temperature": "temperature"}, 1.0, legend=False)
        left.set_ylabel("Gumbel-Softmax temperature")
        left.set_ylim(bottom=0)
        _lines(middle, history, recorded, 1.0)
        middle.set_ylabel("Entropy (1 undecided, 0 decided)")
        middle.set_ylim(-0.03, 1.03)
        _lines(right, history, {"expected_macs": "expected"}, 1e-6, legend=False)
        right.set_ylabel("Expected MACs (M)")
        space = SPACES.get(document.space)
        if space is not None:
            sizes = {"num_classes": document.num_classes, "input_size": document.input_size}
            for widths, words in ((space.largest, "widest"), (space.smallest, "narrowest")):
                macs = network_cost(space, widths, **sizes).macs / 1e6
                right.axhline(macs, color=theme.ink, linestyle=":", linewidth=1)
                right.annotate(words, (0, macs), (3, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
            right.margins(y=0.12)

    return Plot(
        f"hardening-{slug(found.run)}",
        f"{found.run}: the choices harden",
        "Temperature (left), mean entropy of the width and tutor choices without noise, each over the log of the "
        "number of choices (middle), expected MACs of the supernet between the narrowest and the widest network "
        "of the space (right).",
        (11.0, 3.4),
        draw,
    )


def width_choices(found: Artifact[SearchDocument]) -> Plot:
    """Return the softmax of the width logits of every block, the chosen width framed."""
    document = found.document
    most = max(len(choices) for choices in document.width_choices)
    blocks = len(document.width_choices)

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        shares = [softmax(logits) for logits in document.width_logits]
        grid = [[row[rank] if rank < len(row) else math.nan for row in shares] for rank in range(most)]
        image = axis.imshow(grid, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        for block, (choices, row) in enumerate(zip(document.width_choices, shares, strict=True)):
            best = row.index(max(row))
            for rank, width in enumerate(choices):
                pale = row[rank] > 0.6
                axis.text(
                    block, rank, str(width), ha="center", va="center", color="#111" if pale else "#fff", fontsize=8
                )
            frame = Rectangle((block - 0.46, best - 0.46), 0.92, 0.92, fill=False, edgecolor=PALETTE[1], linewidth=2.5)
            axis.add_patch(frame)
        axis.set_xticks(range(blocks), [str(block + 1) for block in range(blocks)])
        axis.set_yticks([])
        axis.set_xlabel("Block")
        axis.set_ylabel("Filter choice, widest first")
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis, label="Softmax of the logits", fraction=0.04)

    return Plot(
        f"widths-{slug(found.run)}",
        f"{found.run}: widths",
        "Softmax of the width logits of each block at the end of the search (temperature 1, no noise); the number is "
        "the choice's output channels, a frame marks the one that derive takes.",
        (max(6.0, 1.6 + 0.55 * blocks), 1.5 + 0.45 * most),
        draw,
    )


def tutor_heatmap(found: Artifact[SearchDocument]) -> Plot | None:
    """Return the softmax of the tutor logits, student layers down, teacher layers across; None without tutors."""
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
        # The scale spans what is there, however little: the ticks say how much that is.
        figure.colorbar(image, ax=axis, label="Softmax over that of an undecided layer", fraction=0.04, format="%.5g")

    return Plot(
        f"tutors-{slug(found.run)}",
        f"{found.run}: tutors",
        "Softmax of the tutor logits at the end of the search (temperature 1, no noise), first layers at the top "
        f"left, over the 1/{teachers} of an undecided layer; mind the scale, which spans what is there. A dot marks "
        "the tutor that derive takes for each student layer.",
        (min(14.0, 3.2 + 0.22 * teachers), min(14.0, 2.4 + 0.17 * students)),
        draw,
    )


def _layer_ticks(axis: Any, layers: Sequence[str], *, rotation: int) -> None:
    if len(layers) <= NAMED_LAYERS:
        axis.set_ticks(range(len(layers)), [f"{name} ({index})" for index, name in enumerate(layers)])
        axis.set_tick_params(labelsize=7, labelrotation=rotation)
    else:
        axis.set_ticks(range(0, len(layers), 5))


def tutor_counts(maps: Sequence[Tutored]) -> list[Plot]:
    """Return, for each teacher, how many student layers chose each of its layers, one panel a search."""
    by_teacher: dict[tuple[str, tuple[str, ...]], list[Tutored]] = {}
    for found in maps:
        key = (found.tutors.teacher.sha256, tuple(found.tutors.teacher_layers))
        by_teacher.setdefault(key, []).append(found)
    return [_counts(index, group) for index, group in enumerate(by_teacher.values(), 1)]


def _counts(index: int, maps: Sequence[Tutored]) -> Plot:
    teacher = maps[0].tutors.teacher
    layers = maps[0].tutors.teacher_layers

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
        handles = []
        for place, (axis, found) in enumerate(zip(axes, maps, strict=True)):
            handles.append(axis.bar(range(len(layers)), counts(found.tutors), color=colour(place), width=0.8))
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
        f"How many student layers chose each layer of {teacher.architecture}",
        f"Teacher {teacher.architecture}, sha256 {teacher.sha256[:12]}. One panel a search; layers are counted from 0.",
        (max(7.0, 2.0 + 0.2 * len(layers)), 1.9 + 1.7 * len(maps)),
        draw,
    )
