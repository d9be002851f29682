"""Figures of what happened in a run: curves, choices hardening, widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.patches import Rectangle

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AnyDocument, SearchDocument, TrainDocument
from rnascl_cli.reporting.data.collect import Artifact
from rnascl_cli.reporting.figures.style import (
    HEAT,
    MANY_POINTS,
    PALETTE,
    Plot,
    Theme,
    color_of,
    legend_below,
    line,
    marker,
    plain_log,
)
from rnascl_cli.reporting.tables.pareto import FrontStudent, budget_words, derived_widths
from rnascl_cli.reporting.tables.table import slug
from rnascl_cli.reporting.tables.tutor_statistics import softmax
from rnascl_cli.spaces import SPACES, network_cost

LOSS_TERMS = {
    "loss": "whole loss",
    "gumbel_loss": "whole loss, Gumbel step",
    "ce": "cross-entropy",
    "kl": "KL to the teacher",
    "attention": "attention (distance)",
    "distill": "distillation baseline, unweighted",
    "adversarial": "adversarial term",
    "weighted_kl": "KL clean to perturbed, weighted (MART)",
    "clean_kl": "KL to the teacher's soft labels, clean (RSLAD)",
}
ACCURACIES = {
    "train_accuracy": "training images",
    "train_robust_accuracy": "the same, perturbed",
    "holdout_accuracy": "held-out images",
    "holdout_robust_accuracy": "the same, perturbed (held out)",
}
ENTROPIES = {"width_entropy": "widths", "tutor_entropy": "tutors"}
TOP_WEIGHTS = {"width_top_weight": "widths", "tutor_top_weight": "tutors"}
LOG_FROM = 50.0

History = Sequence[dict[str, Any]]


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
    return history_plot(found.run, document.kind, document.history)


def history_plot(run: str, kind: str, history: History) -> Plot | None:
    """Return loss terms, accuracies and learning rate of a run's history; None where it has none of them.

    Args:
        run: The run's name.
        kind: Its stage, or how it stands.
        history: An entry an epoch.
    """
    terms = {key: words for key, words in LOSS_TERMS.items() if series(history, key)[1]}
    accuracies = {key: words for key, words in ACCURACIES.items() if series(history, key)[1]}
    if not terms and not accuracies:
        return None

    def draw(figure: Any, theme: Theme) -> None:
        left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 2.4))
        _lines(left, history, terms, 1.0)
        values = [value for key in terms for value in series(history, key)[1]]
        if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
            plain_log(left.yaxis)
        left.set_ylabel("Loss (nats)")
        _lines(middle, history, accuracies, 100.0)
        middle.set_ylabel("Accuracy (%)")
        _lines(right, history, {"lr": "learning rate"}, 1.0, legend=False)
        right.set_ylabel("Learning rate")
        if min(series(history, "lr")[1], default=0.0) > 0:
            plain_log(right.yaxis)

    return Plot(
        f"curves-{slug(run)}-{kind}",
        f"{run}: {kind}",
        "Means over each epoch: terms of the loss (left; attention is eq. (1), a distance), accuracy on augmented "
        "training images and on held-out images (middle), learning rate (right). Missing lines were not recorded.",
        (8.2, 3.1),
        draw,
    )


def _lines(axis: Any, history: History, keys: dict[str, str], scale: float, *, legend: bool = True) -> None:
    for index, (key, words) in enumerate(keys.items()):
        epochs, values = series(history, key)
        axis.plot(
            epochs,
            [scale * value for value in values],
            color=color_of(index),
            linestyle=line(index),
            marker=marker(index) if len(values) <= MANY_POINTS else None,
            label=words,
        )
    axis.set_xlabel("Epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(history) == 1:
        axis.set_xticks([1])  # a lone epoch would be given fractions around it
    if legend and keys:
        axis.legend(fontsize=7.5)


def hardening(found: Artifact[SearchDocument]) -> Plot | None:
    """Return how the choices hardened as the temperature fell; None where nothing of it was recorded."""
    history = found.document.history
    if not any(series(history, key)[1] for key in (*ENTROPIES, "temperature")):
        return None
    panels: list[Callable[[Any, Theme], None]] = [
        lambda axis, _: _temperature(axis, history),
        lambda axis, _: _over_temperature(axis, history, ENTROPIES, "Entropy (1 undecided, 0 decided)"),
    ]
    if any(series(history, key)[1] for key in TOP_WEIGHTS):
        panels.append(lambda axis, _: _over_temperature(axis, history, TOP_WEIGHTS, "Largest Gumbel weight (1 hard)"))
    panels.append(lambda axis, theme: _expected_macs(axis, found.document, theme))

    def draw(figure: Any, theme: Theme) -> None:
        for axis, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            panel(axis, theme)

    return Plot(
        f"hardening-{slug(found.run)}",
        f"{found.run}: the choices harden",
        "From left to right: the temperature of Gumbel-Softmax by epoch; the entropy of softmax(v), each choice's "
        "chance to win, over the log of the number of choices, as the temperature falls (mean over blocks or student "
        f"layers){'; the largest Gumbel weight without noise' if len(panels) == 4 else ''}; expected MACs of the "
        "supernet by epoch, between the narrowest and the widest network of the space.",
        (3.5 * len(panels), 3.4),
        draw,
    )


def _temperature(axis: Any, history: History) -> None:
    _lines(axis, history, {"temperature": "temperature"}, 1.0, legend=False)
    axis.set_ylabel("Gumbel-Softmax temperature")
    axis.set_ylim(bottom=0)


def _over_temperature(axis: Any, history: History, keys: dict[str, str], words: str) -> None:
    for index, (key, name) in enumerate(keys.items()):
        track = [
            (entry["temperature"], entry[key])
            for entry in history
            if series([entry], key)[1] and series([entry], "temperature")[1] and entry["temperature"] > 0
        ]
        axis.plot(
            [temperature for temperature, _ in track],
            [value for _, value in track],
            color=color_of(index),
            linestyle=line(index),
            marker=marker(index) if len(track) <= MANY_POINTS else None,
            label=name,
        )
    plain_log(axis.xaxis)
    axis.invert_xaxis()
    axis.set_xlabel("Temperature, falling")
    axis.set_ylabel(words)
    axis.set_ylim(-0.03, 1.03)
    axis.legend()


def _expected_macs(axis: Any, document: SearchDocument, theme: Theme) -> None:
    _lines(axis, document.history, {"expected_macs": "expected"}, 1e-6, legend=False)
    axis.set_ylabel("Expected MACs (M)")
    space = SPACES.get(document.space)
    if space is not None:
        sizes = {"num_classes": document.num_classes, "input_size": document.input_size}
        for widths, words in ((space.largest, "widest"), (space.smallest, "narrowest")):
            macs = network_cost(space, widths, **sizes).macs / 1e6
            axis.axhline(macs, color=theme.ink, linestyle=":", linewidth=1)
            axis.annotate(words, (0, macs), (3, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
        axis.margins(y=0.12)


def width_choices(found: Artifact[SearchDocument]) -> Plot:
    """Return the softmax of the width logits of every block, the chosen width framed."""
    document = found.document
    most = max(len(choices) for choices in document.width_choices)
    blocks = len(document.width_choices)
    taken = derived_widths(document)
    under = f" ({words})" if (words := budget_words(document.budget)) else ""

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        shares = [softmax(logits) for logits in document.width_logits]
        grid = [[row[rank] if rank < len(row) else math.nan for row in shares] for rank in range(most)]
        image = axis.imshow(grid, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        for block, (choices, row) in enumerate(zip(document.width_choices, shares, strict=True)):
            best = choices.index(taken[block])
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
        f"the choice's output channels, a frame marks the one that derive takes{under}.",
        (max(6.0, 1.6 + 0.55 * blocks), 1.5 + 0.45 * most),
        draw,
    )


def front_plot(students: Sequence[FrontStudent]) -> Plot:
    """Return clean accuracy over MACs of the students of each Pareto front."""
    fronts = list(dict.fromkeys(student.front for student in students))

    def draw(figure: Any, theme: Theme) -> None:
        axis = figure.subplots()
        handles = []
        for index, front in enumerate(fronts):
            own = sorted(
                (student.macs, 100 * student.artifact.document.clean_accuracy)
                for student in students
                if student.front == front
            )
            style = {"color": color_of(index), "linestyle": line(index), "marker": marker(index)}
            handles += axis.plot([macs for macs, _ in own], [clean for _, clean in own], **style)
        axis.set_xlabel("MACs (M)")
        axis.set_ylabel("Clean accuracy (%)")
        axis.margins(0.1)
        legend_below(figure, handles, fronts)

    return Plot(
        "fronts",
        "Accuracy over MACs",
        "Clean accuracy of students that come from one search, over the MACs of their networks; one line per front.",
        (5.2, 3.6 + 0.22 * len(fronts)),
        draw,
    )
