"""Builds the search step from settings: supernet, architecture parameters, cost penalty, optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rnascl_cli.data import Data
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters
from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.optimizer import build_optimizer
from rnascl_cli.engine.training_loop import ScheduledOptimizer
from rnascl_cli.models.attention_maps import attention_layers, record_attention_maps
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes.paradigms import uses_tutors
from rnascl_cli.recipes.settings import SearchSettings
from rnascl_cli.spaces import SearchSpace
from rnascl_cli.stages.search.budget import SearchCost, search_cost
from rnascl_cli.stages.search.metrics import SearchMetrics
from rnascl_cli.stages.search.step import SearchStep
from rnascl_cli.teachers.forward import frozen_teacher
from rnascl_cli.teachers.load import Teacher
from rnascl_cli.teachers.output_cache import CachedTeacher


@contextlib.contextmanager
def search_step(
    settings: SearchSettings,
    space: SearchSpace,
    *,
    data: Data,
    teacher: Teacher | None,
    compute: DeviceConfig,
    cache: CachedTeacher | None = None,
) -> Iterator[SearchStep]:
    """Build a supernet with its architecture parameters and yield its search step while the hooks are in place.

    Args:
        settings: Search settings.
        space: Search space of the supernet.
        data: For the classes, the image size, the channel statistics and the held-out images.
        teacher: None in the ``standard`` paradigm.
        compute: Device and precision.
        cache: Cached outputs of the teacher for the training images.
    """
    attention = settings.attention
    tutoring = uses_tutors(settings.paradigm) and teacher is not None
    supernet = Supernet(space, num_classes=data.num_classes, mean=data.mean, std=data.std)
    layers = list(attention_layers(teacher.module, attention.source)) if tutoring and teacher is not None else []
    architecture = ArchitectureParameters(
        space.block_choices,
        student_layers=len(attention_layers(supernet, attention.source)) if tutoring else 0,
        teacher_layers=len(layers),
    )
    supernet.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    architecture.to(compute.device)
    with contextlib.ExitStack() as stack:
        frozen = recorder = None
        if teacher is not None:
            frozen = stack.enter_context(
                frozen_teacher(teacher, attention=attention, compute=compute, layers=layers, cache=cache)
            )
        if tutoring:
            recorder = stack.enter_context(
                record_attention_maps(supernet, side=attention.map_size, source=attention.source)
            )
        cost = _search_cost(settings, space, data=data, compute=compute)
        yield SearchStep(
            settings,
            supernet,
            architecture,
            teacher=frozen,
            recorder=recorder,
            cost=cost,
            optimizers=_optimizers(settings, supernet, architecture, compute=compute),
            metrics=_metrics(supernet, architecture, cost, data=data, compute=compute),
            input_size=data.input_size,
            compute=compute,
        )


def _search_cost(settings: SearchSettings, space: SearchSpace, *, data: Data, compute: DeviceConfig) -> SearchCost:
    cost = search_cost(settings, space, num_classes=data.num_classes, input_size=data.input_size)
    sampler = None if cost.sampler is None else cost.sampler.to(compute.device)
    return SearchCost(cost.penalty.to(compute.device), sampler)


def _optimizers(
    settings: SearchSettings, supernet: Supernet, architecture: ArchitectureParameters, *, compute: DeviceConfig
) -> tuple[ScheduledOptimizer, ScheduledOptimizer]:
    captured_on = compute.device if compute.graph_backend is not None else None
    weights = build_optimizer(supernet.parameters(), settings.optimiser, recorded_on=captured_on)
    gumbel = build_optimizer(architecture.parameters(), settings.gumbel_optimiser, recorded_on=captured_on)
    return (
        ScheduledOptimizer(weights, settings.schedule, settings.optimiser.lr),
        ScheduledOptimizer(gumbel, settings.schedule, settings.gumbel_optimiser.lr),
    )


def _metrics(
    supernet: Supernet, architecture: ArchitectureParameters, cost: SearchCost, *, data: Data, compute: DeviceConfig
) -> SearchMetrics:
    sizes = {"num_classes": data.num_classes, "input_size": data.input_size}
    return SearchMetrics(
        supernet,
        architecture,
        holdout=data.holdout.to(compute.device),
        expected_macs=ExpectedCost(supernet.space, **sizes, measure="macs").to(compute.device),
        cost_measure=cost.penalty.measure,
        compute=compute,
    )
