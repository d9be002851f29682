"""What ``train`` and ``adv-finetune`` do alike: a student under its teacher, from the first epoch to the last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from rnascl_cli.artifacts.documents import DerivedDocument, Paradigm
from rnascl_cli.artifacts.store import write_document
from rnascl_cli.data import Data
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import History, fit
from rnascl_cli.models.student import Student
from rnascl_cli.recipes import Recipe, StudentSettings, TrainSettings
from rnascl_cli.recipes.paradigms import needs_teacher, uses_tutors
from rnascl_cli.stages.training.distillation import (
    DistillationModel,
    check_student_layers,
    distilling,
    paradigm_teacher,
)
from rnascl_cli.stages.training.distillation_baselines import baseline_loss, find_baseline_teacher
from rnascl_cli.stages.training.model_selection import require_holdout
from rnascl_cli.stages.training.sanity_checks import warn_of_idle_settings, warn_without_perturbation
from rnascl_cli.stages.training.setup import check_can_be_shared, plan_training
from rnascl_cli.stages.training.step import StudentStep
from rnascl_cli.teachers.load import Teacher
from rnascl_cli.teachers.output_cache import open_output_cache


class StudentTrainingResult(NamedTuple):
    """How a training went: every epoch's metrics, the teacher if there was one, what its document says of its end."""

    history: History
    teacher: Teacher | None
    end: dict[str, Any]


def train_student(
    stage: str,
    student: Student,
    derived: DerivedDocument,
    recipe: Recipe,
    settings: StudentSettings,
    task: Callable[[DistillationModel], StudentStep],
    *,
    paradigm: Paradigm,
    data: Data,
    compute: DeviceConfig,
    run: RunDirectory,
    **own: Any,
) -> StudentTrainingResult:
    """Train a student under the terms of eq. (3) that its paradigm has, or a rival in place of the teacher's.

    ``derived.json`` and the metrics are written.

    In the end the student has the weights that are to be kept.

    Args:
        stage: Its name.
        student: Trained in place.
        derived: Its architecture and tutor map.
        recipe: For teacher, seed and augmentation.
        settings: The stage's own table.
        task: Makes the stage's step for the student and its teacher.
        paradigm: Which terms there are.
        data: Trained on its training images.
        compute: Device and precision.
        run: Made here, once the teacher is known to fit.
        own: What else a checkpoint is tied to.

    Raises:
        UserError: The teacher is unusable or does not fit the tutor map or the rival, or an epoch is to be chosen and
            no image is held out.
        RunError: The loss became NaN or infinite.
    """
    attention, method = settings.attention, needs_teacher(settings)
    distill = settings.distill if isinstance(settings, TrainSettings) else None
    check_can_be_shared(
        min(settings.batch_size, len(data.train)), attention=attention, rival=distill.name if distill else None
    )
    if settings.stop is not None:
        require_holdout(data, who=f"--select {settings.stop.on}")
    guide = find_baseline_teacher(recipe.teacher, distill, derived, data=data) if distill else None
    teacher = paradigm_teacher(
        recipe.teacher, paradigm, derived, data=data, attention=attention, kl=settings.kl, method=method
    )
    check_student_layers(student, derived, paradigm=paradigm, attention=attention)
    warn_of_idle_settings(stage, settings)
    if settings.method is not None:
        warn_without_perturbation(stage, settings.perturbation, term="adversarial")
    run.create()
    if not run.resume:  # a checkpoint of another network is refused below, and must stay beside its own document
        write_document(run.path / "derived.json", derived)
    kept = None
    if teacher is not None:
        maps = uses_tutors(paradigm)
        kept = open_output_cache(recipe, teacher, data=data, attention=attention, maps=maps, compute=compute)
    with contextlib.ExitStack() as stack:
        rival = None
        if guide is not None:
            rival = stack.enter_context(baseline_loss(student, guide, derived, recipe, data=data, compute=compute))
            teacher = guide.teacher
        distillation = stack.enter_context(
            distilling(
                student,
                teacher if rival is None else None,
                derived,
                paradigm=paradigm,
                attention=attention,
                kl=settings.kl,
                compute=compute,
                cache=kept,
                method=method,
                baseline=rival,
            )
        )
        plan = plan_training(
            stage,
            recipe,
            settings,
            data=data,
            compute=compute,
            run=run,
            teacher=teacher,
            paradigm=paradigm,
            **own,
        )
        lessons = task(distillation)
        history = fit(lessons, plan)
    validation = lessons.validation
    end: dict[str, Any] = {"average": validation.restore_selected_weights()}
    if validation.best is not None:
        end |= {"best_epoch": validation.best.epoch + 1, "validation": validation.best.validation}
    return StudentTrainingResult(history, teacher, end)
