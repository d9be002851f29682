"""The training step of a student, for ``train`` and ``adv-finetune``.

    L = CE(y, p) + KL(p, q) + gamma_t L_attn        (eq. 3; each student layer has one tutor)

With adversarial training, the method's terms take the place of the cross-entropy; KL and attention stay, on the clean
images. A distillation baseline (``train --distill``) takes the place of KL and attention.

Shape suffixes: B images, C channels, H height, W width, K classes, S student layers, T tutors, P map pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.attacks.gradient import LogitFunction
from rnascl_cli.data import Batch, BatchShard, ImageSet
from rnascl_cli.distill.attention import tutor_distances, tutored_attention_loss
from rnascl_cli.distill.losses import cross_entropy, kl_divergence, weighted_sum
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.engine.optimizer import build_optimizer, optimizer_step
from rnascl_cli.engine.training_loop import ScheduledOptimizer, Stateful
from rnascl_cli.engine.weight_averaging import averaging
from rnascl_cli.recipes.settings import StudentSettings
from rnascl_cli.stages.training.adversarial import BatchNormStatistics, adversarial_objective
from rnascl_cli.stages.training.distillation import DistillationModel, StudentOutput
from rnascl_cli.stages.training.model_selection import ModelSelection
from rnascl_cli.stages.training.setup import captured_step
from rnascl_cli.teachers.forward import TeacherOutput

TrainingStage = Literal["train", "adv-finetune"]
# From scratch, running statistics lag behind the weights, so training follows each method's authors; a trained network
# is attacked as it will be evaluated.
ATTACK_STATISTICS: dict[TrainingStage, BatchNormStatistics] = {"train": "published", "adv-finetune": "running"}


class StepOutput(NamedTuple):
    """The loss of a batch, its terms and the accuracies by name."""

    loss: Tensor
    terms: dict[str, Tensor]
    accuracies: dict[str, Tensor]


Loss = Callable[[Batch, TeacherOutput | None, Tensor | None], StepOutput]


class StudentStep:
    """One training step, and weight averaging and model selection around it.

    Args:
        stage: Which stage this is.
        settings: Settings of the stage.
        model: The student under its teacher.
        holdout: Held-out training images.
        compute: Device and precision.
        seed: Seed of the run.
    """

    def __init__(
        self,
        stage: TrainingStage,
        settings: StudentSettings,
        model: DistillationModel,
        *,
        holdout: ImageSet,
        compute: DeviceConfig,
        seed: int,
    ) -> None:
        self.model, student = model, model.student
        self._adversarial = adversarial_objective(settings.robust, statistics=ATTACK_STATISTICS[stage])
        learning: dict[str, nn.Module] = {"student": student}
        if model.baseline is not None:
            learning["distill"] = model.baseline.module
        parameters = [parameter for module in learning.values() for parameter in module.parameters()]
        # A baseline draws negatives and reads its own memory within the step: neither compiled nor captured.
        self._captured_update = captured_step(
            self.update,
            self.loss,
            self._student,
            compute=compute,
            what=f"the {stage} step",
            compilable=model.baseline is None,
            capturable=model.baseline is None,
        )
        captured_on = compute.device if self._captured_update.captures else None
        self._optimizer = build_optimizer(parameters, settings.optimiser, recorded_on=captured_on)
        self._average = averaging(student, settings.average, epochs=settings.epochs)
        self.selection = ModelSelection(
            student,
            holdout,
            settings.select,
            eps=settings.selection_eps,
            compute=compute,
            seed=seed,
            stage=stage,
            average=self._average,
        )
        self.optimizers = [ScheduledOptimizer(self._optimizer, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {**learning, "optimizer": self._optimizer}
        if self._average is not None:
            self.state["average"] = self._average
        if self.selection.best is not None:
            self.state["best"] = self.selection.best
        self._epoch, self._noise = 0, torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Draw the random numbers of this epoch from ``noise``."""
        self._epoch, self._noise = epoch, noise
        self.model.start_epoch(noise)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Run the teacher on the batch and update the student; return the metrics."""
        teacher, offset_BCHW = self.model.teacher_output(batch), None
        if self._adversarial is not None:
            offset_BCHW = self._adversarial.draw(batch.x_BCHW, noise=self._noise, share=batch.shard)
        self.model.check_sanity(batch.x_BCHW, teacher)
        update = self._captured_update if batch.full else self._captured_update.eager
        # Rows and views are on the CPU; only a baseline reads them, and its steps are not captured.
        metrics = update(batch.x_BCHW, batch.y_B, batch.rows_B, batch.views_B, batch.shard, teacher, offset_BCHW)
        if self._average is not None:
            self._average.after_step()
        return metrics

    def update(
        self,
        loss: Loss,
        attacked: LogitFunction,
        x_BCHW: Tensor,
        y_B: Tensor,
        rows_B: Tensor,
        views_B: Tensor,
        shard: BatchShard,
        teacher: TeacherOutput | None,
        offset_BCHW: Tensor | None,
    ) -> dict[str, Tensor]:
        """Update the student; the batch comes in tensors, as a captured step needs it."""
        batch = Batch(x_BCHW, y_B, rows_B, views_B, shard)
        self.model.student.train()
        x_adversarial_BCHW = self._attack(attacked, batch, teacher, offset_BCHW)
        output = loss(batch, teacher, x_adversarial_BCHW)
        optimizer_step(self._optimizer, output.loss, images=len(batch))
        metrics = {"loss": output.loss, **output.terms, **output.accuracies}
        return {name: value.detach() for name, value in metrics.items()}

    def loss(self, batch: Batch, teacher: TeacherOutput | None, x_adversarial_BCHW: Tensor | None) -> StepOutput:
        """Return eq. (3), L = CE(y, p) + KL(p, q) + gamma_t L_attn, and its terms.

        Args:
            batch: Clean images and labels.
            teacher: The teacher's output for them; None without a teacher.
            x_adversarial_BCHW: Adversarial images, which are trained on in place of, or beside, the clean ones.
        """
        model, y_B = self.model, batch.y_B
        student = self._forward_clean(batch.x_BCHW)
        p_BK = student.logits_BK
        accuracies = {"train_accuracy": _accuracy(p_BK, y_B)}
        weights = {"kl": 1.0 if model.kl is None else model.kl.weight, "attention": model.attention.gamma}

        if self._adversarial is None or x_adversarial_BCHW is None:
            terms = {"ce": cross_entropy(p_BK, y_B)}  # CE(y, p)
        else:
            adversarial_BK = model.forward(x_adversarial_BCHW)
            q_BK = None if teacher is None else teacher.logits_BK
            terms = self._adversarial.terms(p_BK, adversarial_BK, y_B, q_BK)
            weights |= self._adversarial.weights
            accuracies["train_robust_accuracy"] = _accuracy(adversarial_BK, y_B)
        if model.baseline is not None:
            terms["distill"] = model.baseline.term(batch, p_BK)
            weights |= model.baseline.weights
        if teacher is not None and model.kl is not None:  # KL(p, q)
            kl = model.kl
            terms["kl"] = kl_divergence(p_BK, teacher.logits_BK, direction=kl.direction, temperature=kl.temperature)
        if teacher is not None and student.maps_BSP is not None and teacher.maps_BTP is not None:  # L_attn, eq. (1)
            distances_S = tutor_distances(student.maps_BSP, teacher.maps_BTP[:, model.tutor_index_S])
            terms["attention"] = tutored_attention_loss(distances_S, teacher_layers=model.teacher_layers)
        return StepOutput(weighted_sum(terms, weights), terms, accuracies)

    def _forward_clean(self, x_BCHW: Tensor) -> StudentOutput:
        """Run the student on the clean images; only for their accuracy where no term needs them.

        PGD-AT and Fast-AT without a teacher train on adversarial images alone, and so do BatchNorm's running
        statistics, as in Madry et al. 2018 and Wong et al. 2020.
        """
        if self._adversarial is None or self._adversarial.uses_clean_images or self.model.has_teacher_terms:
            return self.model.forward_with_maps(x_BCHW)
        with torch.no_grad(), fixed_statistics(self.model.student):
            return StudentOutput(self.model.forward(x_BCHW), None)

    def _attack(
        self, attacked: LogitFunction, batch: Batch, teacher: TeacherOutput | None, offset_BCHW: Tensor | None
    ) -> Tensor | None:
        if self._adversarial is None or offset_BCHW is None:
            return None
        return self._adversarial.perturb(
            self.model.student,
            batch.x_BCHW,
            batch.y_B,
            offset_BCHW=offset_BCHW,
            teacher_BK=None if teacher is None else teacher.logits_BK,
            unwatched=self.model.without_recording(),
            model=attacked,
        )

    def _student(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits that the adversarial images are found with."""
        logits_BK: Tensor = self.model.student(x_BCHW)
        return logits_BK

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate on the held-out images and return the epoch's metrics."""
        self.model.end_epoch()
        with self.model.without_recording():
            return self.selection.end_epoch(self._epoch)

    def finished(self) -> bool:
        """Return whether early stopping ends the run."""
        return self.selection.finished()


def _accuracy(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return (logits_BK.argmax(dim=1) == y_B).float().mean()
