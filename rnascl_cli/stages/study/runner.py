"""The study: run every step that is not done yet, then tell what was measured.

Each step is a command of its own in a process of its own: one that fails takes nothing with it, and what a step left
on disk is what a person typing the command would have got. The same command goes on with a study that was stopped, or
killed: its steps then write their checkpoints and end, and where they do not, they are waited for.
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
from rnascl_cli.engine.interrupts import stop_after_step
from rnascl_cli.engine.lock import lock_directory, refuse_if_in_use
from rnascl_cli.engine.parent_death import ending_with_this_process
from rnascl_cli.engine.run_directory import JOURNAL, has_checkpoint, is_nonempty
from rnascl_cli.recipes import find_recipe
from rnascl_cli.stages.study.plan import StudyPlan, StudyStep

LOGS = "logs"
POLL_SECONDS = 0.1


@dataclass
class Progress:
    """How far a study has come.

    Attributes:
        done: Names of the steps that have ended well.
        failed: Those that have not, with the last line that each said.
        not_begun: Those that were never begun because something that they need has failed.
        minutes_up: Whether the time given ran out before the last step was begun.
        stopped: The signal that ended the study; None where none did.
    """

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    not_begun: list[str] = field(default_factory=list)
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
    info(f"study: {len(kept)} of {pluralise(len(plan.steps), 'step')} done already" if kept else "study: begun")
    if stale:
        info(f"study: {_made_again(stale)}")
    _Runner(steps, out, progress, record, stale=stale, jobs=jobs, minutes=minutes).run()
    lock.release()
    return progress


def has_ended(plan: StudyPlan, steps: Sequence[StudyStep], out: Path) -> bool:
    """Return whether none of some steps is left to be done in a study's folder, so that no images are needed.

    Raises:
        UserError: As :func:`run_study`.
    """
    return (out / STEPS).is_file() and StudyRecord(out, plan).kept(plan)[0].issuperset(step.name for step in steps)


def _made_again(stale: set[str]) -> str:
    if len(stale) == 1:
        return f"1 step is made again, as what it was made from has been: {min(stale)}"
    return f"{len(stale)} steps are made again, as what they were made from has been, e.g. {min(stale)}"


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if is_nonempty(out) and not (out / STEPS).is_file():
        raise UserError(f"--out {out}: holds something that is no study; name another folder")
    try:
        (out / LOGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None


@dataclass(frozen=True)
class _Running:
    """A step at work: its process, when it began, and where in the log its own words begin."""

    step: StudyStep
    process: subprocess.Popen[bytes]
    began: float
    said_from: int


class _Runner:
    """Keeps ``jobs`` processes busy with the first steps whose needs are met."""

    def __init__(
        self,
        steps: Sequence[StudyStep],
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
        self.running: dict[str, _Running] = {}
        self.held: set[str] = set()
        self.told_of: set[str] = set()
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self.environment = {
            "OMP_NUM_THREADS": str(threads),
            **distributed.non_distributed_environment(),
            **ending_with_this_process(),
        }

    def run(self) -> None:
        with stop_after_step() as stop:
            while self.waiting or self.running:
                if stop.signum is not None:
                    self._stop(stop.signum)
                    break
                self._begin()
                if not self.running and not self.held:
                    break
                time.sleep(POLL_SECONDS)
                self._collect()

    def _begin(self) -> None:
        """Begin steps while there is room, time and a step whose needs are met."""
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
        """Return whether another process writes where the step would: one that an earlier study, now killed, began."""
        try:
            refuse_if_in_use(self.out / step.name)
        except UserError as error:
            self.held.add(step.name)
            if step.name not in self.told_of:
                self.told_of.add(step.name)
                info(f"study: waiting for another process to end: {error}")
            return True
        return False

    def _start(self, step: StudyStep) -> _Running:
        command = step.command(self.out)
        if step.resumable:
            command += ["--force"] if step.name in self.stale else resumed_command(self.out / step.name)
        self.record.begin(step)
        with self._log(step).open("ab") as log:
            said_from = log.tell()
            # In a session of its own: Ctrl-C reaches it once, from here, and not from the terminal as well.
            process = subprocess.Popen(
                [sys.executable, "-m", "rnascl_cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        return _Running(step, process, time.monotonic(), said_from)

    def _collect(self) -> None:
        for name, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[name]
            if code == 0 and (self.out / running.step.result).is_file():
                self.progress.done.add(name)
                info(f"study: {len(self.progress.done)}/{self.total} {name} ({time.monotonic() - running.began:.0f} s)")
            else:
                self.progress.failed[name] = self._last_words(running)
                warning(f"study: {name}: failed with exit code {code}: {self.progress.failed[name]}")
                self._give_up_what_needs(name)

    def _give_up_what_needs(self, failed: str) -> None:
        """Take out of the waiting steps all that need one that has failed, directly or through others."""
        lost = {failed}
        for step in list(self.waiting):  # what a step needs stands before it
            if lost.intersection(step.needs):
                lost.add(step.name)
                self.waiting.remove(step)
                self.progress.not_begun.append(step.name)

    def _stop(self, signum: int) -> None:
        """Pass the signal on and wait for the checkpoints; pass a second one on as well, and wait no longer."""
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

    def _last_words(self, running: _Running) -> str:
        """Return the last line that this process said; before it stand those of earlier ones."""
        said = self._log(running.step).read_bytes()[running.said_from :]
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def resumed_command(run: Path) -> list[str]:
    """Return the option for a run directory in which an interrupted step has left something."""
    # An attack that is there was ended meanwhile by a process that this study waited for: it is left as it is.
    if has_checkpoint(run) or (run / JOURNAL).is_file() or (run / "attack.json").is_file():
        return ["--resume"]
    return ["--force"] if run.is_dir() and any(run.iterdir()) else []


def end(progress: Progress, *, steps: int) -> None:
    """Raise what a study that was stopped, or had failures, ends with.

    Raises:
        Interrupted: It was stopped.
        RunError: There are failed steps; the first is told, how many there are, and how many more that has cost.
    """
    if progress.stopped is not None:
        done = f"{len(progress.done)} of {steps} steps done"
        raise Interrupted(progress.stopped, f"study: stopped with {done}; the same command goes on")
    if progress.failed:
        name, words = next(iter(progress.failed.items()))
        failed, lost = len(progress.failed), len(progress.not_begun)
        cost = f", and {lost} more could not be begun because of {'it' if failed == 1 else 'them'}" if lost else ""
        raise RunError(f"study: {pluralise(failed, 'step')} failed{cost}; {name}: {words}")


STEPS = "steps.json"
NAMING_FILES = ("--recipe", "--tutors", "--teacher")


class StepInputs(FrozenModel):
    """What one step was made from."""

    arguments: list[str]
    files: dict[str, Sha256]
    needs: dict[str, Sha256]


class StudyRecord:
    """The entries of a study's folder.

    Args:
        out: The folder.
        plan: Where the results lie that steps need.

    Raises:
        UserError: ``steps.json`` is there and is something else.
    """

    def __init__(self, out: Path, plan: StudyPlan) -> None:
        self._out, self._path = out, out / STEPS
        self._results = {step.name: out / step.result for step in plan.steps}
        self._hashes: dict[Path, str] = {}
        self.entries: dict[str, StepInputs] = {}
        if self._path.is_file():
            found = parse_json(
                read_bounded(self._path, MAX_DOCUMENT_BYTES, what="study's steps"), where=str(self._path)
            )
            try:
                self.entries = TypeAdapter(dict[str, StepInputs]).validate_python(found)
            except ValidationError:
                raise UserError(f"{self._path}: is not the list of a study's steps; name another --out") from None

    def entry(self, step: StudyStep) -> StepInputs:
        """Return what a step would be made from now; results that are not there yet are left out."""
        needs = {name: sha256_file(self._results[name]) for name in step.needs if self._results[name].is_file()}
        return StepInputs(arguments=list(step.arguments), files=self._files(step), needs=needs)

    def _files(self, step: StudyStep) -> dict[str, str]:
        found = {}
        for option, word in zip(step.arguments, step.arguments[1:], strict=False):
            if option in NAMING_FILES:
                path = find_recipe(word) if option == "--recipe" else Path(word)
                if path.is_file():
                    if path not in self._hashes:
                        self._hashes[path] = sha256_file(path)
                    found[option] = self._hashes[path]
        return found

    def kept(self, plan: StudyPlan) -> tuple[set[str], set[str]]:
        """Return the steps whose results are kept, and those that are there but were made from other results.

        Raises:
            UserError: A step was made with other settings or files than the study has now.
        """
        kept: set[str] = set()
        stale: set[str] = set()
        for step in plan.steps:  # what a step needs stands before it
            there = (self._out / step.result).is_file()
            begun = there or (step.resumable and has_checkpoint(self._out / step.name))
            if not begun:
                continue
            before, now = self.entries.get(step.name), self.entry(step)
            # A file that is gone says nothing against what was made from it, but nothing more can be.
            gone = (
                {}
                if before is None or not there
                else {option: digest for option, digest in before.files.items() if option not in now.files}
            )
            if before is None or (before.arguments, before.files) != (now.arguments, now.files | gone):
                raise UserError(
                    f"--out {self._out}: {step.name} was made with other settings than the study has now; "
                    "name another folder, or remove that one"
                )
            if before.needs != now.needs or stale.intersection(step.needs):
                stale.add(step.name)
            elif there and kept.issuperset(step.needs):
                kept.add(step.name)
            elif there:
                stale.add(step.name)
        return kept, stale

    def begin(self, step: StudyStep) -> None:
        """Note what a step is made from, before it is begun."""
        self.entries[step.name] = self.entry(step)
        self.write()

    def write(self) -> None:
        """Write all entries, those of steps that the study no longer has among them."""
        content: dict[str, Any] = {name: entry.model_dump() for name, entry in self.entries.items()}
        write_text(self._path, json.dumps(content, indent=1) + "\n")
