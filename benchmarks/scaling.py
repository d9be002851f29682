"""What a run costs on 1, 8 and 64 GPUs, by arithmetic: ``python -m benchmarks.scaling``.

Counted, not measured: FLOPs of the networks (torch's count of the teacher's forward pass, the space's own
integers for the student) over the peak rate of the GPUs is a floor that no implementation goes below; bytes and
number of the collectives say what more GPUs add. Prints Markdown; ``--write`` puts it into docs/scaling.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from rnascl_cli.models.student import Student
from rnascl_cli.spaces import network_cost, space_named
from rnascl_cli.teachers.architectures import build_teacher

PEAK_FLOPS = 989e12
"""Dense bf16 of an H100 or H200, by its data sheet."""
GPUS = (1, 8, 64)
DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- benchmarks.scaling: begin -->", "<!-- benchmarks.scaling: end -->"

FORWARD_BACKWARD = 3
"""A training step costs three forward passes: forward, gradients of activations, gradients of weights."""
NO_WEIGHT_GRADIENTS = 2


@dataclass(frozen=True)
class Case:
    """A search to be costed.

    Attributes:
        space: The widest path of this space.
        teacher: Architecture of the teacher.
        images: In the training set.
        classes: Number of classes.
        side: Of the images, pixels.
        batch: Images a step, over all GPUs.
    """

    space: str
    teacher: str
    images: int
    classes: int
    side: int
    batch: int


CASES = (
    Case("S5", "r18", 50_000, 10, 32, 128),
    Case("S5", "wrn-34-20", 50_000, 10, 32, 128),
    Case("L", "wrn-34-20", 50_000, 10, 32, 128),
    Case("L", "wrn-34-20", 50_000, 10, 32, 1024),
    Case("I", "imagenet-wrn-50-2", 126_689, 100, 224, 128),
    Case("I", "imagenet-wrn-50-2", 126_689, 100, 224, 1024),
)


def teacher_macs(case: Case) -> int:
    """Return the MACs of the teacher's forward pass on one image, by torch's own count; nothing is computed."""
    with torch.device("meta"):
        teacher = build_teacher(case.teacher, num_classes=case.classes).eval()
        with FlopCounterMode(display=False) as count, torch.no_grad():
            teacher(torch.empty(1, 3, case.side, case.side))
    flops: int = count.get_total_flops()
    return flops // 2


def floors(case: Case) -> list[tuple[int, float]]:
    """Return (GPUs, seconds a search epoch takes at least): teacher once, 80 % weight step, 20 % Gumbel step."""
    space = space_named(case.space)
    student = network_cost(space, space.largest, num_classes=case.classes, input_size=case.side).macs
    passes = 0.8 * FORWARD_BACKWARD + 0.2 * NO_WEIGHT_GRADIENTS
    flops = 2 * (teacher_macs(case) + passes * student) * case.images
    return [(gpus, flops / (PEAK_FLOPS * gpus)) for gpus in GPUS]


def collectives(case: Case) -> tuple[int, float]:
    """Return how many sums over ranks a search step makes, and how many megabytes they move on each GPU.

    Each BatchNorm sums its means (with the count) and its squares, forward and backward, in both steps; each
    step sums its gradients in one piece.
    """
    space = space_named(case.space)
    student = Student(space, space.largest, num_classes=case.classes)
    norms = [module for module in student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    sums = 2 * (4 * len(norms) + 1)
    floats = sum(parameter.numel() for parameter in student.parameters())
    floats += 2 * sum(4 * norm.num_features + 1 for norm in norms)
    return sums, 4 * floats / 1e6


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| search | teacher | images | batch | floor of an epoch on 1 / 8 / 64 GPUs, s | images a GPU a step | sums "
        "over ranks a step | MB a step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        seconds = " / ".join(f"{value:.3g}" for _, value in floors(case))
        shares = " / ".join(f"{case.batch // gpus}" for gpus in GPUS)
        sums, megabytes = collectives(case)
        lines.append(
            f"| {case.space} | {case.teacher} | {case.images:,} | {case.batch} | {seconds} | {shares} | {sums} | "
            f"{megabytes:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace the table in {DOCUMENT.name}")
    text = table()
    if parser.parse_args().write:
        head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
