"""From a study to its steps: each is one ``rnascl`` command that a person could have typed, and what it needs first.

No tensors here: a plan is made, checked and shown without torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes.study import Arm, Finetuning, Measurement, Study, flat, repeated
from rnascl_cli.reporting.data.study import Place
from rnascl_cli.stages.study.check import check_settings

StudyStage = Literal["search", "derive", "train", "adv-finetune", "attack"]
TABLES: dict[StudyStage, str] = {
    "search": "search",
    "train": "train",
    "adv-finetune": "adv_finetune",
    "attack": "attack",
}
DERIVED = "derived.json"
RESULTS: dict[StudyStage, str] = {
    "search": "search.json",
    "train": "train.json",
    "adv-finetune": "adv-finetune.json",
    "attack": "attack.json",
}


@dataclass(frozen=True)
class StudyStep:
    """One command of a study.

    Attributes:
        name: The folder of its run below the study's, or the file that it writes.
        stage: Which command it is.
        arguments: The words after ``rnascl``; places of the study are named as seen from its folder.
        needs: Names of the steps that come before.
        result: The file, below the study's folder, that is there once it has ended.
    """

    name: str
    stage: StudyStage
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    result: str

    @property
    def resumable(self) -> bool:
        """Whether ``--resume`` goes on with an interrupted one; a derivation is simply made again."""
        return self.stage != "derive"

    def command(self, out: Path) -> list[str]:
        """Return the words after ``rnascl`` for a study that lies in ``out``."""
        places = {self.name, *self.needs}
        return [str(out / word) if word in places else word for word in self.arguments]

    def typed(self, out: Path) -> str:
        """Return the whole command as one would type it."""
        return shlex.join(["rnascl", *self.command(out)])


@dataclass(frozen=True)
class StudyPlan:
    """All steps, in an order in which they can be taken, and the students that they make."""

    steps: tuple[StudyStep, ...]
    students: tuple[Place, ...]

    def only(self, patterns: Sequence[str]) -> list[StudyStep]:
        """Return the steps whose names match one of the patterns (``s3/seed0/*``), and all that those need.

        Raises:
            UserError: A pattern that matches nothing.
        """
        for pattern in patterns:
            if not any(fnmatchcase(step.name, pattern) for step in self.steps):
                raise UserError(f"--only {pattern}: no step of that name; --plan shows them, e.g. {self.steps[0].name}")
        wanted = {step.name for step in self.steps if any(fnmatchcase(step.name, pattern) for pattern in patterns)}
        for step in reversed(self.steps):  # what a step needs stands before it
            if step.name in wanted:
                wanted.update(step.needs)
        return [step for step in self.steps if step.name in wanted]


def plan_study(study: Study, *, data: str | None = None, teacher: str | None = None) -> StudyPlan:
    """Return the steps of a study, those of the first seed first, so that a study cut short is whole for it.

    Args:
        study: What to compare.
        data: ``--data`` of every run, over what the study says.
        teacher: ``--teacher`` of every run, likewise.

    Raises:
        UserError: As :func:`~rnascl_cli.stages.study.check.check_settings`, or two steps would have one name.
    """
    check_settings(study, data=data)
    return _Planner(study, data, teacher).plan()


class _Planner:
    """Writes down step after step."""

    def __init__(self, study: Study, data: str | None, teacher: str | None) -> None:
        self.study, self.data, self.teacher = study, data, teacher
        self.steps: list[StudyStep] = []
        self.later: list[StudyStep] = []
        self.students: list[Place] = []

    def plan(self) -> StudyPlan:
        study = self.study
        for seed in study.seeds:
            for space in study.spaces:
                # Arms that search come first: others train what they have found.
                for arm in sorted(study.arm, key=lambda arm: arm.network_of is not None):
                    self._arm(arm, space, seed)
        steps = (*self.steps, *self.later)
        if twice := repeated(step.name for step in steps):
            raise UserError(f"two steps are called '{twice}'; give a finetuning or a measurement another name")
        return StudyPlan(steps, tuple(self.students))

    def _arm(self, arm: Arm, space: str, seed: int) -> None:
        folder = f"{space.lower()}/seed{seed}/{arm.name}"
        searched = f"{space.lower()}/seed{seed}/{arm.network_of or arm.name}/search"
        if arm.network_of is None:
            self._stage("search", searched, ["--space", space], seed=seed, own=arm.search)
        derived = f"{folder}/{DERIVED}"
        tutors = [] if arm.tutors == "searched" else ["--tutors", arm.tutors]
        words = ("derive", searched, *tutors, "--out", derived, "--force")
        self.steps.append(StudyStep(derived, "derive", words, (searched,), derived))
        trained = f"{folder}/train"
        self._stage("train", trained, [derived], seed=seed, own=arm.train, needs=(derived,))
        self._measure(Place(space, seed, arm.name, "train", trained, {}))
        for finetuning in self.study.finetuning:
            if arm.is_followed_by(finetuning.name):
                self._finetune(finetuning, arm, space, seed, trained)

    def _finetune(self, finetuning: Finetuning, arm: Arm, space: str, seed: int, trained: str) -> None:
        run = f"{trained.removesuffix('/train')}/{finetuning.name}"
        self._stage("adv-finetune", run, [trained], seed=seed, own=finetuning.settings, needs=(trained,))
        self._measure(Place(space, seed, arm.name, finetuning.name, run, {}))

    def _measure(self, student: Place) -> None:
        for measurement in self.study.measurement:
            if measurement.of is None or student.stage in measurement.of:
                run = f"{student.run}-{measurement.name}"
                student.attacks[measurement.name] = run
                self._attack(measurement, student.run, run)
        self.students.append(student)

    def _attack(self, measurement: Measurement, model: str, run: str) -> None:
        words = [model]
        if measurement.limit_test is not None:
            words += ["--limit-test", str(measurement.limit_test)]
        if measurement.audit:
            words.append("--audit")
        # One seed for all: every student faces the same images.
        self._stage("attack", run, words, seed=self.study.seeds[0], own=measurement.settings, needs=(model,))
        if measurement.later:
            self.later.append(self.steps.pop())

    def _stage(
        self,
        stage: StudyStage,
        run: str,
        words: list[str],
        *,
        seed: int,
        own: dict[str, Any],
        needs: tuple[str, ...] = (),
    ) -> None:
        study = self.study
        arguments = [stage, *words]
        if study.recipe is not None:
            arguments += ["--recipe", study.recipe]
        others = {table for table in TABLES.values() if table != TABLES[stage]}
        common = {key: value for key, value in study.settings.items() if key not in others}
        for key, value in [*flat(common), *((f"{TABLES[stage]}.{key}", value) for key, value in flat(own))]:
            arguments += ["--set", f"{key}={as_toml(value)}"]
        if self.data is not None:
            arguments += ["--data", self.data]
        if self.teacher is not None and stage != "attack":
            arguments += ["--teacher", self.teacher]
        arguments += ["--seed", str(seed), "--out", run]
        self.steps.append(StudyStep(run, stage, tuple(arguments), needs, f"{run}/{RESULTS[stage]}"))


def as_toml(value: Any) -> str:
    """Write a setting as ``--set`` reads it."""
    return "null" if value is None else json.dumps(value, ensure_ascii=False)
