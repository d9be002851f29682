"""One step of the search (section 3.4): the teacher once, then weights and Gumbel parameters by turns.

Each batch is split. On 80 % of it the weights take a step, on the other 20 %, with freshly sampled choices,
the Gumbel parameters do; neither step touches the other's numbers. Both descend eq. (2):

    L = (CE(y, p) + KL(p, q) + gamma_s L_attn) * n_f

Shape suffixes: B images, b images of one part of the batch, S student layers, T teacher layers, P map pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnascl_cli.core.console import warning
from rnascl_cli.data import Batch, BatchShard, Data, ImageSet
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters, GumbelSample
from rnascl_cli.distill.attention import attention_loss, pairwise_distances
from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.distill.gumbel import mean_entropy, mean_largest, temperature_at
from rnascl_cli.distill.losses import kl_divergence, weighted_sum
from rnascl_cli.engine.cuda_graphs import CapturedStep
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.modes import fixed_statistics, frozen
from rnascl_cli.engine.optimizer import build_optimizer, optimizer_step
from rnascl_cli.engine.training_loop import ScheduledOptimizer, Stateful
from rnascl_cli.models.attention_maps import LayerMaps, MapRecorder
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes import SearchSettings
from rnascl_cli.recipes.paradigms import needs_teacher, uses_kl
from rnascl_cli.spaces import SearchSpace, final_side
from rnascl_cli.stages.search.adversarial import AdversarialSearch, BatchPart, StepNoise, SupernetAtWidths
from rnascl_cli.stages.search.budget import search_cost
from rnascl_cli.stages.training.sanity_checks import SanityCheck
from rnascl_cli.teachers.forward import FrozenTeacher, TeacherOutput


def split_batch(batch: int, weight_share: float) -> int:
    """Return how many of a batch's images are for the weights: its share, at least one left on either side."""
    return min(max(round(batch * weight_share), 1), batch - 1)


def smallest_part(space: SearchSpace, input_size: int) -> int:
    """Return how many images a part of a batch needs: BatchNorm takes no statistics of a single number."""
    return 2 if final_side(space, input_size) == 1 else 1


