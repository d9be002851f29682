"""What ``compile_steps`` saves on a CPU: the search step compiled, against the launched one and the plain ones."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

from benchmarks.results import Measurement
from benchmarks.search_step import IMAGES, LARGE_SIDE, REACH, SPACE, TEACHER, scratch
from benchmarks.timing import ratio, take_turns
from benchmarks.workload import our_search, plain_search, plain_stepping, stepping, workload
from rnascl_cli.engine.compute import resolve_compute
from rnascl_cli.errors import UserError

STEPS_UNTIL_COMPILED = 3
"""One looks into the maps, one shows the shapes, and one is compiled."""


def compiled(rounds: int) -> list[Measurement]:
    """Time the compiled step at the large map size; nothing where there is no C++ compiler.

    ``torch.compile`` takes some minutes at first, and half a minute where it finds what it compiled before.
    """
    try:
        compute = resolve_compute("cpu", "auto", compiles=True)
    except UserError as error:
        print(f"benchmarks: compiled: left out ({error})", file=sys.stderr)
        return []
    with scratch() as folder, contextlib.ExitStack() as stack:
        work = workload(folder, space=SPACE, teacher=TEACHER, side=LARGE_SIDE, images=IMAGES)
        launched = stack.enter_context(our_search(work, compute=replace(compute, compiles=False)))
        compiling = stack.enter_context(our_search(work, compute=compute))
        sides = {
            "plain": plain_stepping(plain_search(work), work),
            "hoisted": plain_stepping(plain_search(work, hoisted=True), work),
            "launched": stepping(launched, work),
            "compiled": stepping(compiling, work),
        }
        for _ in range(STEPS_UNTIL_COMPILED):
            sides["compiled"]()
        times = take_turns(sides, rounds=rounds, calls={"launched": 3, "compiled": 3})
    setting = f"{SPACE}, {TEACHER}, maps {LARGE_SIDE}x{LARGE_SIDE}"

    def faster(slow: str, what: str) -> Measurement:
        reach = REACH[LARGE_SIDE].get(slow)
        return ratio(times, f"compiled-{LARGE_SIDE}.{slow}", f"{what} ({setting})", (slow, "compiled"), at_least=reach)

    return [
        faster("plain", "compiled step (`compile_steps`), times as fast as the plain one"),
        faster("hoisted", "compiled step, times as fast as the plain one with hoisted maps"),
        faster("launched", "compiled step, times as fast as ours without `compile_steps`"),
    ]
