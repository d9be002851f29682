"""BatchNorm folded into the convolution before it: one pass over memory less, forward and backward.

Only for a network in eval mode whose weights stay as they are. The copy computes the same function up to rounding
(gamma / sigma is multiplied into the weights instead of the output), so what must be exact is asked of the network
itself.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rnascl_cli.models.conv import Conv2d

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
    convs: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        # None that masks its weight, or makes it anew at each pass as weight_norm does.
        if type(module) in (nn.Conv2d, Conv2d) and not module._forward_pre_hooks
    }
    norms: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and not module.training
    }
    made: list[tuple[nn.Module, Tensor]] = []  # holds the tensors, so that none takes another's place in memory
    taken: list[tuple[nn.Module, Tensor]] = []

    def after_conv(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made.append((module, output))

    def after_norm(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A class derived from BatchNorm may do more than BatchNorm does: an activation, a mask.
        plain = torch.allclose(output, _normalised(module, inputs[0]), rtol=1e-4, atol=1e-5)
        taken.append((module, inputs[0] if plain else output))

    with torch.no_grad(), ExitStack() as hooks:
        for conv in convs:
            hooks.enter_context(conv.register_forward_hook(after_conv))
        for norm in norms:
            hooks.enter_context(norm.register_forward_hook(after_norm))
        model(x_BCHW)
    uses = Counter(module for module, _ in (*made, *taken))
    return [
        (convs[conv], norms[norm])
        for norm, took in taken
        for conv, gave in made
        if took is gave and uses[conv] == uses[norm] == 1
    ]


def _normalised(module: nn.Module, x_BCHW: Tensor) -> Tensor:
    assert isinstance(module, nn.BatchNorm2d)
    return F.batch_norm(x_BCHW, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
