"""BatchNorm folded into the convolution before it: one pass over memory less, forward and backward.

Only for a network in eval mode whose weights stay as they are. The copy computes the same function up to rounding
(gamma / sigma is multiplied into the weights instead of the output), so what must be exact is asked of the network
itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

AGREEMENT = 1e-4
"""Largest difference of logits that is rounding, as a share of the largest logit."""


def folded(model: nn.Module, x_BCHW: Tensor) -> nn.Module | None:
    """Return a copy of ``model`` with each BatchNorm that directly follows a convolution folded into it.

    What follows what is seen in a forward pass, not read from the code, so any module will do. The copy is
    compared with the model on ``x`` before it is given out.

    Args:
        model: In eval mode.
        x_BCHW: A few images to run it on.

    Returns:
        The copy; None where there is nothing to fold, the model cannot be copied, or the copy does not agree with it
        (a randomised model never does).
    """
    names = _pairs(model, x_BCHW)
    if not names:
        return None
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError):  # tensors inside a graph, locks, open files
        return None
    for conv_name, norm_name in names:
        conv, norm = twin.get_submodule(conv_name), twin.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        twin.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        twin.set_submodule(norm_name, nn.Identity())
    twin.requires_grad_(False)
    with torch.no_grad():
        ours, theirs = model(x_BCHW), twin(x_BCHW)
    apart = float((ours - theirs).abs().max())
    return twin if apart <= AGREEMENT * float(ours.abs().max()) else None


def _pairs(model: nn.Module, x_BCHW: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that take exactly their output."""
    convs: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if type(module) is nn.Conv2d}
    norms: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        if type(module) is nn.BatchNorm2d and module.running_mean is not None and not module.training
    }
    made: list[tuple[nn.Module, Tensor]] = []  # holds the tensors, so that none takes another's place in memory
    taken: list[tuple[nn.Module, Tensor]] = []
    with torch.no_grad(), _hooked(convs, norms, made, taken):
        model(x_BCHW)
    once = {module for module in (*convs, *norms) if sum(module is used for used, _ in (*made, *taken)) == 1}
    return [
        (convs[conv], norms[norm])
        for norm, took in taken
        for conv, gave in made
        if took is gave and conv in once and norm in once
    ]


@contextmanager
def _hooked(
    convs: dict[nn.Module, str],
    norms: dict[nn.Module, str],
    made: list[tuple[nn.Module, Tensor]],
    taken: list[tuple[nn.Module, Tensor]],
) -> Iterator[None]:
    with ExitStack() as hooks:
        for conv in convs:
            hooks.enter_context(conv.register_forward_hook(lambda module, _, output: made.append((module, output))))
        for norm in norms:
            hooks.enter_context(
                norm.register_forward_pre_hook(lambda module, inputs: taken.append((module, inputs[0])))
            )
        yield
