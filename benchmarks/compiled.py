"""What ``compile_steps`` saves on a CPU: the search step compiled, against the launched one and the plain ones."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

from benchmarks.results import Measurement
from benchmarks.search_step import DEFAULT_SIDE, IMAGES, LARGE_SIDE, REACH, SPACE, TEACHER, scratch, step_setting
from benchmarks.timing import ratio, take_turns
from benchmarks.workload import our_search, plain_search, plain_stepping, stepping, workload
from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.device import DeviceConfig, resolve_device


def compiled(rounds: int) -> list[Measurement]:
    """Time the compiled step at both map sizes; nothing where there is no C++ compiler.

    ``torch.compile`` takes some minutes at first, and half a minute where it finds what it compiled before.
    """
    try:
        compute = resolve_device("cpu", "auto", compile_enabled=True)
    except UserError as error:
        print(f"benchmarks: compiled: left out ({error})", file=sys.stderr)
        return []
    rows = [row for side in (LARGE_SIDE, DEFAULT_SIDE) for row in _compiled(compute, side=side, rounds=rounds)]
    return [*rows, _compiled_with_kept_outputs(compute, rounds=rounds)]


def _compiled(compute: DeviceConfig, *, side: int, rounds: int) -> list[Measurement]:
    with scratch() as folder, contextlib.ExitStack() as stack:
        work = workload(folder, space=SPACE, teacher=TEACHER, side=side, images=IMAGES)
        launched = stack.enter_context(our_search(work, compute=replace(compute, compile_enabled=False)))
        compiling = stack.enter_context(our_search(work, compute=compute))
        sides = {
            "plain": plain_stepping(plain_search(work), work),
            "hoisted": plain_stepping(plain_search(work, hoisted=True), work),
            "launched": stepping(launched, work),
            "compiled": stepping(compiling, work),
        }
        sides["compiled"]()  # the first one compiles
        times = take_turns(sides, rounds=rounds, calls={"launched": 3, "compiled": 3})

    def faster(slow: str, what: str) -> Measurement:
        reach = REACH.get(side, {}).get(slow)
        return ratio(
            times, f"compiled-{side}.{slow}", f"{what} ({step_setting(side)})", (slow, "compiled"), at_least=reach
        )

    return [
        faster("plain", "compiled step (`compile_steps`), times as fast as the plain one"),
        faster("hoisted", "compiled step, times as fast as the plain one with hoisted maps"),
        faster("launched", "compiled step, times as fast as ours without `compile_steps`"),
    ]


def _compiled_with_kept_outputs(compute: DeviceConfig, *, rounds: int) -> Measurement:
    """Time steps that find the teacher's outputs among the kept ones, as most of a long search's do."""
    with scratch() as folder, contextlib.ExitStack() as stack:
        work = workload(folder, space=SPACE, teacher=TEACHER, side=DEFAULT_SIDE, images=IMAGES)
        launched = stack.enter_context(our_search(work, compute=replace(compute, compile_enabled=False), keep=True))
        compiling = stack.enter_context(our_search(work, compute=compute, keep=True))
        sides = {"launched": stepping(launched, work), "compiled": stepping(compiling, work)}
        for _ in range(IMAGES // work.batch_size):  # the teacher looks, and the first step compiles
            for step in sides.values():
                step()
        times = take_turns(sides, rounds=rounds, calls={"launched": 3, "compiled": 3})
    what = f"compiled step with kept teacher outputs, times as fast as the same launched ({step_setting(DEFAULT_SIDE)})"
    return ratio(times, f"compiled-{DEFAULT_SIDE}.kept", what, ("launched", "compiled"))
