"""The search stage (section 3.4): trains a supernet, its widths and its tutors, and writes ``search.json``.

The step itself is in :mod:`rnascl_cli.stages.search.step`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rnascl_cli.artifacts.documents import SearchDocument
from rnascl_cli.artifacts.store import write_document
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.engine.training_loop import fit
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.recipes.paradigms import needs_teacher, uses_tutors
from rnascl_cli.recipes.settings import Recipe, SearchSettings
from rnascl_cli.spaces import SearchSpace, space_named
from rnascl_cli.stages.search.budget import check_budget, report_derived_networks, requested_budget
from rnascl_cli.stages.search.setup import search_step
from rnascl_cli.stages.search.step import smallest_part, split_batch
from rnascl_cli.stages.training.sanity_checks import warn_without_perturbation
from rnascl_cli.stages.training.setup import check_can_be_shared, training_run
from rnascl_cli.teachers.forward import require_teacher, tutor_layers


def search(recipe: Recipe, run: RunDirectory) -> SearchDocument:
    """Search widths and tutors and write ``search.json``, ``metrics.jsonl`` and a checkpoint.

    Args:
        recipe: All settings.
        run: The run directory, locked but not yet created: nothing is written before data and teacher are checked.

    Raises:
        UserError: Unknown space, unusable data or teacher, batches too small to split, or a budget or Pareto front that
            the space has no networks for.
        RunError: The loss became NaN or infinite.
    """
    settings = recipe.search
    space = space_named(recipe.space)
    training = training_run(recipe, run)
    data, compute = training.data, training.compute
    check_batches_can_be_split(settings, space, data)
    check_budget(settings, space, data, run)
    teacher = require_teacher(
        recipe.teacher,
        settings.paradigm,
        kl=settings.kl,
        num_classes=data.num_classes,
        input_size=data.input_size,
        method=needs_teacher(settings.robust),
    )
    warn_without_perturbation("search", settings.robust, term="adversarial")

    tutoring = uses_tutors(settings.paradigm) and teacher is not None
    teacher_layers = tutor_layers(teacher, settings.attention.source) if tutoring and teacher is not None else []

    run.create()
    cache = None
    if teacher is not None:
        cache = training.output_cache(teacher, attention=settings.attention, maps=tutoring)
    torch.manual_seed(recipe.seed)
    with search_step(settings, space, data=data, teacher=teacher, compute=compute, cache=cache) as step:
        config = training.config("search", settings, teacher=teacher, space=space.name)
        history = fit(step, replace(config, parts=step.parts))

    if found := run.finished(SearchDocument, "search.json"):
        report_derived_networks(run, found)  # the first run may have stopped between search.json and this
        return found
    architecture = step.architecture
    document = SearchDocument(
        provenance=training.provenance(teacher=teacher),
        space=space.name,
        paradigm=settings.paradigm,
        num_classes=data.num_classes,
        input_size=data.input_size,
        width_choices=[list(block) for block in space.block_choices],
        width_logits=[logits.tolist() for logits in architecture.rows(architecture.width_logits.detach())],
        student_layers=list(attention_layers(step.supernet, settings.attention.source)),
        teacher_layers=teacher_layers,
        tutor_logits=[] if architecture.tutor_logits is None else architecture.tutor_logits.tolist(),
        temperature=history[-1]["temperature"],
        expected_macs=history[-1]["expected_macs"],
        budget=requested_budget(settings),
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
        UserError: The architecture parameters would get no images.
    """
    batch = min(settings.batch_size, len(data.train))
    cut, least = split_batch(batch, settings.weight_share), smallest_part(space, data.input_size)
    if min(cut, batch - cut) < least:
        raise UserError(
            f"--batch-size: a batch of {batch} is too small to give {least} or more images to each of weights and "
            "architecture parameters; use larger batches or more images"
        )
    check_can_be_shared(batch, smallest_part=min(cut, batch - cut), attention=settings.attention)
