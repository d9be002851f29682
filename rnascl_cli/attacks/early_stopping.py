"""APGD of pyautoattack without the steps that it takes on images it has broken already.

APGD counts an image as broken if any of its iterates fools the model, and treats images independently of one
another: once an image is broken, its further steps change no verdict. Here they cost nothing either. The part
itself is untouched: between it and the model stands a watch that answers for broken images from memory, so that a
pass of the network holds only the others.

Shape suffixes: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnascl_cli.attacks.gradient import LogitFunction


def drop_broken(part: Any) -> None:
    """Make an APGD of pyautoattack leave out, within a run, the images it has broken.

    Not for a randomised model, whose gradients are averaged over several passes (``eot_iter``): there only the
    last of these counts.
    """
    if part.eot_iter > 1:
        return
    whole = part.attack_single_run

    def run(x_BCHW: Tensor, y_B: Tensor, x_init: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        watch = _StopWhenBroken(part.model, y_B)
        part.model, model = watch, part.model
        try:
            best_BCHW, unbroken_B, loss_B, found_BCHW = whole(x_BCHW, y_B, x_init)
        except _AllBrokenError:
            return x_BCHW, torch.zeros_like(y_B, dtype=torch.bool), torch.zeros(len(y_B)), watch.found_BCHW
        finally:
            part.model = model
        broken_B = watch.broken_B
        found_BCHW[broken_B] = watch.found_BCHW[broken_B]
        return best_BCHW, unbroken_B & ~broken_B, loss_B, found_BCHW

    part.attack_single_run = run


class _AllBrokenError(Exception):
    """Nothing is left to attack."""


class _StopWhenBroken:
    """The model as one run of APGD sees it.

    Attributes:
        broken_B: Which images some pass has found to be misclassified.
        found_BCHW: What each of these looked like then.
    """

    def __init__(self, model: LogitFunction, y_B: Tensor) -> None:
        self._model, self._y_B = model, y_B
        self._left_b = torch.arange(len(y_B), device=y_B.device)
        self._logits_BK: Tensor | None = None
        self.broken_B = torch.zeros_like(y_B, dtype=torch.bool)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        assert len(x_BCHW) == len(self._y_B), "an APGD run passes its whole batch each time"
        if self._logits_BK is None:
            self.found_BCHW = x_BCHW.detach().clone()
            logits_BK = self._model(x_BCHW)
            self._logits_BK = logits_BK.detach().clone()
        elif not len(self._left_b):
            raise _AllBrokenError
        elif len(self._left_b) == len(x_BCHW):
            logits_BK = self._model(x_BCHW)
        else:
            logits_BK = self._logits_BK.index_copy(0, self._left_b, self._model(x_BCHW[self._left_b]))
        self._note(x_BCHW.detach(), logits_BK.detach())
        return logits_BK

    def _note(self, x_BCHW: Tensor, logits_BK: Tensor) -> None:
        assert self._logits_BK is not None
        wrong_B = (logits_BK.max(dim=1)[1] != self._y_B) & ~self.broken_B
        if wrong_B.any():
            self.broken_B |= wrong_B
            self.found_BCHW[wrong_B] = x_BCHW[wrong_B]
            self._logits_BK[wrong_B] = logits_BK[wrong_B]
            self._left_b = (~self.broken_B).nonzero().squeeze(1)
