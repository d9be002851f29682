"""Trains a student under its teacher, for ``train`` and ``adv-finetune``."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from rnascl_cli.artifacts.documents import DerivedDocument, Paradigm
from rnascl_cli.artifacts.store import write_document
from rnascl_cli.engine.training_loop import History, fit
from rnascl_cli.models.student import Student
from rnascl_cli.recipes.paradigms import needs_teacher, uses_tutors
from rnascl_cli.recipes.settings import StudentSettings, TrainSettings
from rnascl_cli.stages.training.distillation import check_student_layers, distilling, load_matching_teacher
from rnascl_cli.stages.training.distillation_baselines import baseline_loss, find_baseline_teacher
from rnascl_cli.stages.training.model_selection import require_holdout
from rnascl_cli.stages.training.sanity_checks import warn_without_perturbation
from rnascl_cli.stages.training.setup import TrainingRun, check_can_be_shared
from rnascl_cli.stages.training.step import StudentStep, TrainingStage
from rnascl_cli.teachers.load import Teacher


class StudentTrainingResult(NamedTuple):
    """Every epoch's metrics, the teacher if there was one, and how the stage's document describes the final weights."""

    history: History
    teacher: Teacher | None
    final: dict[str, Any]


def train_student(
    stage: TrainingStage,
    student: Student,
    derived: DerivedDocument,
    settings: StudentSettings,
    *,
    paradigm: Paradigm,
    training: TrainingRun,
    **identity: Any,
) -> StudentTrainingResult:
    """Train a student by eq. (3), in place; it ends with the weights that are kept.

    Writes ``derived.json``, ``metrics.jsonl`` and checkpoints.

    Args:
        stage: Stage name.
        student: Trained in place.
        derived: Its architecture and tutor map.
        settings: Settings of the stage.
        paradigm: Which terms eq. (3) has.
        training: Images, device and run directory, which is created here after the teacher has been checked.
        identity: Further parts of the run's identity; see
            :meth:`~rnascl_cli.stages.training.setup.TrainingRun.config`.

    Raises:
        UserError: The teacher is unusable or does not fit the tutor map or the baseline, or an epoch is to be selected
            and no image is held out.
        RunError: The loss became NaN or infinite.
    """
    attention, method = settings.attention, needs_teacher(settings.robust)
    source, data, compute, run = training.recipe.teacher, training.data, training.compute, training.directory
    distill = settings.distill if isinstance(settings, TrainSettings) else None
    check_can_be_shared(
        min(settings.batch_size, len(data.train)), attention=attention, baseline=distill.name if distill else None
    )
    if settings.select is not None:
        require_holdout(data, who=f"--select {settings.select.metric}")
    baseline_teacher = find_baseline_teacher(source, distill, derived, data=data) if distill else None
    teacher = load_matching_teacher(
        source, paradigm, derived, data=data, attention=attention, kl=settings.kl, method=method
    )
    check_student_layers(student, derived, paradigm=paradigm, attention=attention)
    warn_without_perturbation(stage, settings.robust, term="adversarial")
    run.create()
    if not run.resume:  # a checkpoint of another network is refused below and must stay beside its own document
        write_document(run.path / "derived.json", derived)
    cache = None
    if teacher is not None:
        cache = training.output_cache(teacher, attention=attention, maps=uses_tutors(paradigm))
    with contextlib.ExitStack() as stack:
        baseline = None
        if baseline_teacher is not None:
            baseline = stack.enter_context(baseline_loss(student, baseline_teacher, derived, training))
        model = stack.enter_context(
            distilling(
                student,
                teacher,
                derived,
                paradigm=paradigm,
                attention=attention,
                kl=settings.kl,
                compute=compute,
                cache=cache,
                method=method,
                baseline=baseline,
            )
        )
        if baseline_teacher is not None:
            teacher = baseline_teacher.teacher
        step = StudentStep(stage, settings, model, holdout=data.holdout, compute=compute, seed=training.recipe.seed)
        config = training.config(stage, settings, teacher=teacher, paradigm=paradigm, **identity)
        history = fit(step, config)
    selection = step.selection
    final: dict[str, Any] = {"average": selection.restore_selected_weights()}
    if selection.best is not None:
        final |= {"best_epoch": selection.best.epoch + 1, "validation": selection.best.validation}
    return StudentTrainingResult(history, teacher, final)
