"""Fuzz every reader of files for as long as one likes: ``python -m tests.hostile.fuzz --seconds 600``.

With atheris (coverage-guided; ``pip install atheris``) or, without it, with hypothesis. Each target runs in a process
of its own, under a memory limit and with a time limit for each input. An input that does anything but be accepted or
refused by a clear line is kept in ``fuzz-findings/``, its traceback is printed, and the exit code is 1. ``--replay
FILE`` runs one such input again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.hostile.mutation import spoilt
from tests.hostile.targets import TARGETS, Target

MEMORY = 6 * 2**30  # of address space; torch alone takes three
SECONDS_AN_INPUT = 20
Counts = Any  # of multiprocessing, or a list
RUNS, ACCEPTED, FOUND = range(3)  # places in Counts
INSTRUMENTED = ("rnascl_cli", "torch._weights_only_unpickler", "tomllib", "PIL")
ROUND = 200  # hypothesis' examples between two looks at the clock


class Slow(BaseException):
    """An input took longer than :data:`SECONDS_AN_INPUT`."""


class Session:
    """One target under way: runs inputs, counts them, keeps what is found."""

    def __init__(self, target: Target, root: Path, findings: Path, counts: Counts) -> None:
        self.target, self.findings, self.counts = target, findings, counts
        self.folder = root / "work"
        self.folder.mkdir(exist_ok=True)
        self.seeds = target.seeds(root / "world")
        self._seen: set[str] = set()

    def run(self, data: bytes) -> None:
        """Run one input; a finding is kept and told, the first of its kind only."""
        self.counts[RUNS] += 1
        try:
            with _time_limit(), warnings.catch_warnings(), Path(os.devnull).open("w") as quiet:
                warnings.simplefilter("ignore")
                with contextlib.redirect_stderr(quiet):
                    self.counts[ACCEPTED] += self.target.attempt(data, self.folder)
        except (Exception, Slow) as error:
            inner = error.__cause__ or error
            where = traceback.extract_tb(inner.__traceback__)[-1]
            kind = f"{type(inner).__name__} {where.filename}:{where.lineno}"
            self.counts[FOUND] += 1
            if kind in self._seen:
                return
            self._seen.add(kind)
            self.findings.mkdir(parents=True, exist_ok=True)
            kept = self.findings / f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            traceback.print_exception(inner)
            print(f"finding in {self.target.name}: {kept}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Slow(f"longer than {SECONDS_AN_INPUT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS_AN_INPUT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def by_hypothesis(session: Session, seconds: float) -> None:
    """Spoil good inputs, round after round with another seed, until the time is over."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1

        @seed(number)
        @settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=True))
        def run(draw: Random) -> None:
            if time.monotonic() < end:
                session.run(spoilt(session.seeds, draw, structured=session.target.structured))

        run()


def by_atheris(session: Session, seconds: float, corpus: Path) -> None:
    """Let libFuzzer steer by the branches of our readers and of the Python libraries they call."""
    atheris: Any = importlib.import_module("atheris")
    for name, module in list(sys.modules.items()):
        if name.startswith(INSTRUMENTED):
            _instrument(atheris, module)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, good in enumerate(session.seeds):
        (corpus / f"seed-{number}").write_bytes(good)
    largest = 2 * max(map(len, session.seeds))
    limits = [f"-max_total_time={int(seconds)}", f"-max_len={largest}", "-rss_limit_mb=6000", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *limits, "-verbosity=0", str(corpus)], session.run)
    atheris.Fuzz()


def _instrument(atheris: Any, module: Any) -> None:
    for value in list(vars(module).values()):
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__code__"):
            with contextlib.suppress(Exception):
                atheris.instrument_func(value)


def _child(name: str, engine: str, seconds: float, root: Path, findings: Path, counts: Counts) -> None:
    """Fuzz one target; libFuzzer ends the process itself, so nothing may be left to do after it."""
    _good_world(root)
    session = Session(TARGETS[name], root, findings, counts)
    if engine == "atheris":
        by_atheris(session, seconds, root / "corpus")
    else:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        by_hypothesis(session, seconds)


def _good_world(root: Path) -> None:
    import torch

    from rnascl_cli.teachers.architectures import build_teacher
    from rnascl_cli.teachers.load import write_teacher
    from tests.hostile.good_runs import write_runs

    torch.set_num_threads(1)
    (root / "world").mkdir()
    teacher = root / "world" / "r8.safetensors"
    write_teacher(teacher, build_teacher("r8", num_classes=10), architecture="r8", num_classes=10, about={})
    write_runs(root / "world", teacher)


def main() -> int:
    """Fuzz the chosen targets one after another; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="may be repeated; by default all")
    parser.add_argument("--engine", choices=("auto", "atheris", "hypothesis"), default="auto")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="a finding to run again; its name says the target")
    given_options = parser.parse_args()
    if given_options.replay is not None:
        return _replay(given_options.replay)
    engine = given_options.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    names = given_options.target or list(TARGETS)
    failed = 0
    for name in names:
        failed += _fuzz(name, engine, given_options.seconds / len(names), given_options.findings)
    print(f"{len(names)} targets by {engine}, {failed} with findings or an end before their time")
    return int(failed > 0)


def _fuzz(name: str, engine: str, seconds: float, findings: Path) -> bool:
    """Fuzz one target in a process of its own, say what was done, and return whether anything was found."""
    spawn = multiprocessing.get_context("spawn")
    counts: Counts = spawn.Array("q", 3)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rnascl-fuzz-") as folder:
        child = spawn.Process(target=_child, args=(name, engine, seconds, Path(folder), findings, counts))
        child.start()
        child.join()
    print(
        f"{name}: {counts[RUNS]} executions in {time.monotonic() - began:.0f} s, {counts[ACCEPTED]} accepted, "
        f"{counts[RUNS] - counts[ACCEPTED] - counts[FOUND]} refused, {counts[FOUND]} findings",
        flush=True,
    )
    return bool(counts[FOUND] or child.exitcode)


def _replay(path: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _good_world(root)
        session = Session(TARGETS[path.name.rpartition("-")[0]], root, root / "again", [0, 0, 0])
        session.run(path.read_bytes())
        print("accepted" if session.counts[ACCEPTED] else "a finding" if session.counts[FOUND] else "refused")
        return int(session.counts[FOUND] > 0)


if __name__ == "__main__":
    sys.exit(main())
