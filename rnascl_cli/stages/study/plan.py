"""From a study to its steps: each is one ``rnascl`` command, with the steps that it needs. Does not import torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes.base import leaves
from rnascl_cli.recipes.study import Arm, Study, repeated
from rnascl_cli.reporting.data.study import StudyStudent
from rnascl_cli.stages.study.check import check_settings

StudyStage = Literal["search", "derive", "train", "adv-finetune", "attack"]
TABLES: dict[StudyStage, str] = {
    "search": "search",
    "train": "train",
    "adv-finetune": "adv_finetune",
    "attack": "attack",
}


@dataclass(frozen=True)
class StudyStep:
    """One command of a study.

    Attributes:
        name: Its run directory or output file, relative to the study's folder.
        stage: Which command it is.
        arguments: The words after ``rnascl``; paths of the study are relative to its folder.
        needs: Names of the steps whose results it uses.
        result: The file that exists once it is done, relative to the study's folder.
    """

    name: str
    stage: StudyStage
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    result: str

    @property
    def resumable(self) -> bool:
        """Whether it has ``--resume``; an interrupted ``derive`` is simply run again."""
        return self.stage != "derive"

    def command(self, out: Path) -> list[str]:
        """Return the words after ``rnascl`` for a study in ``out``."""
        places = {self.name, *self.needs}
        return [str(out / word) if word in places else word for word in self.arguments]

    def typed(self, out: Path) -> str:
        """Return the whole command, quoted for a shell."""
        return shlex.join(["rnascl", *self.command(out)])


@dataclass(frozen=True)
class StudyPlan:
    """All steps, in an order that respects their dependencies, and the students that they train."""

    steps: tuple[StudyStep, ...]
    students: tuple[StudyStudent, ...]

    def only(self, patterns: Sequence[str]) -> list[StudyStep]:
        """Return the steps whose names match a pattern (``s3/seed0/*``), and all steps that those need.

        Raises:
            UserError: A pattern matches nothing.
        """
        for pattern in patterns:
            if not any(fnmatchcase(step.name, pattern) for step in self.steps):
                raise UserError(f"--only {pattern}: no step of that name; --plan shows them, e.g. {self.steps[0].name}")
        wanted = {step.name for step in self.steps if any(fnmatchcase(step.name, pattern) for pattern in patterns)}
        for step in reversed(self.steps):  # a step comes after those it needs
            if step.name in wanted:
                wanted.update(step.needs)
        return [step for step in self.steps if step.name in wanted]


def plan_study(study: Study, *, data: str | None = None, teacher: str | None = None) -> StudyPlan:
    """Return the steps of a study, seed by seed, so that an unfinished study is complete for the first ones.

    Args:
        study: What to compare.
        data: ``--data`` of every run, which overrides the study's.
        teacher: ``--teacher`` of every run, likewise.

    Raises:
        UserError: As :func:`~rnascl_cli.stages.study.check.check_settings`, or two steps have the same name.
    """
    check_settings(study, data=data)
    return _Planner(study, data, teacher).plan()


class _Planner:
    """Collects the steps."""

    def __init__(self, study: Study, data: str | None, teacher: str | None) -> None:
        self.study, self.data, self.teacher = study, data, teacher
        self.steps: list[StudyStep] = []
        self.later: list[StudyStep] = []
        self.students: list[StudyStudent] = []

    def plan(self) -> StudyPlan:
        study = self.study
        for seed in study.seeds:
            for space in study.spaces:
                # Arms that search come first: others train the networks they find.
                for arm in sorted(study.arm, key=lambda arm: arm.network_of is not None):
                    self._arm(arm, space, seed)
        steps = (*self.steps, *self.later)
        if twice := repeated(step.name for step in steps):
            raise UserError(f"two steps are called '{twice}'; give a finetuning or a measurement another name")
        return StudyPlan(steps, tuple(self.students))

    def _arm(self, arm: Arm, space: str, seed: int) -> None:
        folder = f"{space.lower()}/seed{seed}"
        searched, derived = f"{folder}/{arm.network_of or arm.name}/search", f"{folder}/{arm.name}/derived.json"
        trained = f"{folder}/{arm.name}/train"
        if arm.network_of is None:
            self._stage("search", searched, ["--space", space], seed=seed, own=arm.search)
        tutors = [] if arm.tutors == "searched" else ["--tutors", arm.tutors]
        words = ("derive", searched, *tutors, "--out", derived, "--force")
        self.steps.append(StudyStep(derived, "derive", words, (searched,), derived))
        self._stage("train", trained, [derived], seed=seed, own=arm.train)
        self._measure(StudyStudent(space, seed, arm.name, "train", trained, {}))
        for finetuning in self.study.finetuning:
            if arm.is_followed_by(finetuning.name):
                run = f"{folder}/{arm.name}/{finetuning.name}"
                self._stage("adv-finetune", run, [trained], seed=seed, own=finetuning.settings)
                self._measure(StudyStudent(space, seed, arm.name, finetuning.name, run, {}))

    def _measure(self, student: StudyStudent) -> None:
        for measurement in self.study.measurement:
            if measurement.of is not None and student.stage not in measurement.of:
                continue
            run = student.attacks[measurement.name] = f"{student.run}-{measurement.name}"
            words = [student.run]
            if measurement.limit_test is not None:
                words += ["--limit-test", str(measurement.limit_test)]
            if measurement.audit:
                words.append("--audit")
            # One seed for all, so that every student is attacked on the same images.
            self._stage("attack", run, words, seed=self.study.seeds[0], own=measurement.settings)
            if measurement.later:
                self.later.append(self.steps.pop())
        self.students.append(student)

    def _stage(self, stage: StudyStage, run: str, words: list[str], *, seed: int, own: dict[str, Any]) -> None:
        """Add a step that writes a run directory; all but a search take another step's result as first argument."""
        table, arguments = TABLES[stage], [stage, *words]
        if self.study.recipe is not None:
            arguments += ["--recipe", self.study.recipe]
        others = set(TABLES.values()) - {table}
        common = {key: value for key, value in self.study.settings.items() if key not in others}
        for key, value in [*leaves(common), *((f"{table}.{key}", value) for key, value in leaves(own))]:
            arguments += ["--set", f"{key}={as_toml(value)}"]
        if self.data is not None:
            arguments += ["--data", self.data]
        if self.teacher is not None and stage != "attack":
            arguments += ["--teacher", self.teacher]
        arguments += ["--seed", str(seed), "--out", run]
        needs = () if stage == "search" else (words[0],)
        self.steps.append(StudyStep(run, stage, tuple(arguments), needs, f"{run}/{stage}.json"))


def as_toml(value: Any) -> str:
    """Format a setting as ``--set`` reads it."""
    return "null" if value is None else json.dumps(value, ensure_ascii=False)
