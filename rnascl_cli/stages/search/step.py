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

from rnascl_cli.core.console import warn
from rnascl_cli.data import Batch, Data, ImageSet, Share
from rnascl_cli.distill.architecture_parameters import Choices, Sample
from rnascl_cli.distill.attention import attention_loss, pairwise_distances
from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.distill.gumbel import mean_entropy, mean_largest, temperature_at
from rnascl_cli.distill.losses import add_up, kl_divergence
from rnascl_cli.engine.cuda_graphs import Replay
from rnascl_cli.engine.device import Compute
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.modes import fixed_statistics, frozen
from rnascl_cli.engine.optimizer import build_optimiser, descend
from rnascl_cli.engine.training_loop import ScheduledOptimiser, Stateful
from rnascl_cli.models.attention_maps import LayerMaps, MapRecorder
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes import SearchSettings
from rnascl_cli.recipes.paradigms import needs_teacher, uses_kl
from rnascl_cli.spaces import SearchSpace, final_side
from rnascl_cli.stages.search.adversarial import Chance, Mixture, Part, SearchImages
from rnascl_cli.stages.search.budget import steering
from rnascl_cli.stages.training.sanity_checks import Inspection
from rnascl_cli.teachers.forward import Lesson, TeacherOnDuty


def split_batch(batch: int, weight_share: float) -> int:
    """Return how many of a batch's images are for the weights: its share, at least one left on either side."""
    return min(max(round(batch * weight_share), 1), batch - 1)


def smallest_part(space: SearchSpace, input_size: int) -> int:
    """Return how many images a part of a batch needs: BatchNorm takes no statistics of a single number."""
    return 2 if final_side(space, input_size) == 1 else 1


