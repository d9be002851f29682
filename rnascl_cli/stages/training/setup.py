"""Set-up that all training stages share: device, images, captured steps, training loop and provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from rnascl_cli.artifacts.documents import Baseline, Provenance
from rnascl_cli.core import distributed
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Augment, Data, augmentation, load_data
from rnascl_cli.engine.cuda_graphs import CapturedStep
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.provenance import make_provenance
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import TrainingConfig
from rnascl_cli.recipes.settings import AttentionSettings, Recipe, SearchSettings, StudentSettings, TeacherTrainSettings
from rnascl_cli.teachers.load import Teacher
from rnascl_cli.teachers.output_cache import CachedTeacher, open_output_cache


@dataclass(frozen=True)
class TrainingRun:
    """What all training stages share: the recipe, the device, the images and the run directory.

    Attributes:
        recipe: All settings; stages read their own table, and seed and teacher.
        compute: Device and precision.
        data: Training, held-out and test images.
        directory: Where metrics, checkpoints and artifacts go.
    """

    recipe: Recipe
    compute: DeviceConfig
    data: Data
    directory: RunDirectory

    def config(
        self,
        stage: str,
        settings: SearchSettings | StudentSettings | TeacherTrainSettings,
        *,
        teacher: Teacher | None = None,
        **identity: Any,
    ) -> TrainingConfig:
        """Return the training loop's configuration for a stage.

        Args:
            stage: Stage name.
            settings: Settings of the stage.
            teacher: Its hash is part of the run's identity.
            identity: Further parts of the run's identity; a checkpoint of another identity is refused.
        """
        recipe, data, minutes = self.recipe, self.data, self.recipe.checkpoint_minutes
        return TrainingConfig(
            stage=stage,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=recipe.seed,
            images=data.train,
            augment=self._augment,
            compute=self.compute,
            run=self.directory,
            identity={
                "settings": settings.model_dump(mode="json"),
                "data": data.fingerprint,
                "augment": recipe.data.augment,
                "teacher": teacher.reference.sha256 if teacher else None,
                "seed": recipe.seed,
                **identity,
            },
            checkpoint_seconds=math.inf if minutes is None else 60 * minutes,
        )

    def output_cache(self, teacher: Teacher, *, attention: AttentionSettings, maps: bool) -> CachedTeacher | None:
        """Open the cache of a teacher's outputs for the training images; None where there is none."""
        return open_output_cache(
            self.recipe.teacher_cache,
            teacher,
            images=self.data.train,
            augment=self._augment,
            attention=attention,
            maps=maps,
            compute=self.compute,
        )

    @property
    def _augment(self) -> Augment:
        return augmentation(self.recipe.data, self.data.input_size)

    def provenance(self, *, teacher: Teacher | None, inputs: Mapping[str, str] | None = None) -> Provenance:
        """Return the provenance of the stage's artifact."""
        return make_provenance(
            self.recipe,
            device=self.compute.device_name,
            precision=self.compute.precision if teacher else self.compute.student,
            data=self.data.reference(),
            teacher=teacher.reference if teacher else None,
            inputs=inputs,
        )


def training_run(recipe: Recipe, directory: RunDirectory) -> TrainingRun:
    """Find the device and load the images of a stage that trains a supernet or a student.

    Raises:
        UserError: Device, precision or data are unusable.
    """
    compute = resolve_device(
        recipe.device,
        recipe.precision,
        deterministic=recipe.deterministic,
        capture=recipe.capture_steps,
        compile_enabled=recipe.compile_steps,
    )
    return TrainingRun(recipe, compute, load_data(recipe.data, seed=recipe.seed), directory)


def captured_step(
    update: Callable[..., dict[str, Tensor]],
    *functions: Callable[..., Any],
    compute: DeviceConfig,
    what: str,
    compilable: bool = True,
    capturable: bool = True,
) -> CapturedStep[..., dict[str, Tensor]]:
    """Return a step that runs from a CUDA graph, compiled, or both, as ``capture_steps`` and ``compile_steps`` say.

    Args:
        update: Takes ``functions`` first, then the step's tensors.
        functions: The parts of the step that can be compiled, such as its loss.
        compute: Device and precision.
        what: The step in messages, e.g. ``"the search step"``.
        compilable: False where torch.compile cannot follow the step.
        capturable: False where the step reads or writes the CPU's memory.
    """
    if compute.compile_enabled and not compilable:
        warning(f"compile_steps: {what} with these settings cannot be compiled and runs uncompiled")
    compiled = [compute.maybe_compile(function) for function in functions] if compilable else [None]
    return CapturedStep(
        partial(update, *functions),
        compute.graph_backend if capturable else None,
        what=what,
        compiled=None if None in compiled else partial(update, *compiled),
    )


RELATIONAL: tuple[Baseline, ...] = ("sp", "rkd", "crd", "pkt")
"""Baselines that compare the images of a batch with one another, or keep a memory of all of them."""


def check_can_be_shared(
    batch: int,
    *,
    smallest_part: int | None = None,
    attention: AttentionSettings | None,
    baseline: Baseline | None = None,
) -> None:
    """Refuse a training that cannot be distributed over the ranks; a single process may train anything.

    Args:
        batch: Global batch size.
        smallest_part: Images in the smallest part of the batch that has a step of its own; None for ``batch``.
        attention: How maps are compared; None without an attention term.
        baseline: The distillation baseline, if any.

    Raises:
        UserError: A rank would have no image, maps are normalized over the batch, or a baseline compares images that
            are on different ranks.
    """
    count = distributed.size()
    part = batch if smallest_part is None else smallest_part
    if part < count:
        of_them = "" if part == batch else f", of which one step uses {part},"
        raise UserError(
            f"--batch-size: a batch of {batch} images{of_them} cannot be shared by {count} processes; use larger "
            "batches or fewer processes"
        )
    if count > 1 and attention is not None and attention.norm == "batch":
        raise UserError("recipe key 'attention.norm': 'batch' needs the whole batch in one process; use 'image'")
    if count > 1 and baseline in RELATIONAL:
        raise UserError(f"--distill {baseline}: compares the images of a whole batch; run it in one process")
