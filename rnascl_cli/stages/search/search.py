"""The search phase (section 3.4): one supernet learns its weights, its widths and its tutors.

From recipe, images and teacher to ``search.json``; what a step does is in :mod:`rnascl_cli.stages.search.step`.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch

from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.artifacts.store import write_document
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data, load_data
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import fit
from rnascl_cli.models.attention_maps import attention_layers, record_attention_maps
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes import Recipe, SearchSettings
from rnascl_cli.recipes.paradigms import needs_teacher, uses_tutors
from rnascl_cli.spaces import SearchSpace, space_named
from rnascl_cli.stages.search.budget import asked_budget, refuse_impossible, report_derived_networks
from rnascl_cli.stages.search.step import SearchStep, smallest_part, split_batch
from rnascl_cli.stages.training.sanity_checks import warn_of_idle_settings, warn_without_perturbation
from rnascl_cli.stages.training.setup import check_can_be_shared, plan_training, training_compute, training_provenance
from rnascl_cli.teachers.forward import frozen_teacher, require_teacher, tutor_layers
from rnascl_cli.teachers.output_cache import open_output_cache


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
    compute = training_compute(recipe)
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
        warn_of_idle_settings("search", settings.robust)
        warn_without_perturbation("search", settings.robust.perturbation, term="adversarial")

    torch.manual_seed(recipe.seed)
    supernet = Supernet(space, num_classes=data.num_classes, mean=data.mean, std=data.std)
    tap = settings.attention.tap
    tutoring = uses_tutors(settings.paradigm) and teacher is not None
    student_layers = list(attention_layers(supernet, tap))
    teacher_layers = tutor_layers(teacher, tap) if tutoring and teacher is not None else []
    choices = ArchitectureParameters(
        space.block_choices,
        student_layers=len(student_layers) if tutoring else 0,
        teacher_layers=len(teacher_layers),
    )
    run.create()
    with contextlib.ExitStack() as stack:
        on_duty_teacher = None
        if teacher is not None:
            kept = open_output_cache(
                recipe, teacher, data=data, attention=settings.attention, maps=tutoring, compute=compute
            )
            on_duty_teacher = stack.enter_context(
                frozen_teacher(
                    teacher, attention=settings.attention, compute=compute, layers=teacher_layers, cache=kept
                )
            )
        recorder = None
        if tutoring:
            recorder = stack.enter_context(record_attention_maps(supernet, side=settings.attention.map_size, tap=tap))
        task = SearchStep(
            settings, supernet, choices, data=data, teacher=on_duty_teacher, recorder=recorder, compute=compute
        )
        plan = plan_training(
            "search", recipe, settings, data=data, compute=compute, run=run, teacher=teacher, space=space.name
        )
        history = fit(task, replace(plan, parts=task.parts))

    if found := run.finished(SearchDocument, "search.json"):
        report_derived_networks(run, found)  # a stop after search.json may have come before it
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
    if distributed.is_rank_zero():
        report_derived_networks(run, document)
    return document


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
    check_can_be_shared(batch, smallest_part=min(cut, batch - cut), attention=settings.attention)
