"""The search phase (section 3.4): one supernet learns its weights, its widths and its tutors.

Each batch is split. On 80 % of it the weights take a step, on the other 20 %, with freshly sampled choices,
the Gumbel parameters do; neither step touches the other's numbers. Both descend eq. (2):

    L = (CE(y, p) + KL(p, q) + gamma_s L_attn) * n_f

With ``search.robust`` the images of each step are also perturbed, against the supernet under that step's widths, and
the method's terms stand in the place of CE; KL and attention stay on the clean images.

Shape suffixes: B images, b images of one part of the batch, S student layers, T teacher layers, P map pixels.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.artifacts.store import write_document
from rnascl_cli.data import Batch, Data, ImageSet, load_data
from rnascl_cli.distill.attention import attention_loss, pairwise_distances
from rnascl_cli.distill.choices import Choices, Sample
from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.distill.gumbel import mean_entropy, mean_largest, temperature_at
from rnascl_cli.distill.objectives import add_up, kl_divergence
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.fit import ScheduledOptimiser, Stateful, fit
from rnascl_cli.engine.modes import fixed_statistics, frozen
from rnascl_cli.engine.optimise import build_optimiser, descend
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.errors import UserError
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.models.taps import MapRecorder, recording_maps, tappable_layers
from rnascl_cli.recipes import Recipe, SearchSettings
from rnascl_cli.spaces import SearchSpace, final_side, space_named
from rnascl_cli.stages.budgeting import asked_budget, conclude, refuse_impossible, steering
from rnascl_cli.stages.inspection import Inspection, warn_without_perturbation
from rnascl_cli.stages.planning import plan_training, training_provenance
from rnascl_cli.stages.robust_step import needs_teacher
from rnascl_cli.stages.search_images import Mixture, SearchImages
from rnascl_cli.stages.teacher_outputs import keep_outputs
from rnascl_cli.stages.teaching import (
    Lesson,
    TeacherOnDuty,
    on_duty,
    require_teacher,
    tutor_layers,
    uses_kl,
    uses_tutors,
)


def search(recipe: Recipe, run: RunDirectory) -> SearchDocument:
    """Search widths and tutors and write ``search.json``, ``metrics.jsonl`` and a checkpoint.

    Args:
        recipe: All settings.
        run: The run directory, claimed but not yet made: nothing is written before data and teacher are read.

    Raises:
        UserError: Unknown space, unusable data or teacher, batches too small for both steps, or a budget or front that
            the space has no networks for.
        RunError: The loss became NaN or infinite.
    """
    settings = recipe.search
    space = space_named(recipe.space)
    compute = resolve_compute(recipe.device, recipe.precision, deterministic=recipe.deterministic)
    data = load_data(recipe.data, seed=recipe.seed)
    check_batches_can_be_split(settings, space, data)
    refuse_impossible(settings, space, data, run)
    teacher = require_teacher(
        recipe.teacher,
        settings.paradigm,
        kl=settings.kl,
        num_classes=data.num_classes,
        input_size=data.input_size,
        method=needs_teacher(settings.robust),
    )
    if settings.robust is not None:
        warn_without_perturbation("search", settings.robust.perturbation, term="adversarial")

    torch.manual_seed(recipe.seed)
    supernet = Supernet(space, num_classes=data.num_classes, mean=data.mean, std=data.std)
    tap = settings.attention.tap
    tutoring = uses_tutors(settings.paradigm) and teacher is not None
    student_layers = list(tappable_layers(supernet, tap))
    teacher_layers = tutor_layers(teacher, tap) if tutoring and teacher is not None else []
    choices = Choices(
        space.block_choices,
        student_layers=len(student_layers) if tutoring else 0,
        teacher_layers=len(teacher_layers),
    )
    run.create()
    with contextlib.ExitStack() as stack:
        on_duty_teacher = None
        if teacher is not None:
            kept = keep_outputs(
                recipe, teacher, data=data, attention=settings.attention, maps=tutoring, compute=compute
            )
            on_duty_teacher = stack.enter_context(
                on_duty(teacher, attention=settings.attention, compute=compute, layers=teacher_layers, kept=kept)
            )
        recorder = None
        if tutoring:
            recorder = stack.enter_context(recording_maps(supernet, side=settings.attention.map_size, tap=tap))
        task = SearchTask(
            settings, supernet, choices, data=data, teacher=on_duty_teacher, recorder=recorder, compute=compute
        )
        plan = plan_training(
            "search", recipe, settings, data=data, compute=compute, run=run, teacher=teacher, space=space.name
        )
        history = fit(task, plan)

    if found := run.finished(SearchDocument, "search.json"):
        conclude(run, found)  # a stop after search.json may have come before it
        return found
    document = SearchDocument(
        provenance=training_provenance(
            recipe,
            compute=compute,
            data=data,
            teacher=teacher,
        ),
        space=space.name,
        paradigm=settings.paradigm,
        num_classes=data.num_classes,
        input_size=data.input_size,
        width_choices=[list(block) for block in space.block_choices],
        width_logits=[logits.tolist() for logits in choices.rows(choices.width_logits.detach())],
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        tutor_logits=[] if choices.tutor_logits is None else choices.tutor_logits.tolist(),
        temperature=history[-1]["temperature"],
        expected_macs=history[-1]["expected_macs"],
        budget=asked_budget(settings),
        pareto=settings.pareto,
        history=history,
        robust=settings.robust.method if settings.robust else None,
    )
    write_document(run.path / "search.json", document)
    conclude(run, document)
    return document


def split_batch(batch: int, weight_share: float) -> int:
    """Return how many of a batch's images are for the weights: its share, at least one left on either side."""
    return min(max(round(batch * weight_share), 1), batch - 1)


