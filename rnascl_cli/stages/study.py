"""The study: run every step that is not done yet, then tell what was measured.

Each step is a command of its own in a process of its own: one that fails takes nothing with it, and what a step left
on disk is what a person typing the command would have got. The same command goes on with a study that was stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rnascl_cli.console import say, warn
from rnascl_cli.engine.interrupts import finishing_steps
from rnascl_cli.engine.lock import lock_directory
from rnascl_cli.engine.run_directory import JOURNAL, has_checkpoint, occupied
from rnascl_cli.errors import Interrupted, RunError, UserError
from rnascl_cli.stages.study_plan import Step, StudyPlan
from rnascl_cli.stages.study_record import STEPS, StudyRecord

LOGS = "logs"
POLL_SECONDS = 0.1


@dataclass
class Progress:
    """How far a study has come.

    Attributes:
        done: Names of the steps that have ended well.
        failed: Those that have not, with the last line that each said.
        minutes_up: Whether the time given ran out before the last step was begun.
        stopped: The signal that ended the study; None where none did.
    """

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    minutes_up: bool = False
    stopped: int | None = None


def run_study(
    plan: StudyPlan, out: Path, *, jobs: int = 1, minutes: float | None = None, only: Sequence[str] = ()
) -> Progress:
    """Take every step of a plan that has not been taken yet.

    Args:
        plan: The steps.
        out: The study's folder; made where it is not there. Steps that have ended in it are left as they are, unless
            what they were made from has been made anew since.
        jobs: How many steps run at once; each gets its share of the processor's threads.
        minutes: No step is begun after so many; None for no end.
        only: Patterns of names: these steps, and what they need; none for all.

    Raises:
        UserError: ``out`` holds something else, or a step in it was taken with other settings.

    Returns:
        How far it has come. After Ctrl-C or SIGTERM the running steps have written their checkpoints; after a second
        one they were ended at once.
    """
    steps = plan.only(only) if only else plan.steps
    _claim(out)
    lock = lock_directory(out)
    record = StudyRecord(out, plan)
    kept, stale = record.kept(plan)
    record.write()
    progress = Progress(done=kept)
    say(f"study: {len(kept)} of {len(plan.steps)} steps are done already" if kept else "study: begun")
    if stale:
        say(f"study: {len(stale)} steps are made again, as what they were made from has been, e.g. {min(stale)}")
    _Runner(steps, out, progress, record, stale=stale, jobs=jobs, minutes=minutes).run()
    lock.release()
    return progress


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if occupied(out) and not (out / STEPS).is_file():
        raise UserError(f"--out {out}: holds something that is no study; name another folder")
    try:
        (out / LOGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None


class _Runner:
    """Keeps ``jobs`` processes busy with the first steps whose needs are met."""

    def __init__(
        self,
        steps: Sequence[Step],
        out: Path,
        progress: Progress,
        record: StudyRecord,
        *,
        stale: set[str],
        jobs: int,
        minutes: float | None,
    ) -> None:
        self.out, self.progress, self.record, self.stale, self.jobs = out, progress, record, stale, jobs
        self.waiting = [step for step in steps if step.name not in progress.done]
        self.total = len(self.waiting) + len(progress.done)
        self.running: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}

    def run(self) -> None:
        with finishing_steps() as stop:
            while self.waiting or self.running:
                if stop.signum is not None:
                    self._stop(stop.signum)
                    break
                self._begin()
                if not self.running:
                    break
                time.sleep(POLL_SECONDS)
                self._collect()

    def _begin(self) -> None:
        """Begin steps while there is room, time and a step whose needs are met."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.progress.minutes_up = bool(self.waiting)
            self.waiting.clear()
        lost = [step for step in self.waiting if any(need in self.progress.failed for need in step.needs)]
        for step in lost:
            self.waiting.remove(step)
            self.progress.failed[step.name] = "not begun: what it needs has failed"
        while len(self.running) < self.jobs:
            ready = next((step for step in self.waiting if self.progress.done.issuperset(step.needs)), None)
            if ready is None:
                return
            self.waiting.remove(ready)
            self.running[ready.name] = (ready, self._start(ready), time.monotonic())

    def _start(self, step: Step) -> subprocess.Popen[bytes]:
        command = step.command(self.out)
        if step.resumable:
            command += ["--force"] if step.name in self.stale else _going_on(self.out / step.name)
        self.record.begin(step)
        with self._log(step).open("ab") as log:
            # In a session of its own: Ctrl-C reaches it once, from here, and not from the terminal as well.
            return subprocess.Popen(
                [sys.executable, "-m", "rnascl_cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def _collect(self) -> None:
        for name, (step, process, began) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[name]
            if code == 0 and (self.out / step.result).is_file():
                self.progress.done.add(name)
                say(f"study: {len(self.progress.done)}/{self.total} {name} ({time.monotonic() - began:.0f} s)")
            else:
                self.progress.failed[name] = self._last_words(step)
                warn(f"study: {name}: failed with exit code {code}: {self.progress.failed[name]}")

    def _stop(self, signum: int) -> None:
        """Pass the signal on and wait for the checkpoints; pass a second one on as well, and wait no longer."""
        self.progress.stopped = signum
        try:
            self._pass_on(signum)
        except Interrupted as again:
            self._pass_on(again.signum)

    def _pass_on(self, signum: int) -> None:
        for _, process, _ in self.running.values():
            process.send_signal(signum)
        for _, process, _ in self.running.values():
            process.wait()

    def _log(self, step: Step) -> Path:
        return self.out / LOGS / (step.name.removesuffix(".json").replace("/", "-") + ".log")

    def _last_words(self, step: Step) -> str:
        lines = self._log(step).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _going_on(run: Path) -> list[str]:
    """Return the option for a run directory in which an interrupted step has left something."""
    if has_checkpoint(run) or (run / JOURNAL).is_file():
        return ["--resume"]
    return ["--force"] if run.is_dir() and any(run.iterdir()) else []


def end(progress: Progress, *, steps: int) -> None:
    """Raise what a study that was stopped, or had failures, ends with.

    Raises:
        Interrupted: It was stopped.
        RunError: There are failed steps; the first is told, and how many there are.
    """
    if progress.stopped is not None:
        done = f"{len(progress.done)} of {steps} steps done"
        raise Interrupted(progress.stopped, f"study: stopped with {done}; the same command goes on")
    if progress.failed:
        name, words = next(iter(progress.failed.items()))
        raise RunError(f"study: {len(progress.failed)} steps failed; {name}: {words}")
