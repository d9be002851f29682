"""RNAS-CL: robust neural architecture search by cross-layer knowledge distillation.

The command-line tool is ``rnascl``; from Python, :func:`load` turns any student or teacher file into a
ready module::

    from rnascl_cli import load
    model = load("runs/s3-train/student.safetensors")  # eval mode, images in [0, 1] in, logits out
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnascl_cli.core.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["__version__", "load"]


def load(path: str | Path) -> nn.Module:
    """Read a student or teacher file and return it as a module in eval mode.

    Args:
        path: A ``student.safetensors``, a run directory that holds one, a teacher file (one made by
            ``rnascl teacher``, or a public checkpoint whose architecture can be inferred from its tensors), or
            ``timm:NAME`` for one of timm's pretrained classifiers.

    Returns:
        A module mapping images ``x_BCHW`` in [0, 1] to logits ``(B, num_classes)``; normalisation is inside.

    Raises:
        rnascl_cli.core.errors.UserError: The file is absent, truncated, or holds something else.
    """
    from rnascl_cli.loading import load_model  # imported late: importing the package must not import torch

    return load_model(path)
