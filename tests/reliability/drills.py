"""SIGKILL at random moments, then ``--resume``: is the end bit-identical to that of an uninterrupted run?

    python -m tests.reliability.drills --kills 20

prints a table for docs/reliability.md; ``make drills`` runs it. Every stage runs in a process of its own on some
digits, with a checkpoint behind nearly every step. The moments are drawn uniformly over the time that the
uninterrupted run takes, from ``--seed``.

    python -m tests.reliability.drills --stage search --stage train --stage adv-finetune --set compile_steps=true \\
        --epochs 40 --kills 10

does so with compiled steps. More than the three epochs of the others, as each process takes its time to compile.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from rnascl_cli.artifacts.store import is_temporary
from rnascl_cli.engine.checkpoint import read_checkpoint
from rnascl_cli.engine.run_directory import CHECKPOINT
from tests.reliability.processes import Command, run_command
from tests.reliability.runs import (
    STAGES,
    Inputs,
    begun,
    command_for,
    essence,
    folder_of,
    make_inputs,
    resumable,
    target,
)

PATIENCE = 1800.0
"""Seconds for an uninterrupted run: the first one may have kernels to compile."""
MOMENTS = ("before its first checkpoint", "between two steps", "after an epoch", "at the end")


def kill_and_resume(stage: str, arguments: list[object], out: Path, *, after: float) -> str:
    """Kill a run ``after`` seconds, go on to its end, and return in which moment it was killed."""
    log = out.with_suffix(".log")
    command = Command(arguments, log=log)
    time.sleep(max(0.0, after - (time.monotonic() - command.began)))
    command.kill()
    moment = moment_of(stage, out, ended=command.code == 0)
    if moment != "at the end":
        run_command([*arguments, *(["--resume"] if begun(stage, out) else [])], log=log, patience=PATIENCE)
    return moment


def moment_of(stage: str, out: Path, *, ended: bool) -> str:
    """Tell from what a killed run has left where it was killed."""
    if ended or (target(stage, out).is_file() and not resumable(stage, out)):
        return "at the end"
    if stage == "attack" and (out / "attack.json").is_file() and not resumable(stage, out):
        return "at the end"
    if not resumable(stage, out):
        return "before its first checkpoint"
    if stage == "attack":
        return "between two steps"
    path = folder_of(stage, out) / CHECKPOINT
    if not path.is_file():  # between two renames
        return "between two steps"
    epoch_state = read_checkpoint(path, torch.device("cpu"))["epoch_state"]
    return "after an epoch" if epoch_state is None else "between two steps"


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Return in what two runs differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def leftovers(out: Path) -> list[str]:
    """Return the files that a run which has ended should not have left."""
    hidden = [path.name for path in out.rglob("*") if is_temporary(path.name) or path.name.startswith(".")]
    return [*hidden, *(path.name for path in out.rglob("*.previous.pt"))]


def drill(stage: str, inputs: Inputs, folder: Path, *, given: argparse.Namespace, stream: random.Random) -> bool:
    """Kill and resume one stage, print its line of the table, and return whether all ended alike."""

    def arguments(out: Path) -> list[object]:
        keys = [word for key in given.set for word in ("--set", key)]
        return [*command_for(stage, inputs, out, epochs=given.epochs), *keys]

    folder.mkdir()
    for out in (folder / "first", folder / "whole"):  # by the second time, kernels that are compiled have been
        began = time.monotonic()
        run_command(arguments(out), log=out.with_suffix(".log"), patience=PATIENCE)
        seconds = time.monotonic() - began
    wanted = essence(stage, folder / "whole")
    moments: Counter[str] = Counter()
    alike = 0
    for number in range(given.kills):
        out = folder / f"kill-{number}"
        moments[kill_and_resume(stage, arguments(out), out, after=stream.uniform(0, seconds))] += 1
        found = differences(wanted, essence(stage, out)) + leftovers(out)
        alike += not found
        if found:
            print(f"{stage}, kill {number}: differs in {', '.join(found)}; see {out}", file=sys.stderr)
    counts = " | ".join(str(moments[name]) for name in MOMENTS)
    print(f"| {stage} | {seconds:.1f} s | {given.kills} | {counts} | {alike} |", flush=True)
    return alike == int(given.kills)


def main() -> None:
    """Run the drills that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="of each run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of rnascl")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be repeated")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stream = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="rnascl-drills-") as name:
        folder = Path(name)
        os.environ["RNASCL_CACHE"] = str(folder / "cache")
        inputs = make_inputs(folder / "inputs")
        print(f"| stage | uninterrupted | kills | {' | '.join(MOMENTS)} | bit-identical |")
        print("| --- " * (len(MOMENTS) + 4) + "|", flush=True)
        stages = given.stage or STAGES
        held = [drill(stage, inputs, folder / stage.replace(" ", "-"), given=given, stream=stream) for stage in stages]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
