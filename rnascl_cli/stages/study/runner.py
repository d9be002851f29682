"""Runs every step of a study that is not done yet.

Each step is a command in a process of its own: a failure does not affect other steps, and a step leaves what the typed
command would have left. The same command resumes a study that was stopped or killed. Steps of a killed study write
their checkpoints and end; until then the new study waits for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rnascl_cli.artifacts.documents import FrozenModel, Sha256
from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, parse_json, read_bounded
from rnascl_cli.artifacts.store import sha256_file, write_text
from rnascl_cli.core import distributed
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import Interrupted, RunError, UserError, pluralise
from rnascl_cli.core.file_lock import lock_directory, refuse_if_in_use
from rnascl_cli.engine.interrupts import stop_after_step
from rnascl_cli.engine.parent_death import ending_with_this_process
from rnascl_cli.engine.run_directory import JOURNAL, has_checkpoint, is_nonempty
from rnascl_cli.recipes.load import find_recipe
from rnascl_cli.recipes.old_keys import current_setting
from rnascl_cli.stages.study.plan import StudyPlan, StudyStep

LOGS = "logs"
STEPS = "steps.json"
POLL_SECONDS = 0.1
FILE_OPTIONS = ("--recipe", "--tutors", "--teacher")


@dataclass
class Progress:
    """The state of a study's steps.

    Attributes:
        done: Names of the steps that have succeeded.
        failed: Names of those that have failed, with the last line of their output.
        not_begun: Names of those that did not run because a step they need has failed.
        minutes_up: Whether the time ran out before the last step was started.
        stopped: The signal that stopped the study; None if it was not stopped.
    """

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    not_begun: list[str] = field(default_factory=list)
    minutes_up: bool = False
    stopped: int | None = None

    def raise_if_incomplete(self, *, steps: int) -> None:
        """Raise the error that the study ends with, if any.

        Args:
            steps: Number of steps of the study.

        Raises:
            Interrupted: It was stopped.
            RunError: Steps have failed; the message names the first one.
        """
        if self.stopped is not None:
            done = f"{len(self.done)} of {steps} steps done"
            raise Interrupted(self.stopped, f"study: stopped with {done}; the same command resumes it")
        if self.failed:
            name, words = next(iter(self.failed.items()))
            failed, lost = len(self.failed), len(self.not_begun)
            cost = f", and {lost} more could not start because of {'it' if failed == 1 else 'them'}" if lost else ""
            raise RunError(f"study: {pluralise(failed, 'step')} failed{cost}; {name}: {words}")


def run_study(
    plan: StudyPlan, out: Path, *, jobs: int = 1, minutes: float | None = None, only: Sequence[str] = ()
) -> Progress:
    """Run every step of a plan that is not done yet.

    After Ctrl-C or SIGTERM the running steps write their checkpoints first; a second signal ends them at once.

    Args:
        plan: The steps.
        out: The study's folder; created if needed. Finished steps in it are kept unless their inputs have changed.
        jobs: Number of steps that run at once; each gets its share of the processor's threads.
        minutes: No step is started after this time; None for no limit.
        only: Patterns of names: these steps and the ones they need; empty for all.

    Raises:
        UserError: ``out`` is not a study folder, or a step in it was made with other settings.
    """
    steps = plan.only(only) if only else plan.steps
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if is_nonempty(out) and not (out / STEPS).is_file():
        raise UserError(f"--out {out}: not a study folder; name another folder")
    try:
        (out / LOGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    lock = lock_directory(out)
    record = StudyRecord(out, plan)
    kept, stale = record.kept(plan)
    record.write()
    info(f"study: {len(kept)} of {pluralise(len(plan.steps), 'step')} done already" if kept else "study: started")
    if stale:
        runs = "step runs" if len(stale) == 1 else "steps run"
        info(f"study: {len(stale)} {runs} again because inputs have changed, e.g. {min(stale)}")
    runner = _Runner(steps, record, Progress(done=kept), stale=stale, jobs=jobs, minutes=minutes)
    runner.run()
    lock.release()
    return runner.progress


def is_complete(plan: StudyPlan, steps: Sequence[StudyStep], out: Path) -> bool:
    """Return whether all of ``steps`` are done in a study's folder, so that no images are needed.

    Raises:
        UserError: As :func:`run_study`.
    """
    return (out / STEPS).is_file() and StudyRecord(out, plan).kept(plan)[0].issuperset(step.name for step in steps)


def resume_options(run: Path) -> list[str]:
    """Return the option for a run directory: ``--resume``, ``--force``, or none if it is empty."""
    # A finished attack is of a process of an earlier study that ended while this one waited for it.
    if has_checkpoint(run) or (run / JOURNAL).is_file() or (run / "attack.json").is_file():
        return ["--resume"]
    return ["--force"] if is_nonempty(run) else []


@dataclass(frozen=True)
class _Running:
    """A running step: its process, its start time, and the log's size when it started."""

    step: StudyStep
    process: subprocess.Popen[bytes]
    started: float
    log_offset: int