class SearchLoss(NamedTuple):
    """Eq. (2) for a part of a batch: the loss, its terms by name, n_f, the expected cost behind it, and the logits.

    Those of perturbed images are None where there are none.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    n_f: Tensor
    cost: Tensor
    logits_bK: Tensor
    perturbed_bK: Tensor | None


class SearchStep:
    """One search step: the teacher once, then the two halves of eq. (2)'s optimisation.

    Args:
        settings: Of the search.
        supernet: On any device; moved.
        choices: The Gumbel parameters.
        data: For classes, image size and the held-out images.
        teacher: With its layers tapped; None for the standard paradigm.
        recorder: Of the supernet's maps; None where there are no tutors.
        compute: Device and precision.
    """

    def __init__(
        self,
        settings: SearchSettings,
        supernet: Supernet,
        architecture: ArchitectureParameters,
        *,
        data: Data,
        teacher: FrozenTeacher | None,
        recorder: MapRecorder | None,
        compute: DeviceConfig,
    ) -> None:
        self._settings, self._compute = settings, compute
        self._supernet = supernet.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._architecture = architecture.to(compute.device)
        self._teacher, self._recorder = teacher, recorder
        self._images = AdversarialSearch(self._supernet, settings.robust, recorder=recorder, compute=compute)
        self._holdout: ImageSet = data.holdout.to(compute.device)
        sizes = {"num_classes": data.num_classes, "input_size": data.input_size}
        pressure, levels = search_cost(settings, supernet.space, **sizes)
        self._cost_penalty = pressure.to(compute.device)
        self._cost_sampler = None if levels is None else levels.to(compute.device)
        self._macs = ExpectedCost(supernet.space, **sizes, measure="macs").to(compute.device)
        objective = None if settings.robust is not None else compute.maybe_compile(self._objective)
        if compute.compile_enabled and objective is None:
            # It takes gradients of its own, which torch.compile does not follow.
            warning("compile_steps: a robust search looks for images within its step, which is not compiled")
        self._learn = CapturedStep(
            partial(self._optimize, self._objective),
            compute.graph_backend,
            what="the step of search",
            compiled=None if objective is None else partial(self._optimize, objective),
        )
        recorded_on = compute.device if self._learn.captures else None
        weights = build_optimizer(self._supernet.parameters(), settings.optimiser, recorded_on=recorded_on)
        gumbel = build_optimizer(self._architecture.parameters(), settings.gumbel_optimiser, recorded_on=recorded_on)
        self.optimizers = [
            ScheduledOptimizer(weights, settings.schedule, settings.optimiser.lr),
            ScheduledOptimizer(gumbel, settings.schedule, settings.gumbel_optimiser.lr),
        ]
        self.state: dict[str, Stateful] = {
            "supernet": self._supernet,
            "choices": self._architecture,
            "weights_optimiser": weights,
            "gumbel_optimiser": gumbel,
        }
        self._smallest_part = smallest_part(supernet.space, data.input_size)
        self._temperature = settings.gumbel.temperature
        self._tau = torch.tensor(self._temperature, device=compute.device)  # the same, where steps read it
        self._noise = torch.Generator()
        self._sanity_check = SanityCheck()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Lower the temperature: tau = 5.0 e^(-0.045 epoch)."""
        gumbel = self._settings.gumbel
        self._noise = noise
        self._sanity_check.start_epoch()
        self._temperature = temperature_at(
            epoch,
            epochs=self._settings.epochs,
            start=gumbel.temperature,
            decay=gumbel.decay,
            decay_epochs=gumbel.decay_epochs,
        )
        self._tau = torch.tensor(self._temperature, device=self._compute.device)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Teacher once; weights on the first part of the batch, Gumbel parameters on the rest."""
        teacher_output = None if self._teacher is None else self._teacher.forward(batch)
        parts = [part._replace(noise=self._draw_noise(part)) for part in self._split(batch, teacher_output)]
        self._check_sanity(parts[0])
        learn = self._learn if batch.full else self._learn.eager
        return learn(batch.shard, *parts)

    def _split(self, batch: Batch, teacher_output: TeacherOutput | None) -> list[BatchPart]:
        """Return the part of the batch that is for the weights, and, if it is to be split, that for the choices."""
        x_BCHW, y_B, cuts = batch.x_BCHW, batch.y_B, self.parts(batch.shard.whole)
        if len(cuts) == 1:
            return [BatchPart(x_BCHW, y_B, teacher_output, batch.shard)]
        shares = batch.shard.split(cuts[0])
        rows = slice(None, len(shares[0])), slice(len(shares[0]), None)
        return [
            BatchPart(x_BCHW[some], y_B[some], teacher_output.rows(some) if teacher_output else None, share)
            for some, share in zip(rows, shares, strict=True)
        ]

    def _optimize(
        self,
        objective: Callable[[BatchPart, GumbelSample], SearchLoss],
        whole: BatchShard,
        first: BatchPart,
        second: BatchPart | None = None,
    ) -> dict[str, Tensor]:
        """Take a step with each part of a batch, down the slopes of ``objective``."""
        metrics = self._weight_step(objective, first)
        if second is None:
            return metrics
        gumbel_loss = self._gumbel_step(objective, second)
        return {
            **whole.reweight(metrics, first.shard),
            **whole.reweight({"gumbel_loss": gumbel_loss}, second.shard),
        }

    def parts(self, batch: int) -> Sequence[int]:
        """Return how many of a batch's images the weights get, and how many the Gumbel parameters."""
        cut = split_batch(batch, self._settings.weight_share)
        if min(cut, batch - cut) < self._smallest_part:  # an epoch's last batch may be too small to split
            return (batch,)
        return cut, batch - cut

    def _weight_step(
        self, objective: Callable[[BatchPart, GumbelSample], SearchLoss], part: BatchPart
    ) -> dict[str, Tensor]:
        self._supernet.train()
        with frozen(self._architecture.parameters()):
            sample = self._sample(part)
            found = objective(part, sample)
            optimizer_step(self.optimizers[0].optimizer, found.loss, images=len(part.y_b))
        return self._metrics(found, part.y_b, sample)

    def _gumbel_step(self, objective: Callable[[BatchPart, GumbelSample], SearchLoss], part: BatchPart) -> Tensor:
        # Batch statistics as in the weight step, but neither weights nor running statistics move.
        with frozen(self._supernet.parameters()), fixed_statistics(self._supernet):
            found = objective(part, self._sample(part))
            optimizer_step(self.optimizers[1].optimizer, found.loss, images=len(part.y_b))
        return found.loss.detach()

    def _draw_noise(self, part: BatchPart) -> StepNoise:
        """Draw all that is random in the step of a part; within the step, which may be replayed, nothing can be."""
        kind = self._settings.gumbel.noise
        if self._cost_sampler is None:
            noise = self._architecture.draw_noise(generator=self._noise, kind=kind)
        else:
            noise = self._cost_sampler.draw(self._architecture, generator=self._noise, kind=kind)
        return StepNoise(noise, self._tau, self._images.draw(part.x_bCHW, share=part.shard, noise=self._noise))

    def _sample(self, part: BatchPart) -> GumbelSample:
        noise, temperature, _ = part.drawn_noise
        if self._cost_sampler is None:
            return self._architecture.sample(noise, temperature=temperature)
        return self._cost_sampler.sample(self._architecture, noise, temperature=temperature)

    def _objective(self, part: BatchPart, sample: GumbelSample) -> SearchLoss:
        """Return eq. (2) and its terms."""
        settings, teacher_output = self._settings, part.teacher
        adversarial_bCHW = self._images.perturbed(part, sample.widths)
        logits_bK, student = self._forward_with_maps(part, sample)
        terms, weights, perturbed_bK = self._images.terms(part, logits_bK, adversarial_bCHW, sample.widths)
        if teacher_output is not None and uses_kl(settings.paradigm, settings.kl):
            terms["kl"] = kl_divergence(
                logits_bK,
                teacher_output.logits_BK,
                direction=settings.kl.direction,
                temperature=settings.kl.temperature,
            )
        if student is not None and teacher_output is not None and teacher_output.maps_BTP is not None:
            assert sample.tutors is not None
            inner = student.inner_products(teacher_output.maps_BTP)
            distances_ST = pairwise_distances(*inner, teacher_output.maps_BTP, over=settings.attention.norm)
            terms["attention"] = attention_loss(sample.tutors, distances_ST)
        relative, cost = self._cost_penalty(sample.widths, sample.target_macs if settings.cost.target is None else None)
        n_f = settings.cost.scale * relative
        weights = {**weights, "kl": settings.kl.weight, "attention": settings.attention.gamma}
        loss = weighted_sum(terms, weights) * n_f
        return SearchLoss(loss, terms, n_f, cost, logits_bK, perturbed_bK)

    def _forward_with_maps(self, part: BatchPart, sample: GumbelSample) -> tuple[Tensor, LayerMaps | None]:
        """Run the supernet on the clean images; return its logits (b, K), and its maps where there are tutors."""
        with self._compute.student_autocast():
            logits_bK: Tensor = self._supernet(part.x_bCHW, sample.widths)
        return logits_bK, None if self._recorder is None else self._recorder.pop_unresized()

    @torch.no_grad()
    def _metrics(self, found: SearchLoss, y_b: Tensor, sample: GumbelSample) -> dict[str, Tensor]:
        """Return what the weight step reports, detached."""
        right = (found.logits_bK.argmax(dim=1) == y_b).float().mean()
        # By the logits alone, whatever level the sample was drawn for: the same in every search.
        known = self._cost_penalty.measure == "macs" and sample.unconditioned_widths is None
        macs = (
            found.cost
            if known
            else self._macs(sample.widths if sample.unconditioned_widths is None else sample.unconditioned_widths)
        )
        robust = {}
        if found.perturbed_bK is not None:
            robust["train_robust_accuracy"] = (found.perturbed_bK.argmax(dim=1) == y_b).float().mean()
        return {
            "loss": found.loss.detach(),
            **{name: term.detach() for name, term in found.terms.items()},
            "n_f": found.n_f.detach(),
            "expected_macs": macs.detach(),
            "train_accuracy": right,
            **robust,
        }

    @torch.no_grad()
    def _check_sanity(self, part: BatchPart) -> None:
        """Look once an epoch at what teacher and supernet say of a part, before the step, which asks for no value."""
        if part.teacher is None or self._teacher is None or not self._sanity_check.pending:
            return
        maps = None
        if self._recorder is not None:
            self._supernet.train()
            with fixed_statistics(self._supernet):
                maps = self._forward_with_maps(part, self._sample(part))[1]
        self._sanity_check.run(
            part.teacher,
            kl=uses_kl(self._settings.paradigm, self._settings.kl),
            teacher_layers=self._teacher.layers,
            student_layers=[] if self._recorder is None else self._recorder.layers,
            student_BLP=None if maps is None else maps.resized(),
            method=needs_teacher(self._settings.robust),
        )

    @torch.no_grad()
    def end_epoch(self) -> dict[str, Any]:
        """Measure how far the choices have hardened, and the mixture's accuracy on the held-out images."""
        if self._teacher is not None:
            self._teacher.flush_cache()
        # softmax(v) is the chance of each choice to win under Gumbel noise, whatever the temperature.
        likely = self._architecture.expected()
        entry: dict[str, Any] = {
            "temperature": self._temperature,
            "width_entropy": mean_entropy(self._architecture.rows(likely.widths)),
        }
        if likely.tutors is not None:
            entry["tutor_entropy"] = mean_entropy([likely.tutors])
        # As the temperature falls, the weights harden even where the chances stay: both are told.
        hard = self._architecture.expected(temperature=self._temperature)
        entry["width_top_weight"] = mean_largest(self._architecture.rows(hard.widths))
        if hard.tutors is not None:
            entry["tutor_top_weight"] = mean_largest([hard.tutors])
        if len(self._holdout):
            view = SupernetAtWidths(self._supernet, hard.widths)
            entry["holdout_accuracy"] = accuracy(view, self._holdout, compute=self._compute)
        return entry
