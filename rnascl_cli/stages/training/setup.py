"""From a recipe to the loop's plan, the same way for every training stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rnascl_cli.artifacts.documents import Baseline, Provenance
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data, augmentation
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.provenance import make_provenance
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import TrainingConfig
from rnascl_cli.recipes import AttentionSettings, Recipe, SearchSettings, StudentSettings, TeacherTrainSettings
from rnascl_cli.teachers.load import Teacher


def training_compute(recipe: Recipe) -> DeviceConfig:
    """Return device, precision and recorder of a stage that trains a supernet or a student.

    Raises:
        UserError: See :func:`~rnascl_cli.engine.device.resolve_device`.
    """
    return resolve_device(
        recipe.device,
        recipe.precision,
        deterministic=recipe.deterministic,
        capture=recipe.capture_steps,
        compile_enabled=recipe.compile_steps,
    )


def training_provenance(
    recipe: Recipe,
    *,
    compute: DeviceConfig,
    data: Data,
    teacher: Teacher | None,
    inputs: Mapping[str, str] | None = None,
) -> Provenance:
    """Return the provenance of what a training stage made; without a teacher only the student's precision counts."""
    return make_provenance(
        recipe,
        device=compute.device_name,
        precision=compute.precision if teacher else compute.student,
        data=data.reference(),
        teacher=teacher.reference if teacher else None,
        inputs=inputs,
    )


def plan_training(
    stage: str,
    recipe: Recipe,
    settings: SearchSettings | StudentSettings | TeacherTrainSettings,
    *,
    data: Data,
    compute: DeviceConfig,
    run: RunDirectory,
    teacher: Teacher | None = None,
    **own: Any,
) -> TrainingConfig:
    """Return the plan of a training stage.

    Args:
        stage: Its name.
        recipe: For seed and augmentation.
        settings: The stage's own table.
        data: Its training images are trained on.
        compute: Device and precision.
        run: Where metrics and checkpoints go.
        teacher: Whose outputs the loss depends on.
        own: What else must be the same for a checkpoint to fit, as JSON-able values.
    """
    return TrainingConfig(
        stage=stage,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        images=data.train,
        augment=augmentation(recipe.data, data.input_size),
        compute=compute,
        run=run,
        identity={
            "settings": settings.model_dump(mode="json"),
            "data": data.fingerprint,
            "augment": recipe.data.augment,
            "teacher": teacher.reference.sha256 if teacher else None,
            "seed": recipe.seed,
            **own,
        },
        checkpoint_seconds=math.inf if recipe.checkpoint_minutes is None else 60 * recipe.checkpoint_minutes,
    )


RELATIONAL: tuple[Baseline, ...] = ("sp", "rkd", "crd", "pkt")
"""The rival losses that compare images of a batch with one another, or remember all of them."""


def check_can_be_shared(
    batch: int,
    *,
    smallest_part: int | None = None,
    attention: AttentionSettings | None,
    rival: Baseline | None = None,
) -> None:
    """Refuse a training that several ranks could not share; alone, everything is allowed.

    Args:
        batch: Images a step.
        smallest_part: Images in the smallest part of the batch that takes a step of its own; None for ``batch``.
        attention: How maps are compared; None where they are not.
        rival: The rival loss, if there is one.

    Raises:
        UserError: A rank would be left without an image, maps are normed over the batch, or a rival loss relates images
            that different ranks have.
    """
    count = distributed.size()
    part = batch if smallest_part is None else smallest_part
    if part < count:
        of_them = "" if part == batch else f", of which one step takes {part},"
        raise UserError(
            f"--batch-size: a batch of {batch} images{of_them} cannot be shared by {count} processes; use larger "
            "batches or fewer processes"
        )
    if count > 1 and attention is not None and attention.norm == "batch":
        raise UserError("recipe key 'attention.norm': 'batch' needs the whole batch in one process; use 'image'")
    if count > 1 and rival in RELATIONAL:
        raise UserError(f"--distill {rival}: relates the images of a whole batch; run it in one process")
