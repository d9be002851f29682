"""The search step (section 3.4): supernet weights and architecture parameters are updated in turn.

Each batch is split. The weights take a step on 80 % of the images; the architecture parameters take a step on the
other 20 %, under a fresh Gumbel sample. Neither step changes the other's parameters. Both minimize eq. (2):

    L = (CE(y, p) + KL(p, q) + gamma_s L_attn) * n_f

Shape suffixes: B images, b images of one part of the batch, K classes, S student layers, T teacher layers, P pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnascl_cli.data import Batch, BatchShard
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters, GumbelNoise, GumbelSample
from rnascl_cli.distill.attention import attention_loss, pairwise_distances
from rnascl_cli.distill.gumbel import temperature_at
from rnascl_cli.distill.losses import cross_entropy, kl_divergence, weighted_sum
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import fixed_statistics, frozen
from rnascl_cli.engine.optimizer import optimizer_step
from rnascl_cli.engine.training_loop import ScheduledOptimizer, Stateful
from rnascl_cli.models.attention_maps import LayerMaps, MapRecorder
from rnascl_cli.models.supernet import Supernet, SupernetAtWidths
from rnascl_cli.recipes.paradigms import needs_teacher, uses_kl
from rnascl_cli.recipes.settings import SearchSettings
from rnascl_cli.spaces import SearchSpace, final_side
from rnascl_cli.stages.search.budget import SearchCost
from rnascl_cli.stages.search.metrics import SearchMetrics
from rnascl_cli.stages.training.adversarial import adversarial_objective, own_stream
from rnascl_cli.stages.training.sanity_checks import SanityCheck
from rnascl_cli.stages.training.setup import captured_step
from rnascl_cli.teachers.forward import FrozenTeacher, TeacherOutput


def split_batch(batch: int, weight_share: float) -> int:
    """Return how many images of a batch train the weights: its share, with at least one image on either side."""
    return min(max(round(batch * weight_share), 1), batch - 1)


def smallest_part(space: SearchSpace, input_size: int) -> int:
    """Return how many images a part of a batch needs: BatchNorm cannot normalise a single value per channel."""
    return 2 if final_side(space, input_size) == 1 else 1


class StepNoise(NamedTuple):
    """The random numbers of one part of a step, drawn before it: a captured step cannot draw any.

    Attributes:
        gumbel: Noise of the Gumbel sample.
        temperature: Gumbel-Softmax temperature, a scalar.
        offset_bCHW: Starting points of the adversarial images, relative to the images; None in a search that is not
            robust.
    """

    gumbel: GumbelNoise
    temperature: Tensor
    offset_bCHW: Tensor | None


class BatchPart(NamedTuple):
    """The images of one part of a batch that this process has, with the teacher's output and the step's noise."""

    x_bCHW: Tensor
    y_b: Tensor
    teacher: TeacherOutput | None
    shard: BatchShard
    noise: StepNoise


class SearchLoss(NamedTuple):
    """Eq. (2) for one part of a batch.

    Attributes:
        loss: The scalar L.
        terms: Its terms by name, before weights and n_f.
        n_f: The cost factor.
        cost: The expected cost that n_f is computed from.
        logits_bK: The supernet's logits of the clean images.
        adversarial_bK: Its logits of the adversarial images; None in a search that is not robust.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    n_f: Tensor
    cost: Tensor
    logits_bK: Tensor
    adversarial_bK: Tensor | None


Loss = Callable[[BatchPart, GumbelSample], SearchLoss]