class Objective(NamedTuple):
    """Eq. (2) for a part of a batch: the loss, its terms by name, n_f, the expected cost behind it, and the logits.

    Those of perturbed images are None where there are none.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    n_f: Tensor
    cost: Tensor
    logits_bK: Tensor
    perturbed_bK: Tensor | None


class SearchTask:
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
        choices: Choices,
        *,
        data: Data,
        teacher: TeacherOnDuty | None,
        recorder: MapRecorder | None,
        compute: Compute,
    ) -> None:
        self._settings, self._compute = settings, compute
        self._supernet = supernet.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._choices = choices.to(compute.device)
        self._teacher, self._recorder = teacher, recorder
        self._images = SearchImages(self._supernet, settings.robust, recorder=recorder, compute=compute)
        self._holdout: ImageSet = data.holdout.to(compute.device)
        sizes = {"num_classes": data.num_classes, "input_size": data.input_size}
        pressure, levels = steering(settings, supernet.space, **sizes)
        self._pressure = pressure.to(compute.device)
        self._levels = None if levels is None else levels.to(compute.device)
        self._macs = ExpectedCost(supernet.space, **sizes, measure="macs").to(compute.device)
        objective = None if settings.robust is not None else compute.compiled(self._objective)
        if compute.compiles and objective is None:
            # It takes gradients of its own, which torch.compile does not follow.
            warn("compile_steps: a robust search looks for images within its step, which is not compiled")
        self._learn = Replay(
            partial(self._learn_from, self._objective),
            compute.step_recorder,
            what="the step of search",
            compiled=None if objective is None else partial(self._learn_from, objective),
        )
        recorded_on = compute.device if self._learn.records else None
        weights = build_optimiser(self._supernet.parameters(), settings.optimiser, recorded_on=recorded_on)
        gumbel = build_optimiser(self._choices.parameters(), settings.gumbel_optimiser, recorded_on=recorded_on)
        self.optimisers = [
            ScheduledOptimiser(weights, settings.schedule, settings.optimiser.lr),
            ScheduledOptimiser(gumbel, settings.schedule, settings.gumbel_optimiser.lr),
        ]
        self.state: dict[str, Stateful] = {
            "supernet": self._supernet,
            "choices": self._choices,
            "weights_optimiser": weights,
            "gumbel_optimiser": gumbel,
        }
        self._smallest_part = smallest_part(supernet.space, data.input_size)
        self._temperature = settings.gumbel.temperature
        self._tau = torch.tensor(self._temperature, device=compute.device)  # the same, where steps read it
        self._noise = torch.Generator()
        self._inspection = Inspection()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Lower the temperature: tau = 5.0 e^(-0.045 epoch)."""
        gumbel = self._settings.gumbel
        self._noise = noise
        self._inspection.start_epoch()
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
        lesson = None if self._teacher is None else self._teacher.look(batch)
        parts = [part._replace(chance=self._chance(part)) for part in self._divided(batch, lesson)]
        self._inspect(parts[0])
        learn = self._learn if batch.full else self._learn.plainly
        return learn(batch.share, *parts)

    def _divided(self, batch: Batch, lesson: Lesson | None) -> list[Part]:
        """Return the part of the batch that is for the weights, and, if it is to be split, that for the choices."""
        x_BCHW, y_B, cuts = batch.x_BCHW, batch.y_B, self.parts(batch.share.whole)
        if len(cuts) == 1:
            return [Part(x_BCHW, y_B, lesson, batch.share)]
        shares = batch.share.divided(cuts[0])
        rows = slice(None, len(shares[0])), slice(len(shares[0]), None)
        return [
            Part(x_BCHW[some], y_B[some], lesson.part(some) if lesson else None, share)
            for some, share in zip(rows, shares, strict=True)
        ]

    def _learn_from(
        self,
        objective: Callable[[Part, Sample], Objective],
        whole: Share,
        first: Part,
        second: Part | None = None,
    ) -> dict[str, Tensor]:
        """Take a step with each part of a batch, down the slopes of ``objective``."""
        metrics = self._weight_step(objective, first)
        if second is None:
            return metrics
        gumbel_loss = self._gumbel_step(objective, second)
        return {
            **whole.weighed(metrics, first.share),
            **whole.weighed({"gumbel_loss": gumbel_loss}, second.share),
        }

    def parts(self, batch: int) -> Sequence[int]:
        """Return how many of a batch's images the weights get, and how many the Gumbel parameters."""
        cut = split_batch(batch, self._settings.weight_share)
        if min(cut, batch - cut) < self._smallest_part:  # an epoch's last batch may be too small to split
            return (batch,)
        return cut, batch - cut

    def _weight_step(self, objective: Callable[[Part, Sample], Objective], part: Part) -> dict[str, Tensor]:
        self._supernet.train()
        with frozen(self._choices.parameters()):
            sample = self._sample(part)
            found = objective(part, sample)
            descend(self.optimisers[0].optimiser, found.loss, images=len(part.y_b))
        return self._metrics(found, part.y_b, sample)

    def _gumbel_step(self, objective: Callable[[Part, Sample], Objective], part: Part) -> Tensor:
        # Batch statistics as in the weight step, but neither weights nor running statistics move.
        with frozen(self._supernet.parameters()), fixed_statistics(self._supernet):
            found = objective(part, self._sample(part))
            descend(self.optimisers[1].optimiser, found.loss, images=len(part.y_b))
        return found.loss.detach()

    def _chance(self, part: Part) -> Chance:
        """Draw all that is random in the step of a part; within the step, which may be replayed, nothing can be."""
        kind = self._settings.gumbel.noise
        if self._levels is None:
            noise = self._choices.draw(generator=self._noise, kind=kind)
        else:
            noise = self._levels.draw(self._choices, generator=self._noise, kind=kind)
        return Chance(noise, self._tau, self._images.draw(part.x_bCHW, share=part.share, noise=self._noise))

    def _sample(self, part: Part) -> Sample:
        noise, temperature, _ = part.drawn
        if self._levels is None:
            return self._choices.sample(noise, temperature=temperature)
        return self._levels.sample(self._choices, noise, temperature=temperature)

    def _objective(self, part: Part, sample: Sample) -> Objective:
        """Return eq. (2) and its terms."""
        settings, lesson = self._settings, part.lesson
        adversarial_bCHW = self._images.perturbed(part, sample.widths)
        logits_bK, student = self._answer(part, sample)
        terms, weights, perturbed_bK = self._images.terms(part, logits_bK, adversarial_bCHW, sample.widths)
        if lesson is not None and uses_kl(settings.paradigm, settings.kl):
            terms["kl"] = kl_divergence(
                logits_bK, lesson.logits_BK, direction=settings.kl.direction, temperature=settings.kl.temperature
            )
        if student is not None and lesson is not None and lesson.maps_BTP is not None:
            assert sample.tutors is not None
            inner = student.inner_products(lesson.maps_BTP)
            distances_ST = pairwise_distances(*inner, lesson.maps_BTP, over=settings.attention.norm)
            terms["attention"] = attention_loss(sample.tutors, distances_ST)
        relative, cost = self._pressure(sample.widths, sample.level if settings.cost.target is None else None)
        n_f = settings.cost.scale * relative
        weights = {**weights, "kl": settings.kl.weight, "attention": settings.attention.gamma}
        loss = add_up(terms, weights) * n_f
        return Objective(loss, terms, n_f, cost, logits_bK, perturbed_bK)

    def _answer(self, part: Part, sample: Sample) -> tuple[Tensor, LayerMaps | None]:
        """Run the supernet on the clean images; return its logits (b, K), and its maps where there are tutors."""
        with self._compute.student_autocast():
            logits_bK: Tensor = self._supernet(part.x_bCHW, sample.widths)
        return logits_bK, None if self._recorder is None else self._recorder.take_sized()

    @torch.no_grad()
    def _metrics(self, found: Objective, y_b: Tensor, sample: Sample) -> dict[str, Tensor]:
        """Return what the weight step reports, detached."""
        right = (found.logits_bK.argmax(dim=1) == y_b).float().mean()
        # By the logits alone, whatever level the sample was drawn for: the same in every search.
        known = self._pressure.measure == "macs" and sample.unshifted is None
        macs = found.cost if known else self._macs(sample.widths if sample.unshifted is None else sample.unshifted)
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
    def _inspect(self, part: Part) -> None:
        """Look once an epoch at what teacher and supernet say of a part, before the step, which asks for no value."""
        if part.lesson is None or self._teacher is None or not self._inspection.due:
            return
        maps = None
        if self._recorder is not None:
            self._supernet.train()
            with fixed_statistics(self._supernet):
                maps = self._answer(part, self._sample(part))[1]
        self._inspection.look(
            part.lesson,
            kl=uses_kl(self._settings.paradigm, self._settings.kl),
            teacher_layers=self._teacher.layers,
            student_layers=[] if self._recorder is None else self._recorder.layers,
            student_BLP=None if maps is None else maps.at_common_side(),
            method=needs_teacher(self._settings.robust),
        )

    @torch.no_grad()
    def end_epoch(self) -> dict[str, Any]:
        """Measure how far the choices have hardened, and the mixture's accuracy on the held-out images."""
        if self._teacher is not None:
            self._teacher.settle()
        # softmax(v) is the chance of each choice to win under Gumbel noise, whatever the temperature.
        likely = self._choices.expected()
        entry: dict[str, Any] = {
            "temperature": self._temperature,
            "width_entropy": mean_entropy(self._choices.rows(likely.widths)),
        }
        if likely.tutors is not None:
            entry["tutor_entropy"] = mean_entropy([likely.tutors])
        # As the temperature falls, the weights harden even where the chances stay: both are told.
        hard = self._choices.expected(temperature=self._temperature)
        entry["width_top_weight"] = mean_largest(self._choices.rows(hard.widths))
        if hard.tutors is not None:
            entry["tutor_top_weight"] = mean_largest([hard.tutors])
        if len(self._holdout):
            view = Mixture(self._supernet, hard.widths)
            entry["holdout_accuracy"] = accuracy(view, self._holdout, compute=self._compute)
        return entry