class _Runner:
    """Keeps ``jobs`` processes busy with the first steps whose inputs are ready."""

    def __init__(
        self,
        steps: Sequence[StudyStep],
        record: StudyRecord,
        progress: Progress,
        *,
        stale: set[str],
        jobs: int,
        minutes: float | None,
    ) -> None:
        self.record, self.out, self.progress, self.stale, self.jobs = record, record.out, progress, stale, jobs
        self.waiting = [step for step in steps if step.name not in progress.done]
        self.total = len(self.waiting) + len(progress.done)
        self.running: dict[str, _Running] = {}
        self.held: set[str] = set()
        self.reported: set[str] = set()
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)),
            **distributed.non_distributed_environment(),
            **ending_with_this_process(),
        }

    def run(self) -> None:
        with stop_after_step() as stop:
            while self.waiting or self.running:
                if stop.signum is not None:
                    self._stop(stop.signum)
                    break
                self._start_ready()
                if not self.running and not self.held:
                    break
                time.sleep(POLL_SECONDS)
                self._collect()

    def _start_ready(self) -> None:
        """Start steps while there is a free job, time, and a step whose inputs are ready."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.progress.minutes_up = bool(self.waiting)
            self.waiting.clear()
        self.held.clear()
        while len(self.running) < self.jobs:
            able = [step for step in self.waiting if self.progress.done.issuperset(step.needs)]
            ready = next((step for step in able if not self._is_held(step)), None)
            if ready is None:
                return
            self.waiting.remove(ready)
            self.running[ready.name] = self._start(ready)

    def _is_held(self, step: StudyStep) -> bool:
        """Return whether another process, started by a killed study, still writes to the step's folder."""
        try:
            refuse_if_in_use(self.out / step.name)
        except UserError as error:
            self.held.add(step.name)
            if step.name not in self.reported:
                self.reported.add(step.name)
                info(f"study: waiting for another process to end: {error}")
            return True
        return False

    def _start(self, step: StudyStep) -> _Running:
        command = step.command(self.out)
        if step.resumable:
            command += ["--force"] if step.name in self.stale else resume_options(self.out / step.name)
        self.record.add(step)
        with self._log(step).open("ab") as log:
            offset = log.tell()
            # In its own session: Ctrl-C reaches the step once, from here, and not also from the terminal.
            process = subprocess.Popen(
                [sys.executable, "-m", "rnascl_cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        return _Running(step, process, time.monotonic(), offset)

    def _collect(self) -> None:
        for name, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[name]
            if code == 0 and (self.out / running.step.result).is_file():
                self.progress.done.add(name)
                seconds = time.monotonic() - running.started
                info(f"study: {len(self.progress.done)}/{self.total} {name} ({seconds:.0f} s)")
            else:
                self.progress.failed[name] = self._last_line(running)
                warning(f"study: {name}: failed with exit code {code}: {self.progress.failed[name]}")
                self._drop_dependents(name)

    def _drop_dependents(self, failed: str) -> None:
        """Remove all waiting steps that need the failed one, directly or through others."""
        lost = {failed}
        for step in list(self.waiting):  # in order of their dependencies
            if lost.intersection(step.needs):
                lost.add(step.name)
                self.waiting.remove(step)
                self.progress.not_begun.append(step.name)

    def _stop(self, signum: int) -> None:
        """Pass the signal on and wait for the checkpoints; pass a second one on to end at once."""
        self.progress.stopped = signum
        try:
            self._pass_on(signum)
        except Interrupted as again:
            self._pass_on(again.signum)

    def _pass_on(self, signum: int) -> None:
        for running in self.running.values():
            running.process.send_signal(signum)
        for running in self.running.values():
            running.process.wait()

    def _log(self, step: StudyStep) -> Path:
        return self.out / LOGS / (step.name.removesuffix(".json").replace("/", "-") + ".log")

    def _last_line(self, running: _Running) -> str:
        output = self._log(running.step).read_bytes()[running.log_offset :]
        lines = output.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"


class StepInputs(FrozenModel):
    """What one step was made from."""

    arguments: list[str]
    files: dict[str, Sha256]
    needs: dict[str, Sha256]


class StudyRecord:
    """``steps.json`` of a study's folder: the inputs of every step that has been started.

    Args:
        out: The folder.
        plan: The study's steps.

    Raises:
        UserError: ``steps.json`` is damaged.
    """

    def __init__(self, out: Path, plan: StudyPlan) -> None:
        self.out, self._path = out, out / STEPS
        self._results = {step.name: out / step.result for step in plan.steps}
        self._hashes: dict[Path, str] = {}
        self._inputs: dict[str, StepInputs] = {}
        if self._path.is_file():
            data = read_bounded(self._path, MAX_DOCUMENT_BYTES, what="study's steps")
            found = parse_json(data, where=str(self._path))
            try:
                self._inputs = TypeAdapter(dict[str, StepInputs]).validate_python(found)
            except ValidationError:
                raise UserError(f"{self._path}: is not the list of a study's steps; name another --out") from None

    def kept(self, plan: StudyPlan) -> tuple[set[str], set[str]]:
        """Return the names of the steps whose results are kept, and of those whose inputs have changed.

        Raises:
            UserError: A step was made with other settings or files than the study has now.
        """
        kept: set[str] = set()
        stale: set[str] = set()
        for step in plan.steps:  # in order of their dependencies
            finished = self._results[step.name].is_file()
            if not finished and not (step.resumable and has_checkpoint(self.out / step.name)):
                continue
            before, now = self._inputs.get(step.name), self._current(step)
            if before is None or not _same_settings(before, now, finished=finished):
                raise UserError(
                    f"--out {self.out}: {step.name} was made with other settings than the study has now; "
                    "name another folder, or remove that one"
                )
            unchanged = before.needs == now.needs and not stale.intersection(step.needs)
            if unchanged and finished and kept.issuperset(step.needs):
                kept.add(step.name)
            elif finished or not unchanged:
                stale.add(step.name)
        return kept, stale

    def add(self, step: StudyStep) -> None:
        """Record the inputs of a step before it starts."""
        self._inputs[step.name] = self._current(step)
        self.write()

    def write(self) -> None:
        """Write all entries, including those of steps that the study no longer has."""
        content: dict[str, Any] = {name: inputs.model_dump() for name, inputs in self._inputs.items()}
        write_text(self._path, json.dumps(content, indent=1) + "\n")

    def _current(self, step: StudyStep) -> StepInputs:
        """Return a step's inputs as they are now; results that do not exist yet are left out."""
        needs = {name: sha256_file(self._results[name]) for name in step.needs if self._results[name].is_file()}
        files = {}
        for option, word in zip(step.arguments, step.arguments[1:], strict=False):
            if option in FILE_OPTIONS:
                path = find_recipe(word) if option == "--recipe" else Path(word)
                if path.is_file():
                    if path not in self._hashes:
                        self._hashes[path] = sha256_file(path)
                    files[option] = self._hashes[path]
        return StepInputs(arguments=list(step.arguments), files=files, needs=needs)


def _same_settings(before: StepInputs, now: StepInputs, *, finished: bool) -> bool:
    """Return whether arguments and files are the same. A finished step is kept if a file of it no longer exists."""
    files = before.files | now.files if finished else now.files
    return [current_setting(word) for word in before.arguments] == now.arguments and before.files == files
