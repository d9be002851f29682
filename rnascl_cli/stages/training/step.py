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

from rnascl_cli.attacks.gradient import Model
from rnascl_cli.core.console import warn
from rnascl_cli.data import Batch, ImageSet, Share
from rnascl_cli.distill.losses import add_up, cross_entropy
from rnascl_cli.engine.cuda_graphs import Replay
from rnascl_cli.engine.device import Compute
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.engine.optimizer import build_optimiser, descend
from rnascl_cli.engine.training_loop import ScheduledOptimiser, Stateful
from rnascl_cli.engine.weight_averaging import averaging
from rnascl_cli.recipes import StudentSettings
from rnascl_cli.stages.training.adversarial import Statistics, robust_objective
from rnascl_cli.stages.training.distillation import Answer, Apprentice
from rnascl_cli.stages.training.model_selection import Validation
from rnascl_cli.teachers.forward import Lesson


class Objective(NamedTuple):
    """The loss of a batch, and what the step tells of it: the terms and accuracies by name."""

    loss: Tensor
    told: dict[str, Tensor]


class StudentTask:
    """The step, and what is measured, averaged and chosen around it.

    Args:
        settings: Of the stage.
        apprentice: The student under its teacher.
        holdout: Training images set aside for choosing.
        compute: Device and precision.
        seed: Of the run.

    Attributes:
        stage: Its name.
        statistics: How images are perturbed, see :class:`~rnascl_cli.stages.training.adversarial.RobustObjective`.
    """

    stage: ClassVar[str]
    statistics: ClassVar[Statistics]

    def __init__(
        self,
        settings: StudentSettings,
        apprentice: Apprentice,
        *,
        holdout: ImageSet,
        compute: Compute,
        seed: int,
    ) -> None:
        student = apprentice.student
        self._apprentice = apprentice
        self._robust = robust_objective(settings, statistics=self.statistics)
        self._sees_clean = self._robust is None or self._robust.sees_clean or apprentice.is_taught
        learning: dict[str, nn.Module] = {"student": student}
        if apprentice.rival is not None:
            learning["distill"] = apprentice.rival.module
        parameters = [parameter for module in learning.values() for parameter in module.parameters()]
        # A rival draws negatives and looks up its own memory within the step.
        alone = compute if apprentice.rival is None else replace(compute, step_recorder=None, compiles=False)
        if compute.compiles and not alone.compiles:
            warn("compile_steps: a step with a rival loss is not compiled")
        objective, attacked = alone.compiled(self._objective), alone.compiled(self._attacked)
        compiled = None
        if objective is not None and attacked is not None:
            compiled = partial(self._learn_from, objective, attacked)
        self._learn = Replay(
            partial(self._learn_from, self._objective, self._attacked),
            alone.step_recorder,
            what=f"the step of {self.stage}",
            compiled=compiled,
        )
        recorded_on = compute.device if self._learn.records else None
        optimiser = build_optimiser(parameters, settings.optimiser, recorded_on=recorded_on)
        self._average = averaging(student, settings.average, epochs=settings.epochs)
        self.validation = Validation(
            student,
            holdout,
            settings.stop,
            eps=settings.perturbation.eps,
            compute=compute,
            seed=seed,
            stage=self.stage,
            average=self._average,
        )
        self.optimisers = [ScheduledOptimiser(optimiser, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {**learning, "optimiser": optimiser}
        if self._average is not None:
            self.state["average"] = self._average
        if self.validation.best is not None:
            self.state["best"] = self.validation.best
        self._epoch, self._noise = 0, torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Draw this epoch's starting points from ``noise``; look anew for a teacher that teaches nothing."""
        self._epoch, self._noise = epoch, noise
        self._apprentice.inspection.start_epoch()
        if self._apprentice.rival is not None:
            self._apprentice.rival.start_epoch(noise)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Perturb the batch where there is a method, then take one step of SGD."""
        lesson, offset_BCHW = self._apprentice.lesson(batch), None
        if self._robust is not None:
            offset_BCHW = self._robust.draw(batch.x_BCHW, noise=self._noise, share=batch.share)
        self._apprentice.inspect(batch.x_BCHW, lesson)
        learn = self._learn if batch.full else self._learn.plainly
        # Rows and views lie on the CPU; only a rival reads them, and its steps are not recorded.
        metrics = learn(batch.x_BCHW, batch.y_B, batch.rows_B, batch.views_B, batch.share, lesson, offset_BCHW)
        if self._average is not None:
            self._average.after_step()
        return metrics

    def _learn_from(
        self,
        objective: Callable[[Batch, Lesson | None, Tensor | None], Objective],
        attacked: Model,
        x_BCHW: Tensor,
        y_B: Tensor,
        rows_B: Tensor,
        views_B: Tensor,
        share: Share,
        lesson: Lesson | None,
        offset_BCHW: Tensor | None,
    ) -> dict[str, Tensor]:
        """Take the step on a batch, whose parts are given one by one so that it may be recorded."""
        batch = Batch(x_BCHW, y_B, rows_B, views_B, share)
        self._apprentice.student.train()
        found = objective(batch, lesson, self._perturb(attacked, batch, lesson, offset_BCHW))
        descend(self.optimisers[0].optimiser, found.loss, images=len(batch))
        return {name: value.detach() for name, value in {"loss": found.loss, **found.told}.items()}

    def _objective(self, batch: Batch, lesson: Lesson | None, adversarial_BCHW: Tensor | None) -> Objective:
        """Return eq. (3), or what stands in its place."""
        apprentice, y_B = self._apprentice, batch.y_B
        clean = self._answer(batch.x_BCHW)
        right = {"train_accuracy": _share_right(clean.logits_BK, y_B)}
        if self._robust is None or adversarial_BCHW is None:
            terms, weights = {"ce": cross_entropy(clean.logits_BK, y_B)}, {}
        else:
            perturbed_BK = apprentice.logits(adversarial_BCHW)
            teacher_BK = None if lesson is None else lesson.logits_BK
            terms, weights = self._robust.terms(clean.logits_BK, perturbed_BK, y_B, teacher_BK), self._robust.weights
            right["train_robust_accuracy"] = _share_right(perturbed_BK, y_B)
        terms |= apprentice.teacher_terms(batch, clean, lesson)
        return Objective(add_up(terms, {**weights, **apprentice.weights}), {**terms, **right})

    def _answer(self, x_BCHW: Tensor) -> Answer:
        """Run the student on the clean images; only for its accuracy where no term is on them."""
        if self._sees_clean:
            return self._apprentice.answer(x_BCHW)
        with torch.no_grad(), fixed_statistics(self._apprentice.student):
            return Answer(self._apprentice.logits(x_BCHW), None)

    def _perturb(
        self, attacked: Model, batch: Batch, lesson: Lesson | None, offset_BCHW: Tensor | None
    ) -> Tensor | None:
        if self._robust is None or offset_BCHW is None:
            return None
        return self._robust.perturb(
            self._apprentice.student,
            batch.x_BCHW,
            batch.y_B,
            offset_BCHW=offset_BCHW,
            teacher_BK=None if lesson is None else lesson.logits_BK,
            unwatched=self._apprentice.unwatched(),
            model=attacked,
        )

    def _attacked(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits of the network against which images are perturbed."""
        logits_BK: Tensor = self._apprentice.student(x_BCHW)
        return logits_BK

    def end_epoch(self) -> dict[str, Any]:
        """Measure on the held-out images."""
        self._apprentice.end_epoch()
        with self._apprentice.unwatched():
            return self.validation.end_epoch(self._epoch)

    def finished(self) -> bool:
        """Return whether the run is to end before its last epoch."""
        return self.validation.finished()


def _share_right(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return (logits_BK.argmax(dim=1) == y_B).float().mean()
