"""One training step of a student, for ``train`` and ``adv-finetune`` alike.

    L = CE(y, p) + KL(p, q) + gamma_t L_attn                                           (eq. 3)

With a method of adversarial training, its terms stand in the place of the cross-entropy; the other two stay, on the
clean images. A rival loss (``train --distill``) stands in the place of both, and beside no method.

Where no term is on the clean images (PGD-AT and Fast-AT without a teacher), they teach nothing, and BatchNorm's running
statistics are those of the perturbed images alone, as in Madry et al. 2018 and Wong et al. 2020.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.attacks.gradient import LogitFunction
from rnascl_cli.core.console import warning
from rnascl_cli.data import Batch, BatchShard, ImageSet
from rnascl_cli.distill.losses import cross_entropy, weighted_sum
from rnascl_cli.engine.cuda_graphs import CapturedStep
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.engine.optimizer import build_optimizer, optimizer_step
from rnascl_cli.engine.training_loop import ScheduledOptimizer, Stateful
from rnascl_cli.engine.weight_averaging import averaging
from rnascl_cli.recipes import StudentSettings
from rnascl_cli.stages.training.adversarial import BatchNormStatistics, adversarial_objective
from rnascl_cli.stages.training.distillation import DistillationModel, StudentOutput
from rnascl_cli.stages.training.model_selection import ModelSelection
from rnascl_cli.teachers.forward import TeacherOutput


class StepOutput(NamedTuple):
    """The loss of a batch, and what the step tells of it: the terms and accuracies by name."""

    loss: Tensor
    metrics: dict[str, Tensor]


class StudentStep:
    """The step, and what is measured, averaged and chosen around it.

    Args:
        settings: Of the stage.
        distillation: The student under its teacher.
        holdout: Training images set aside for choosing.
        compute: Device and precision.
        seed: Of the run.

    Attributes:
        stage: Its name.
        statistics: How images are perturbed, see :class:`~rnascl_cli.stages.training.adversarial.AdversarialObjective`.
    """

    stage: ClassVar[str]
    statistics: ClassVar[BatchNormStatistics]

    def __init__(
        self,
        settings: StudentSettings,
        distillation: DistillationModel,
        *,
        holdout: ImageSet,
        compute: DeviceConfig,
        seed: int,
    ) -> None:
        student = distillation.student
        self._distillation = distillation
        self._robust = adversarial_objective(settings, statistics=self.statistics)
        self._uses_clean_images = (
            self._robust is None or self._robust.uses_clean_images or distillation.has_teacher_terms
        )
        learning: dict[str, nn.Module] = {"student": student}
        if distillation.baseline is not None:
            learning["distill"] = distillation.baseline.module
        parameters = [parameter for module in learning.values() for parameter in module.parameters()]
        # A rival draws negatives and looks up its own memory within the step.
        alone = (
            compute if distillation.baseline is None else replace(compute, graph_backend=None, compile_enabled=False)
        )
        if compute.compile_enabled and not alone.compile_enabled:
            warning("compile_steps: a step with a rival loss is not compiled")
        objective, attacked = alone.maybe_compile(self._objective), alone.maybe_compile(self._attacked)
        compiled = None
        if objective is not None and attacked is not None:
            compiled = partial(self._learn_from, objective, attacked)
        self._learn = CapturedStep(
            partial(self._learn_from, self._objective, self._attacked),
            alone.graph_backend,
            what=f"the step of {self.stage}",
            compiled=compiled,
        )
        recorded_on = compute.device if self._learn.captures else None
        optimiser = build_optimizer(parameters, settings.optimiser, recorded_on=recorded_on)
        self._average = averaging(student, settings.average, epochs=settings.epochs)
        self.validation = ModelSelection(
            student,
            holdout,
            settings.stop,
            eps=settings.perturbation.eps,
            compute=compute,
            seed=seed,
            stage=self.stage,
            average=self._average,
        )
        self.optimizers = [ScheduledOptimizer(optimiser, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {**learning, "optimiser": optimiser}
        if self._average is not None:
            self.state["average"] = self._average
        if self.validation.best is not None:
            self.state["best"] = self.validation.best
        self._epoch, self._noise = 0, torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Draw this epoch's starting points from ``noise``; look anew for a teacher that teaches nothing."""
        self._epoch, self._noise = epoch, noise
        self._distillation.sanity_check.start_epoch()
        if self._distillation.baseline is not None:
            self._distillation.baseline.start_epoch(noise)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Perturb the batch where there is a method, then take one step of SGD."""
        teacher_output, offset_BCHW = self._distillation.teacher_output(batch), None
        if self._robust is not None:
            offset_BCHW = self._robust.draw(batch.x_BCHW, noise=self._noise, share=batch.shard)
        self._distillation.check_sanity(batch.x_BCHW, teacher_output)
        learn = self._learn if batch.full else self._learn.eager
        # Rows and views lie on the CPU; only a rival reads them, and its steps are not recorded.
        metrics = learn(batch.x_BCHW, batch.y_B, batch.rows_B, batch.views_B, batch.shard, teacher_output, offset_BCHW)
        if self._average is not None:
            self._average.after_step()
        return metrics

    def _learn_from(
        self,
        objective: Callable[[Batch, TeacherOutput | None, Tensor | None], StepOutput],
        attacked: LogitFunction,
        x_BCHW: Tensor,
        y_B: Tensor,
        rows_B: Tensor,
        views_B: Tensor,
        share: BatchShard,
        teacher_output: TeacherOutput | None,
        offset_BCHW: Tensor | None,
    ) -> dict[str, Tensor]:
        """Take the step on a batch, whose parts are given one by one so that it may be recorded."""
        batch = Batch(x_BCHW, y_B, rows_B, views_B, share)
        self._distillation.student.train()
        found = objective(batch, teacher_output, self._perturb(attacked, batch, teacher_output, offset_BCHW))
        optimizer_step(self.optimizers[0].optimizer, found.loss, images=len(batch))
        return {name: value.detach() for name, value in {"loss": found.loss, **found.metrics}.items()}

    def _objective(
        self, batch: Batch, teacher_output: TeacherOutput | None, adversarial_BCHW: Tensor | None
    ) -> StepOutput:
        """Return eq. (3), or what stands in its place."""
        distillation, y_B = self._distillation, batch.y_B
        clean = self._answer(batch.x_BCHW)
        right = {"train_accuracy": _share_right(clean.logits_BK, y_B)}
        if self._robust is None or adversarial_BCHW is None:
            terms, weights = {"ce": cross_entropy(clean.logits_BK, y_B)}, {}
        else:
            perturbed_BK = distillation.logits(adversarial_BCHW)
            teacher_BK = None if teacher_output is None else teacher_output.logits_BK
            terms, weights = self._robust.terms(clean.logits_BK, perturbed_BK, y_B, teacher_BK), self._robust.weights
            right["train_robust_accuracy"] = _share_right(perturbed_BK, y_B)
        terms |= distillation.teacher_terms(batch, clean, teacher_output)
        return StepOutput(weighted_sum(terms, {**weights, **distillation.weights}), {**terms, **right})

    def _answer(self, x_BCHW: Tensor) -> StudentOutput:
        """Run the student on the clean images; only for its accuracy where no term is on them."""
        if self._uses_clean_images:
            return self._distillation.forward_with_maps(x_BCHW)
        with torch.no_grad(), fixed_statistics(self._distillation.student):
            return StudentOutput(self._distillation.logits(x_BCHW), None)

    def _perturb(
        self, attacked: LogitFunction, batch: Batch, teacher_output: TeacherOutput | None, offset_BCHW: Tensor | None
    ) -> Tensor | None:
        if self._robust is None or offset_BCHW is None:
            return None
        return self._robust.perturb(
            self._distillation.student,
            batch.x_BCHW,
            batch.y_B,
            offset_BCHW=offset_BCHW,
            teacher_BK=None if teacher_output is None else teacher_output.logits_BK,
            unwatched=self._distillation.without_recording(),
            model=attacked,
        )

    def _attacked(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits of the network against which images are perturbed."""
        logits_BK: Tensor = self._distillation.student(x_BCHW)
        return logits_BK

    def end_epoch(self) -> dict[str, Any]:
        """Measure on the held-out images."""
        self._distillation.end_epoch()
        with self._distillation.without_recording():
            return self.validation.end_epoch(self._epoch)

    def finished(self) -> bool:
        """Return whether the run is to end before its last epoch."""
        return self.validation.finished()


def _share_right(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return (logits_BK.argmax(dim=1) == y_B).float().mean()
