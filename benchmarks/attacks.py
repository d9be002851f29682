"""Attacks of rnascl beside torchattacks' and pyautoattack's: same model, images, batches and threads, in one run.

    python benchmarks/attacks.py                      # S3 student on digits: every row
    python benchmarks/attacks.py --model r18          # CIFAR ResNet-18
    python benchmarks/attacks.py --model FILE --data cifar10 --images 100 --only pgd20,aa

The two sides take turns, and each pair gives one ratio; the table has the median of these ratios with the smallest
and the largest. Times are CPU seconds of this process (on a GPU: seconds), from images in memory to one verdict an
image. Random starts are left out, so that FGSM, PGD and MI-FGSM of both sides start alike; AutoAttack draws from the
same seed. `differ` counts images on which the two verdicts are not the same.

Shape suffixes: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.artifacts.documents import Architecture
from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.cuda_graph import Captured
from rnascl_cli.attacks.evaluate import Evaluator
from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.attacks.registry import GradientAttack
from rnascl_cli.core.random_streams import generator
from rnascl_cli.core.units import Epsilon
from rnascl_cli.data import ImageSet, load_data
from rnascl_cli.loading import resolve_model
from rnascl_cli.models.batchnorm_folding import folded
from rnascl_cli.models.files import build_student
from rnascl_cli.recipes.settings import DataSettings
from rnascl_cli.spaces import network_cost, space_named
from rnascl_cli.teachers.architectures import build_teacher

EPS = Epsilon("8/255", 8 / 255)
ROWS = ("fgsm", "pgd20", "mi-fgsm", "apgd-ce", "aa")


@dataclass(frozen=True, eq=False)
class Bench:
    """One model and the images that it classifies rightly."""

    model: nn.Module
    images: ImageSet
    batch_size: int
    device: torch.device

    @property
    def x_NCHW(self) -> Tensor:  # noqa: N802
        return self.images.pixels(slice(None)).to(self.device).float() / 255

    def evaluator(self, *, layout: torch.memory_format, fold: bool) -> Evaluator:
        """Return what `rnascl attack` sets up, or less of it."""
        model = copy.deepcopy(self.model).to(memory_format=layout)
        worker: Any = (folded(model, self.x_NCHW[:16]) or model).to(memory_format=layout) if fold else model
        if self.device.type == "cuda" and fold:
            worker = Captured(worker, batch_size=self.batch_size)
        return Evaluator(
            model=model,
            images=self.images,
            num_classes=10,
            streams=lambda purpose, restart, index: generator(0, purpose, restart, index),
            device=self.device,
            batch_size=self.batch_size,
            layout=layout,
            attacked_model=worker,
        )


def our_attack(name: str) -> Attack:
    """Return the attack with no random start."""
    if name in ("apgd-ce", "aa"):
        return AutoAttack(name)
    steps, share, momentum = {"fgsm": (1, 1.0, None), "pgd20": (20, 0.25, None), "mi-fgsm": (10, 0.1, 1.0)}[name]
    return GradientAttack(name, steps, step_share=share, momentum=momentum)


def ours(evaluator: Evaluator, name: str) -> Tensor:
    """Return which images are broken."""
    return evaluator.run(our_attack(name), EPS, torch.zeros(len(evaluator.images.labels_N), dtype=torch.bool)).broken_N


def theirs(bench: Bench, name: str) -> Tensor:
    """Return which images torchattacks or pyautoattack breaks."""
    if name in ("apgd-ce", "aa"):
        return _pyautoattack(bench, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks

    eps = EPS.value
    attack: Any = {
        "fgsm": lambda: torchattacks.FGSM(bench.model, eps=eps),
        "pgd20": lambda: torchattacks.PGD(bench.model, eps=eps, alpha=eps / 4, steps=20, random_start=False),
        "mi-fgsm": lambda: torchattacks.MIFGSM(bench.model, eps=eps, alpha=eps / 10, steps=10),
    }[name]()
    broken = []
    x_NCHW, y_N = bench.x_NCHW, bench.images.labels_N.to(bench.device)
    for x_BCHW, y_B in zip(torch.split(x_NCHW, bench.batch_size), torch.split(y_N, bench.batch_size), strict=True):
        adversarial_BCHW = attack(x_BCHW, y_B)
        with torch.no_grad():
            broken.append(bench.model(adversarial_BCHW).argmax(dim=1) != y_B)
    return torch.cat(broken).cpu()


def _pyautoattack(bench: Bench, name: str) -> Tensor:
    from pyautoattack import AutoAttack as Suite

    own = {"version": "standard"} if name == "aa" else {"version": "custom", "attacks": [name]}
    suite: Any = Suite(bench.model, norm="Linf", eps=EPS.value, seed=0, device=bench.device, **own)
    suite.apgd.n_restarts = 1
    y_N = bench.images.labels_N.to(bench.device)
    with torch.random.fork_rng(devices=[]):
        _, found_N = suite.run_standard_evaluation(bench.x_NCHW, y_N, batch_size=bench.batch_size)
    broken_N: Tensor = (found_N != y_N).cpu()
    return broken_N


def seconds(work: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Return CPU seconds (on a GPU: seconds) and the result."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started, found


def row(bench: Bench, name: str, rounds: int) -> str:
    """Time one attack on both sides in turn, and return a row of the table."""
    sides: dict[str, Callable[[], Tensor]] = {
        "theirs": partial(theirs, bench, name),
        "plain": partial(ours, bench.evaluator(layout=torch.contiguous_format, fold=False), name),
        "ours": partial(ours, bench.evaluator(layout=fast_layout(bench.device), fold=True), name),
    }
    found = {side: work() for side, work in sides.items()} if name != "aa" else {}  # a first turn that is not timed
    took: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, work in sides.items():
            spent, found[side] = seconds(work, bench.device)
            took[side].append(spent)
    rival = "pyautoattack" if name in ("apgd-ce", "aa") else "torchattacks"
    left = int((~found["ours"]).sum()) / len(found["ours"])
    differ = int((found["ours"] != found["theirs"]).sum())
    return (
        f"| {name} | {rival} | {statistics.median(took['theirs']):.2f} | {statistics.median(took['ours']):.2f} | "
        f"{_ratio(took['theirs'], took['ours'])} | {_ratio(took['theirs'], took['plain'])} | {100 * left:.0f} % | "
        f"{differ} of {len(found['ours'])} |"
    )


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    ratios = sorted(one / other for one, other in zip(theirs, ours, strict=True))
    return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def fast_layout(device: torch.device) -> torch.memory_format:
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def robust_student(train: ImageSet, epochs: int = 8) -> nn.Module:
    """Train the smallest S3 network on FGSM images with random starts: small, and hard enough to break."""
    space = space_named("S3")
    cost = network_cost(space, space.smallest, num_classes=10, input_size=32)
    torch.manual_seed(0)
    model = build_student(
        Architecture(
            space="S3",
            widths=list(space.smallest),
            num_classes=10,
            input_size=32,
            params=cost.params,
            macs=cost.macs,
        ),
        mean=(0.3, 0.3, 0.3),
        std=(0.35, 0.35, 0.35),
    ).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    order, ball = torch.Generator().manual_seed(0), Linf(EPS.value)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(train), generator=order), 64):
            x_BCHW, y_B = train.pixels(rows).float() / 255, train.labels_N[rows]
            x_BCHW = projected_gradient(
                model,
                x_BCHW,
                loss=cross_entropy(y_B),
                ball=ball,
                step_size=EPS.value,
                steps=1,
                start_BCHW=x_BCHW + ball.noise(x_BCHW, order),
            )
            optimiser.zero_grad()
            F.cross_entropy(model(x_BCHW), y_B).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model


def build(arguments: argparse.Namespace) -> tuple[Bench, str]:
    """Return the model with images that it gets right, and what to call it."""
    device = torch.device(arguments.device)
    student = arguments.model == "s3"
    data = load_data(DataSettings(spec=arguments.data, limit_test=arguments.limit_test), seed=0, training=student)
    labels_N = data.test.labels_N
    if student:
        model, name = robust_student(data.train), f"S3 student, FGSM-trained on {arguments.data}"
    elif arguments.model == "r18":
        torch.manual_seed(0)
        model, name = build_teacher("r18", num_classes=10), "ResNet-18, untrained; its own answers are the labels"
        labels_N = torch.empty(0)
    else:
        model, name = resolve_model(arguments.model).module, arguments.model
    model = model.eval().requires_grad_(False).to(device)
    with torch.no_grad():
        batches = torch.split(data.test.pixels(slice(None)).float() / 255, 100)
        answers_N = torch.cat([model(x_BCHW.to(device)).argmax(dim=1).cpu() for x_BCHW in batches])
    if not len(labels_N):
        labels_N = answers_N
    rows = (answers_N == labels_N).nonzero().squeeze(1)[: arguments.images]
    images = ImageSet(data.test.pixels(rows), labels_N[rows], data.test.index_N[rows])
    return Bench(model, images, arguments.batch_size, device), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="s3", help="s3 (trained here), r18 (untrained), or a model file")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, of " + ", ".join(ROWS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench, name = build(arguments)
    print(f"{name}: {len(bench.images)} images classified rightly, batches of {arguments.batch_size}, eps {EPS.text},")
    print(f"{arguments.device}, {arguments.threads} threads, {arguments.rounds} rounds, torch {torch.__version__}\n")
    print("| attack | beside | theirs, s | ours, s | theirs/ours | ... without layout and folding | left | differ |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for attack in arguments.only.split(","):
        print(row(bench, attack, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
