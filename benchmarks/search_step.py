"""The search step against the plain one: seconds in turn, and exact counts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.counting import counting_saved, operators_of, peak_bytes_of
from benchmarks.reference import PlainSearch, pil_loader
from benchmarks.results import Measurement
from benchmarks.timing import interval, ratio, seconds_of, take_turns
from benchmarks.workload import (
    Workload,
    our_batches,
    our_search,
    plain_search,
    plain_stepping,
    smaller,
    stepping,
    workload,
)
from rnascl_cli.data import Batch
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.models.blocks import InvertedResidual, MaskedInvertedResidual
from rnascl_cli.stages.search.step import SearchStep

SPACE, TEACHER, WIDER_TEACHER = "S5", "r18", "wrn-34-10"
LARGE_SIDE, DEFAULT_SIDE = 32, 8
IMAGES = 256
FLOAT32 = DeviceConfig(torch.device("cpu"), "fp32", "fp32")
BFLOAT16 = DeviceConfig(torch.device("cpu"), "bf16", "bf16")
REACH = {LARGE_SIDE: {"plain": 7.0, "hoisted": 3.5, "kept": 11.0}}
"""What the issue asks for, at its map size."""


def step_setting(side: int) -> str:
    """Return what a step with maps of this side is timed on, in the words of a row."""
    return f"{SPACE}, {TEACHER}, maps {side}x{side}"


def steps(rounds: int) -> list[Measurement]:
    """Time the step at both map sizes: against the plain ones, with kept teacher outputs, without attention."""
    return [row for side in (LARGE_SIDE, DEFAULT_SIDE) for row in _steps(side, rounds)]


def _steps(side: int, rounds: int) -> list[Measurement]:
    with scratch() as folder, contextlib.ExitStack() as stack:
        work = workload(folder, space=SPACE, teacher=TEACHER, side=side, images=IMAGES)
        compute = resolve_device("cpu", "auto")
        ours = stack.enter_context(our_search(work, compute=compute))
        kept = stack.enter_context(our_search(work, compute=compute, keep=True))
        without = stack.enter_context(our_search(work, compute=compute, paradigm="kl"))
        steps = {
            "plain": plain_stepping(plain_search(work), work),
            "hoisted": plain_stepping(plain_search(work, hoisted=True), work),
            "ours": stepping(ours, work),
            "kept": stepping(kept, work),
            "without": stepping(without, work),
            "convolutions": teacher_convolutions(ours, work, compute),
        }
        for _ in range(IMAGES // work.batch_size):
            steps["kept"]()  # so that every view it meets is known
        times = take_turns(steps, rounds=rounds, calls={"ours": 3, "kept": 3, "without": 3, "convolutions": 3})
    reach = REACH.get(side, {})

    def faster(name: str, slow: str, fast: str, what: str) -> Measurement:
        return ratio(
            times, f"step-{side}.{name}", f"{what} ({step_setting(side)})", (slow, fast), at_least=reach.get(name)
        )

    def share(
        name: str, what: str, of: Callable[[Mapping[str, float]], float], *sides: str, **reach: float
    ) -> Measurement:
        value, low, high = interval(times, of)
        return Measurement(
            f"step-{side}.{name}",
            f"share of a step that {what} ({step_setting(side)})",
            value,
            rounds,
            unit="share",
            low=low,
            high=high,
            note=seconds_of(times, *sides),
            kept=False,
            **reach,
        )

    return [
        faster("plain", "plain", "ours", "step, times as fast as the plain one"),
        faster("hoisted", "hoisted", "ours", "step, times as fast as the plain one with hoisted maps"),
        faster("kept", "plain", "kept", "step with kept teacher outputs, times as fast as the plain one"),
        share(
            "attention",
            "maps and attention loss take",
            lambda median: 1 - median["without"] / median["ours"],
            "ours",
            "without",
            at_most=0.25,
        ),
        share(
            "convolutions",
            "the teacher's convolutions alone take",
            lambda median: median["convolutions"] / median["ours"],
            "convolutions",
            "ours",
        ),
    ]


def teacher_convolutions(task: SearchStep, work: Workload, compute: DeviceConfig) -> Callable[[], object]:
    """Return a call that does the convolutions of the teacher's pass over a batch, and nothing else of it."""
    assert task.teacher is not None
    module = task.teacher._teacher.module
    convolutions: list[tuple[nn.Module, Tensor]] = []
    with contextlib.ExitStack() as hooks:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                note = layer.register_forward_pre_hook(
                    lambda layer, given: convolutions.append((layer, given[0].clone()))
                )
                hooks.callback(note.remove)
        task.teacher(first_batch(work))

    @torch.no_grad()
    def run() -> None:
        with compute.teacher_autocast():
            for layer, x_BCHW in convolutions:
                layer.forward(x_BCHW)  # past the hooks that take maps

    return run


