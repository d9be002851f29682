"""Early stopping for pyautoattack's APGD: no further steps on images that are already broken.

APGD counts an image as broken if any of its iterates fools the model, and treats images independently. Further steps
on a broken image cannot change its verdict. The attack itself is not modified: a wrapper around the model returns
stored logits for broken images, and runs the model on the others only.

Shape suffixes: B images of a batch, b of these not broken yet, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnascl_cli.attacks.gradient import LogitFunction


def drop_broken(apgd: Any) -> None:
    """Make an APGD of pyautoattack leave out, within a run, the images it has broken.

    Has no effect for randomized models, whose gradients are averaged over several passes (``eot_iter``): there only
    the last pass counts.
    """
    if apgd.eot_iter > 1:
        return
    original_run = apgd.attack_single_run

    def run(x_BCHW: Tensor, y_B: Tensor, x_init: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wrapper = _StopWhenBroken(apgd.model, y_B)
        apgd.model, model = wrapper, apgd.model
        try:
            best_BCHW, unbroken_B, loss_B, found_BCHW = original_run(x_BCHW, y_B, x_init)
        except _AllBrokenError:
            return x_BCHW, torch.zeros_like(y_B, dtype=torch.bool), torch.zeros(len(y_B)), wrapper.found_BCHW
        finally:
            apgd.model = model
        broken_B = wrapper.broken_B
        found_BCHW[broken_B] = wrapper.found_BCHW[broken_B]
        return best_BCHW, unbroken_B & ~broken_B, loss_B, found_BCHW

    apgd.attack_single_run = run


class _AllBrokenError(Exception):
    """Every image is broken."""


class _StopWhenBroken:
    """The model as one run of APGD sees it.

    Attributes:
        broken_B: Images that some pass has misclassified.
        found_BCHW: The perturbed image of that pass, for each of these.
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
        self._update(x_BCHW.detach(), logits_BK.detach())
        return logits_BK

    def _update(self, x_BCHW: Tensor, logits_BK: Tensor) -> None:
        assert self._logits_BK is not None
        wrong_B = (logits_BK.max(dim=1)[1] != self._y_B) & ~self.broken_B
        if wrong_B.any():
            self.broken_B |= wrong_B
            self.found_BCHW[wrong_B] = x_BCHW[wrong_B]
            self._logits_BK[wrong_B] = logits_BK[wrong_B]
            self._left_b = (~self.broken_B).nonzero().squeeze(1)
