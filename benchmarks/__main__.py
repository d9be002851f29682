"""Measure: ``python -m benchmarks [GROUP ...]``; every group of a CPU by default.

    python -m benchmarks --compare          # what moved since the recorded ratios; exit code 1 where one fell
    python -m benchmarks --write            # into docs/performance.md
    python -m benchmarks gpu --write        # into the table of a GPU there
    python -m benchmarks --record           # as the ratios that later runs are compared with

Run it on an idle machine. The table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import compiled, gpu, precision, search_step, startup
from benchmarks.results import Device, Measurement, compare, record_baseline, table, write_document, write_json
from rnascl_cli.engine.device import resolve_device

GROUPS = {
    "counts": search_step.counts,
    "step": search_step.steps,
    "compiled": compiled.compiled,
    "block": search_step.block,
    "precision": precision.precision,
    "loading": search_step.loading,
    "startup": startup.startup,
}
ON_A_GPU = {"gpu": gpu.gpu}
EVERY = GROUPS | ON_A_GPU


def main() -> int:
    """Measure what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(EVERY)}; default: all but gpu")
    parser.add_argument("--rounds", type=int, default=9, help="turns that each side has (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    parser.add_argument("--write", action="store_true", help="replace the table in docs/performance.md")
    parser.add_argument("--compare", action="store_true", help="compare with benchmarks/baseline.json")
    parser.add_argument("--record", action="store_true", help="replace the ratios in benchmarks/baseline.json")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(EVERY):
        parser.error(f"no group '{unknown.pop()}'; one of {', '.join(EVERY)}")
    device: Device = "cuda" if options.groups == list(ON_A_GPU) else "cpu"
    if options.write and options.groups and device == "cpu":
        parser.error("--write takes a whole table; name no group, or gpu alone")
    if set(options.groups) & set(ON_A_GPU) and not torch.cuda.is_available():
        parser.error("gpu: no CUDA device is here")

    torch.set_num_threads(options.threads)
    measurements: list[Measurement] = []
    for name in options.groups or GROUPS:
        print(f"benchmarks: {name} ...", file=sys.stderr)
        measurements += EVERY[name](options.rounds)
    print(table(measurements))
    if options.json:
        write_json(options.json, measurements, circumstances(options.threads, device))
    if options.write:
        write_document(measurements, circumstances(options.threads, device), device=device)
    moved = compare(measurements) if options.compare else []
    if moved:
        print("\nSince the recorded ratios:")
        print("\n".join(f"  {line}" for line in moved))
    if options.record:
        record_baseline(measurements)
    return int(any(line.fell for line in moved))


def circumstances(threads: int, device: Device) -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    compute = resolve_device(device, "auto")
    load = os.getloadavg()[0]
    return {
        "measured": datetime.date.today().isoformat(),
        "on": compute.device_name,
        "load before the end": f"{load:.1f}",
        "precision": compute.precision,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": threads,
    }


if __name__ == "__main__":
    sys.exit(main())