def block(rounds: int) -> list[Measurement]:
    """Time a block with 20 filter choices against the widest alone, forward and backward."""
    choices, images = 20, 102
    widths = torch.arange(32, 32 - choices, -1)
    masks_NC = (torch.arange(32) < widths[:, None]).float()
    masked, alone = MaskedInvertedResidual(32, 32, stride=1), InvertedResidual(32, 32, stride=1)
    masked.load_state_dict(alone.state_dict())
    x_BCHW = torch.randn(images, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    for module in (masked, alone):
        module.to(memory_format=torch.channels_last)
    g_N = torch.softmax(torch.randn(choices), dim=0)

    def with_choices() -> None:
        mask_C11 = (g_N[:, None] * masks_NC).sum(dim=0).view(-1, 1, 1)
        masked(x_BCHW, mask_C11.repeat_interleave(6, dim=0), mask_C11, g_N[0]).sum().backward()

    def widest() -> None:
        alone(x_BCHW).sum().backward()

    calls = {"choices": 20, "widest": 20}
    times = take_turns({"choices": with_choices, "widest": widest}, rounds=4 * rounds, calls=calls)
    what = f"block with {choices} filter choices, times the seconds of the widest alone (32 channels, 8x8)"
    return [ratio(times, "block.choices", what, ("choices", "widest"), at_most=1.1, unit="")]


def loading(rounds: int) -> list[Measurement]:
    """Time the drawing of a batch against PIL's."""
    with scratch() as folder:
        work = workload(folder, space=SPACE, teacher="r8", side=DEFAULT_SIDE, images=1024)
    ours = our_batches(work)

    def pil() -> Iterator[object]:
        loader = pil_loader(work.data.train.images_NCHW, work.data.train.labels_N, batch_size=work.batch_size)
        while True:
            yield from loader

    plain = pil()
    sides: dict[str, Callable[[], object]] = {"pil": lambda: next(plain), "tensors": lambda: next(ours)}
    times = take_turns(sides, rounds=4 * rounds, calls={"pil": 8, "tensors": 8})
    what = f"batch of {work.batch_size} cropped and flipped, times as fast as PIL and a DataLoader"
    return [ratio(times, "loading.pil", what, ("pil", "tensors"), at_least=1.0)]


def counts(_rounds: int) -> list[Measurement]:
    """Count operators, bytes and saved tensors of a step; maps of 32x32 but where it says otherwise."""
    with scratch() as folder:
        work = workload(folder, space=SPACE, teacher=TEACHER, side=LARGE_SIDE, images=IMAGES)
        wider = workload(folder, space=SPACE, teacher=WIDER_TEACHER, side=LARGE_SIDE, images=IMAGES)
        return [*operators(smaller(work, 10), smaller(wider, 10)), *memory(work)]


def operators(work: Workload, wider: Workload) -> list[Measurement]:
    """Count the operators of a step with two teachers, and of the plain step with the first."""
    ours, ours_wider = (_counted(each, FLOAT32, operators_of) for each in (work, wider))
    batch = first_batch(work)
    plain = operators_of(_planned(plain_search(work), batch))
    return [
        Measurement(
            "operators.plain",
            f"operators of the plain step over ours ({TEACHER})",
            plain / ours,
            1,
            at_least=35.0,
            note=f"{plain:,} / {ours:,}",
        ),
        Measurement(
            "operators.wider",
            f"operators of a step with {WIDER_TEACHER} over those with {TEACHER}, teacher's own included",
            ours_wider / ours,
            1,
            at_most=1.05,
            note=f"{ours_wider:,} / {ours:,}",
        ),
    ]


def memory(work: Workload) -> list[Measurement]:
    """Count the peak bytes of a float32 step, and the bytes saved for backward passes with bf16."""
    batch = first_batch(work)
    plain_peak = peak_bytes_of(_planned(plain_search(work), batch))
    our_peak = _counted(work, FLOAT32, peak_bytes_of)
    plain = plain_search(work)
    plain_saved, plain_tensors = saved_by(_planned(plain, batch), list(plain.supernet.parameters()))
    with our_search(work, compute=BFLOAT16) as task:
        our_saved, our_tensors = saved_by(lambda: task.step(batch), list(task.supernet.parameters()))
    setting = f"batch {work.batch_size}, maps {work.side}x{work.side}"
    return [
        Measurement(
            f"memory-{work.side}.peak",
            f"peak memory of a float32 step, share of the plain one's ({setting})",
            our_peak / plain_peak,
            1,
            at_most=1 / 4,
            note=f"{our_peak / 1e6:,.0f} MB / {plain_peak / 1e6:,.0f} MB",
        ),
        Measurement(
            f"memory-{work.side}.saved",
            f"bytes saved for backward with bf16, share of the plain float32 one's ({setting})",
            our_saved / plain_saved,
            1,
            at_most=1 / 8,
            note=f"{our_saved / 1e6:,.0f} MB in {our_tensors:,} tensors / "
            f"{plain_saved / 1e6:,.0f} MB in {plain_tensors:,}",
        ),
    ]


def first_batch(work: Workload) -> Batch:
    """Return a batch of the workload."""
    return next(our_batches(work))


def saved_by(step: Callable[[], object], besides: list[Tensor]) -> tuple[int, int]:
    """Return how many bytes a call saves for backward passes, and in how many tensors."""
    with counting_saved(besides=besides) as saved:
        step()
    return saved.bytes, saved.tensors


def _counted(work: Workload, compute: DeviceConfig, count: Callable[[Callable[[], object]], int]) -> int:
    """Count our second step: the first one makes the optimizers' state."""
    batch = first_batch(work)
    with our_search(work, compute=compute) as task:
        task.step(batch)
        return count(lambda: task.step(batch))


def _planned(plain: PlainSearch, batch: Batch) -> Callable[[], object]:
    step: Callable[[], object] = lambda: plain.step(batch.x_BCHW.contiguous(), batch.y_B)  # noqa: E731
    step()
    return step


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for teachers, which is the cache folder too, for the while."""
    before = os.environ.get("RNASCL_CACHE")
    with TemporaryDirectory() as folder:
        os.environ["RNASCL_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("RNASCL_CACHE")
            if before is not None:
                os.environ["RNASCL_CACHE"] = before