def smallest_part(space: SearchSpace, input_size: int) -> int:
    """Return how many images a part of a batch needs: BatchNorm takes no statistics of a single number."""
    return 2 if final_side(space, input_size) == 1 else 1


def check_batches_can_be_split(settings: SearchSettings, space: SearchSpace, data: Data) -> None:
    """Refuse a search in which no batch is large enough for both steps.

    Raises:
        UserError: The Gumbel parameters, and with them widths and tutors, would learn nothing.
    """
    batch = min(settings.batch_size, len(data.train))
    cut, least = split_batch(batch, settings.weight_share), smallest_part(space, data.input_size)
    if min(cut, batch - cut) < least:
        raise UserError(
            f"--batch-size: a batch of {batch} cannot give {least} or more images to the weights and as many to the "
            "Gumbel parameters, which would learn nothing; use larger batches or more images"
        )


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
        weights = build_optimiser(self._supernet.parameters(), settings.optimiser)
        gumbel = build_optimiser(self._choices.parameters(), settings.gumbel_optimiser)
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

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Teacher once; weights on the first part of the batch, Gumbel parameters on the rest."""
        x_BCHW, y_B = batch.x_BCHW, batch.y_B
        lesson = None if self._teacher is None else self._teacher.look(batch)
        cut = split_batch(len(y_B), self._settings.weight_share)
        if min(cut, len(y_B) - cut) < self._smallest_part:  # an epoch's last batch may be too small to split
            return self._weight_step(x_BCHW, y_B, lesson)
        first, second = slice(None, cut), slice(cut, None)
        metrics = self._weight_step(x_BCHW[first], y_B[first], lesson.part(first) if lesson else None)
        gumbel_loss = self._gumbel_step(x_BCHW[second], y_B[second], lesson.part(second) if lesson else None)
        return {**metrics, "gumbel_loss": gumbel_loss}

    def _weight_step(self, x_bCHW: Tensor, y_b: Tensor, lesson: Lesson | None) -> dict[str, Tensor]:
        self._supernet.train()
        with frozen(self._choices.parameters()):
            sample = self._sample()
            found = self._objective(x_bCHW, y_b, lesson, sample)
            descend(self.optimisers[0].optimiser, found.loss)
        return self._metrics(found, y_b, sample)

    def _gumbel_step(self, x_bCHW: Tensor, y_b: Tensor, lesson: Lesson | None) -> Tensor:
        # Batch statistics as in the weight step, but neither weights nor running statistics move.
        with frozen(self._supernet.parameters()), fixed_statistics(self._supernet):
            found = self._objective(x_bCHW, y_b, lesson, self._sample())
            descend(self.optimisers[1].optimiser, found.loss)
        return found.loss.detach()

    def _sample(self) -> Sample:
        temperature, noise = self._temperature, self._settings.gumbel.noise
        if self._levels is None:
            return self._choices.sample(temperature=temperature, generator=self._noise, noise=noise)
        return self._levels.sample(self._choices, temperature=temperature, generator=self._noise, noise=noise)

    def _objective(self, x_bCHW: Tensor, y_b: Tensor, lesson: Lesson | None, sample: Sample) -> Objective:
        """Return eq. (2) and its terms."""
        settings = self._settings
        adversarial_bCHW = self._images.perturbed(x_bCHW, y_b, lesson, sample.widths, noise=self._noise)
        with self._compute.student_autocast():
            logits_bK = self._supernet(x_bCHW, sample.widths)
        student_bSP = None if self._recorder is None else self._recorder.take()
        terms, weights, perturbed_bK = self._images.terms(logits_bK, adversarial_bCHW, y_b, lesson, sample.widths)
        if lesson is not None and uses_kl(settings.paradigm, settings.kl):
            terms["kl"] = kl_divergence(
                logits_bK, lesson.logits_BK, direction=settings.kl.direction, temperature=settings.kl.temperature
            )
        self._inspect(lesson, student_bSP)
        if student_bSP is not None and lesson is not None and lesson.maps_BTP is not None:
            assert sample.tutors is not None
            distances_ST = pairwise_distances(student_bSP, lesson.maps_BTP, over=settings.attention.norm)
            terms["attention"] = attention_loss(sample.tutors, distances_ST)
        relative, cost = self._pressure(sample.widths, sample.level if settings.cost.target is None else None)
        n_f = settings.cost.scale * relative
        weights = {**weights, "kl": settings.kl.weight, "attention": settings.attention.gamma}
        loss = add_up(terms, weights) * n_f
        return Objective(loss, terms, n_f, cost, logits_bK, perturbed_bK)

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

    def _inspect(self, lesson: Lesson | None, student_bSP: Tensor | None) -> None:
        if lesson is None or self._teacher is None:
            return
        self._inspection.look(
            lesson,
            kl=uses_kl(self._settings.paradigm, self._settings.kl),
            teacher_layers=self._teacher.layers,
            student_layers=[] if self._recorder is None else self._recorder.layers,
            student_BLP=student_bSP,
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
