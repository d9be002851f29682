"""Plot the accuracies of a study's students: the figure of README.md.

    python -m benchmarks.plot_study docs/results/study/cifar10-cpu.json --out docs/results/study

writes ``docs/results/study.png`` and ``docs/results/study.svg``. A point is one student (a space and a seed) with the
95 % Wilson interval of its test images (not drawn for clean accuracy: less than a point either side); a bar is the mean
of an arm's points.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from rnascl_cli.artifacts.study import StudyDocument, StudyRow

ARMS = {
    "standard": "cross-\nentropy",
    "kl": "KL",
    "rnas-cl": "RNAS-CL\n$\\gamma$ = 1",
    "rnas-cl-gamma20": "RNAS-CL\n$\\gamma$ = 20",
    "rnas-cl-gamma400": "RNAS-CL\n$\\gamma$ = 400",
    "same-depth-gamma400": "same-depth\ntutors\n$\\gamma$ = 400",
}
POINT_SHIFT = 0.055  # between the points of one bar, in units of the distance between two arms
BAR_WIDTH = 0.26


class Series(NamedTuple):
    """One color of a panel: an accuracy that every student has.

    Attributes:
        label: In the legend.
        color: Of bar and points (Okabe and Ito).
        measurement: Key of ``StudyRow.attacks``; None for the clean accuracy on all test images.
        attack: Attack name.
        eps: As in the document.
    """

    label: str
    color: str
    measurement: str | None = None
    attack: str = ""
    eps: str = "8/255"


CLEAN = Series("clean (10,000 images)", "#0072B2")
AUTOATTACK = Series("AutoAttack 8/255 (250)", "#D55E00", "aa", "aa")
PANELS = {
    "train": (
        "Trained on clean images",
        (CLEAN, Series("PGD-20 8/255, paper-code (1,000)", "#56B4E9", "paper-code", "pgd20"), AUTOATTACK),
    ),
    "trades": (
        "Then fine-tuned by TRADES",
        (CLEAN, Series("PGD-20 8/255 (1,000)", "#009E73", "pgd", "pgd20"), AUTOATTACK),
    ),
}


def accuracy(row: StudyRow, series: Series) -> tuple[float, float, float]:
    """Return an accuracy of a student and the ends of its 95 % interval, in percent.

    Raises:
        ValueError: The student was not measured so.
    """
    if series.measurement is None:
        return 100 * row.clean_accuracy, 100 * row.clean_accuracy, 100 * row.clean_accuracy
    for result in row.attacks[series.measurement].results:
        if (result.attack, result.eps) == (series.attack, series.eps):
            return 100 * result.accuracy, 100 * result.interval[0], 100 * result.interval[1]
    raise ValueError(f"{row.run}: no {series.attack} at {series.eps} in measurement {series.measurement}")


def draw(axes: Any, study: StudyDocument, stage: str) -> None:
    """Draw the panel of one stage: for each arm a bar a series, and a point a student."""
    title, panel = PANELS[stage]
    for place, arm in enumerate(ARMS):
        rows = [row for row in study.rows if (row.stage, row.arm) == (stage, arm)]
        for number, series in enumerate(panel):
            values = [accuracy(row, series) for row in rows]
            center = place + (number - 1) * BAR_WIDTH
            mean = sum(value for value, _, _ in values) / len(values)
            axes.bar(
                center, mean, BAR_WIDTH * 0.92, color=series.color, alpha=0.45, label=None if place else series.label
            )
            for index, (value, low, high) in enumerate(values):
                x = center + (index - (len(values) - 1) / 2) * POINT_SHIFT
                error = [[value - low], [high - value]]
                axes.errorbar(x, value, error, fmt="o", markersize=2.5, linewidth=0.8, color=series.color)
            axes.annotate(
                f"{mean:.0f}",
                (center, max(high for _, _, high in values)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(len(ARMS)), list(ARMS.values()), fontsize=8.5)
    axes.set_ylim(0, 80)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8.5, loc="upper left", ncols=1, framealpha=0.9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plot(study: StudyDocument, out: Path) -> None:
    """Write the figure as ``out`` with the suffixes .png and .svg; the same study gives the same bytes."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "rnascl", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure, panels = plt.subplots(1, len(PANELS), figsize=(9.0, 4.2), sharey=True, layout="constrained")
        for axes, stage in zip(panels, PANELS, strict=True):
            draw(axes, study, stage)
        panels[0].set_ylabel("accuracy, %", fontsize=9)
        figure.savefig(out.with_suffix(".png"), dpi=150, metadata={"Software": None})
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="study.json of the study cifar10-cpu")
    parser.add_argument("--out", type=Path, required=True, help="path of the figure without its suffix")
    arguments = parser.parse_args()
    plot(StudyDocument.model_validate_json(arguments.study.read_text(encoding="utf-8")), arguments.out)


if __name__ == "__main__":
    main()