class SearchStep:
    """One step of section 3.4; built by :func:`rnascl_cli.stages.search.setup.search_step`.

    Args:
        settings: Search settings.
        supernet: On the device.
        architecture: Width and tutor logits, on the device.
        teacher: None in the ``standard`` paradigm.
        recorder: Records the supernet's attention maps; None in a paradigm without tutors.
        cost: Cost penalty n_f, and the sampler of a search for a Pareto front.
        optimizers: Of the weights and of the architecture parameters.
        metrics: What is reported per step and epoch.
        input_size: Height and width of the images, pixels.
        compute: Device and precision.
    """

    def __init__(
        self,
        settings: SearchSettings,
        supernet: Supernet,
        architecture: ArchitectureParameters,
        *,
        teacher: FrozenTeacher | None,
        recorder: MapRecorder | None,
        cost: SearchCost,
        optimizers: tuple[ScheduledOptimizer, ScheduledOptimizer],
        metrics: SearchMetrics,
        input_size: int,
        compute: DeviceConfig,
    ) -> None:
        self.settings, self.supernet, self.architecture, self.teacher = settings, supernet, architecture, teacher
        self.metrics, self._recorder, self._cost, self._compute = metrics, recorder, cost, compute
        self._smallest_part = smallest_part(supernet.space, input_size)
        self._adversarial = adversarial_objective(settings.robust, statistics="batch")
        # A robust search takes gradients within its loss, which torch.compile does not follow.
        self._captured_update = captured_step(
            self.update, self.loss, compute=compute, what="the search step", compilable=settings.robust is None
        )
        self._weights_optimizer, self._architecture_optimizer = (item.optimizer for item in optimizers)
        self.optimizers = list(optimizers)
        self.state: dict[str, Stateful] = {
            "supernet": supernet,
            "architecture": architecture,
            "weights_optimizer": self._weights_optimizer,
            "architecture_optimizer": self._architecture_optimizer,
        }
        self.temperature = settings.gumbel.temperature
        self._tau = torch.tensor(self.temperature, device=compute.device)
        self._generator = torch.Generator()
        self.sanity_check = SanityCheck()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Set the epoch's temperature, by default tau = 5.0 e^(-0.045 epoch), and its random stream."""
        gumbel = self.settings.gumbel
        self._generator = noise
        self.sanity_check.start_epoch()
        self.temperature = temperature_at(
            epoch,
            epochs=self.settings.epochs,
            start=gumbel.temperature,
            decay=gumbel.decay,
            decay_epochs=gumbel.decay_epochs,
        )
        self._tau = torch.tensor(self.temperature, device=self._compute.device)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Run the teacher once on the batch, split it 80/20 and take both steps; return the metrics."""
        teacher = None if self.teacher is None else self.teacher(batch)
        parts = self.split(batch, teacher)
        self._check_sanity(parts[0])
        update = self._captured_update if batch.full else self._captured_update.eager
        return update(batch.shard, *parts)

    def parts(self, batch: int) -> Sequence[int]:
        """Return the sizes of a batch's parts: for the weights and for the architecture parameters."""
        cut = split_batch(batch, self.settings.weight_share)
        if min(cut, batch - cut) < self._smallest_part:  # the last batch of an epoch may be too small to split
            return (batch,)
        return cut, batch - cut

    def split(self, batch: Batch, teacher: TeacherOutput | None) -> list[BatchPart]:
        """Split a batch and the teacher's output of it 80/20 and draw the noise of each part."""
        x_BCHW, y_B, sizes = batch.x_BCHW, batch.y_B, self.parts(batch.shard.whole)
        if len(sizes) == 1:
            return [self.draw_noise(x_BCHW, y_B, teacher, batch.shard)]
        shards = batch.shard.split(sizes[0])
        rows = slice(None, len(shards[0])), slice(len(shards[0]), None)
        return [
            self.draw_noise(x_BCHW[part], y_B[part], teacher.rows(part) if teacher else None, shard)
            for part, shard in zip(rows, shards, strict=True)
        ]

    def draw_noise(self, x_bCHW: Tensor, y_b: Tensor, teacher: TeacherOutput | None, shard: BatchShard) -> BatchPart:
        """Return these images as a part of a batch, with fresh noise."""
        kind, sampler = self.settings.gumbel.noise, self._cost.sampler
        if sampler is None:
            gumbel = self.architecture.draw_noise(generator=self._generator, kind=kind)
        else:
            gumbel = sampler.draw(self.architecture, generator=self._generator, kind=kind)
        offset_bCHW = None
        if self._adversarial is not None:
            offset_bCHW = self._adversarial.draw(x_bCHW, noise=own_stream(self._generator), share=shard)
        return BatchPart(x_bCHW, y_b, teacher, shard, StepNoise(gumbel, self._tau, offset_bCHW))

    def update(
        self, loss: Loss, whole: BatchShard, for_weights: BatchPart, for_architecture: BatchPart | None = None
    ) -> dict[str, Tensor]:
        """Update the weights on the first part of a batch, then the architecture parameters on the second one."""
        metrics = self.weight_step(for_weights, loss)
        if for_architecture is None:
            return metrics
        gumbel_loss = self.architecture_step(for_architecture, loss)
        return {
            **whole.reweight(metrics, for_weights.shard),
            **whole.reweight({"gumbel_loss": gumbel_loss}, for_architecture.shard),
        }

    def weight_step(self, part: BatchPart, loss: Loss | None = None) -> dict[str, Tensor]:
        """Update the supernet's weights; the architecture parameters are frozen."""
        self.supernet.train()
        with frozen(self.architecture.parameters()):
            sample = self.sample(part)
            found = (loss or self.loss)(part, sample)
            optimizer_step(self._weights_optimizer, found.loss, images=len(part.y_b))
        return self.metrics.of_step(found, part.y_b, sample)

    def architecture_step(self, part: BatchPart, loss: Loss | None = None) -> Tensor:
        """Update width and tutor logits; weights and running statistics stay as they are. Return the loss."""
        with frozen(self.supernet.parameters()), fixed_statistics(self.supernet):
            found = (loss or self.loss)(part, self.sample(part))
            optimizer_step(self._architecture_optimizer, found.loss, images=len(part.y_b))
        return found.loss.detach()

    def sample(self, part: BatchPart) -> GumbelSample:
        """Return the Gumbel weights of widths and tutors under a part's noise."""
        noise, temperature, _ = part.noise
        if self._cost.sampler is None:
            return self.architecture.sample(noise, temperature=temperature)
        return self._cost.sampler.sample(self.architecture, noise, temperature=temperature)

    def loss(self, part: BatchPart, sample: GumbelSample) -> SearchLoss:
        """Return eq. (2), L = (CE(y, p) + KL(p, q) + gamma_s L_attn) * n_f, and its terms.

        In a robust search the terms of the adversarial method take the place of the cross-entropy, on images that are
        attacked under the sampled widths.
        """
        settings, teacher = self.settings, part.teacher
        x_adversarial_bCHW = self._attack(part, sample)
        p_bK, student_maps = self._forward_with_maps(part.x_bCHW, sample)

        weights: dict[str, float] = {}
        adversarial_bK = None
        if self._adversarial is None or x_adversarial_bCHW is None:
            terms = {"ce": cross_entropy(p_bK, part.y_b)}  # CE(y, p)
        else:
            adversarial_bK = self._forward(x_adversarial_bCHW, sample)
            q_bK = None if teacher is None else teacher.logits_BK
            terms = self._adversarial.terms(p_bK, adversarial_bK, part.y_b, q_bK)
            weights = self._adversarial.weights
        if teacher is not None and uses_kl(settings.paradigm, settings.kl):  # KL(p, q)
            kl = settings.kl
            terms["kl"] = kl_divergence(p_bK, teacher.logits_BK, direction=kl.direction, temperature=kl.temperature)
        if student_maps is not None and teacher is not None and teacher.maps_BTP is not None:  # L_attn, eq. (1)
            assert sample.tutors is not None
            inner = student_maps.inner_products(teacher.maps_BTP)
            distances_ST = pairwise_distances(*inner, teacher.maps_BTP, over=settings.attention.norm)
            terms["attention"] = attention_loss(sample.tutors, distances_ST)

        target_macs = sample.target_macs if settings.cost.target is None else None
        relative_cost, cost = self._cost.penalty(sample.widths, target_macs)
        n_f = settings.cost.scale * relative_cost
        weights = {**weights, "kl": settings.kl.weight, "attention": settings.attention.gamma}
        loss = weighted_sum(terms, weights) * n_f
        return SearchLoss(loss, terms, n_f, cost, p_bK, adversarial_bK)

    def _forward_with_maps(self, x_bCHW: Tensor, sample: GumbelSample) -> tuple[Tensor, LayerMaps | None]:
        with self._compute.student_autocast():
            logits_bK: Tensor = self.supernet(x_bCHW, sample.widths)
        return logits_bK, None if self._recorder is None else self._recorder.pop_unresized()

    def _forward(self, x_bCHW: Tensor, sample: GumbelSample) -> Tensor:
        with self._compute.student_autocast(), self._without_recording():
            logits_bK: Tensor = self.supernet(x_bCHW, sample.widths)
        return logits_bK

    def _attack(self, part: BatchPart, sample: GumbelSample) -> Tensor | None:
        """Return the adversarial images of a robust search, found against the supernet at the sampled widths."""
        offset_bCHW = part.noise.offset_bCHW
        if self._adversarial is None or offset_bCHW is None:
            return None
        return self._adversarial.perturb(
            SupernetAtWidths(self.supernet, sample.widths.detach()),
            part.x_bCHW,
            part.y_b,
            offset_BCHW=offset_bCHW,
            teacher_BK=None if part.teacher is None else part.teacher.logits_BK,
            unwatched=self._without_recording(),
        )

    def _without_recording(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._recorder is None else self._recorder.without_recording()

    @torch.no_grad()
    def _check_sanity(self, part: BatchPart) -> None:
        """Check the outputs of teacher and supernet once an epoch, outside the step, which may be captured."""
        if part.teacher is None or self.teacher is None or not self.sanity_check.pending:
            return
        maps = None
        if self._recorder is not None:
            self.supernet.train()
            with fixed_statistics(self.supernet):
                maps = self._forward_with_maps(part.x_bCHW, self.sample(part))[1]
        self.sanity_check.run(
            part.teacher,
            kl=uses_kl(self.settings.paradigm, self.settings.kl),
            teacher_layers=self.teacher.layers,
            student_layers=[] if self._recorder is None else self._recorder.layers,
            student_BLP=None if maps is None else maps.resized(),
            method=needs_teacher(self.settings.robust),
        )

    def end_epoch(self) -> dict[str, Any]:
        """Return the epoch's entropies and held-out accuracy; write new teacher outputs to disk."""
        if self.teacher is not None:
            self.teacher.flush_cache()
        return self.metrics.of_epoch(self.temperature)
