"""Optimisers and learning-rate schedules from their settings (section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rnascl_cli.core import distributed
from rnascl_cli.recipes.settings import SGD, Optimiser, Schedule, StepSchedule


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Optimiser, *, recorded_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser that the settings describe, over ``parameters``; a step of it is one fused operation.

    Args:
        parameters: What moves.
        settings: Of the optimiser.
        recorded_on: The device of steps that are recorded and replayed (:mod:`rnascl_cli.engine.cuda_graphs`): the
            learning rate is then a tensor there, whose value each replay reads anew.
    """
    shared: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    optimiser: torch.optim.Optimizer
    if isinstance(settings, SGD):
        optimiser = torch.optim.SGD(parameters, momentum=settings.momentum, **shared)
    else:
        optimiser = torch.optim.Adam(parameters, betas=settings.betas, **shared)

    def prepare(_: torch.optim.Optimizer) -> None:
        for group in optimiser.param_groups:
            value = float(group["lr"])
            group["lr"] = value if recorded_on is None else torch.tensor(value, device=recorded_on)
            if "capturable" in group:
                group["capturable"] = recorded_on is not None and recorded_on.type == "cuda"
                # A first step and odd batches are run without a graph on purpose: torch need not warn of it.
                optimiser._warned_capturable_if_run_uncaptured = True

    prepare(optimiser)
    # A checkpoint may come from steps that were recorded, or not, whatever these are.
    optimiser.register_load_state_dict_post_hook(prepare)
    return optimiser


def learning_rate(schedule: Schedule, base: float, progress: float) -> float:
    """Return the learning rate after a share ``progress`` of the run.

    Because it depends on the share and not on the epoch, a shorter run walks the whole schedule: with 100
    epochs the step schedule falls at epochs 75 and 90, with 10 in the middle of epoch 7 and at epoch 9.

    Args:
        schedule: Step or cosine.
        base: The learning rate at the start.
        progress: Steps done over all steps, in [0, 1].
    """
    if isinstance(schedule, StepSchedule):
        passed = sum(progress >= milestone - 1e-9 for milestone in schedule.milestones)
        return base * schedule.factor**passed
    return base * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_step(optimiser: torch.optim.Optimizer, loss: Tensor, *, images: int | None = None) -> None:
    """Take one step down the gradient of ``loss``; of several ranks, down that of the mean over all their images.

    Args:
        optimiser: Of the parameters that move.
        loss: A mean over this rank's images, or something that is the same on every rank.
        images: How many images those are; needed where there are several ranks.
    """
    optimiser.zero_grad(set_to_none=True)
    if distributed.size() == 1:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        assert images is not None, "with several ranks it must be said how many images a loss is the mean over"
        # Not weighted after backward: that adds up slopes of all ranks' losses in each shared BatchNorm.
        (loss * images).backward()  # type: ignore[no-untyped-call]
        _average_gradients([p for group in optimiser.param_groups for p in group["params"]], images)
    optimiser.step()


def _average_gradients(parameters: Iterable[nn.Parameter], images: int) -> None:
    """Replace gradients of sums over images by their mean over all ranks' images, by one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    count = torch.full((1,), images, dtype=gradients[0].dtype, device=gradients[0].device)
    flat = distributed.all_reduce_sum(torch.cat([*(gradient.flatten() for gradient in gradients), count]))
    means = torch.split(flat[:-1] / flat[-1], [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value
