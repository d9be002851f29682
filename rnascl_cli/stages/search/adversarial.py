"""What the images themselves put into eq. (2): their cross-entropy, or the terms of a robust search.

In a robust search each step perturbs its images against the supernet under the very widths that it has sampled.

Shape suffixes: b images of one part of the batch, C channels, H height, W width, K classes, D blocks, N filter choices.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.data import BatchShard
from rnascl_cli.distill.adversarial_losses import Terms
from rnascl_cli.distill.architecture_parameters import GumbelNoise
from rnascl_cli.distill.losses import cross_entropy
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.attention_maps import MapRecorder
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes import SearchRobustSettings
from rnascl_cli.stages.training.adversarial import adversarial_objective, own_stream
from rnascl_cli.teachers.forward import TeacherOutput


class SupernetAtWidths(nn.Module):
    """The supernet under fixed width weights, as a plain model."""

    def __init__(self, supernet: Supernet, g_DN: Tensor) -> None:
        super().__init__()
        self.supernet, self.g_DN = supernet, g_DN

    def forward(self, x_bCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to logits."""
        logits: Tensor = self.supernet(x_bCHW, self.g_DN)
        return logits


class StepNoise(NamedTuple):
    """What is drawn for one part of a step, before it.

    Attributes:
        noise: What the choices are sampled under.
        temperature: Of that sample.
        offset_bCHW: Of the starting points of a robust search; None where no images are perturbed.
    """

    noise: GumbelNoise
    temperature: Tensor
    offset_bCHW: Tensor | None


class BatchPart(NamedTuple):
    """The images of one part of a batch that this process has, and what the teacher says about them.

    Attributes:
        chance: What is random in the step; None before it is drawn.
    """

    x_bCHW: Tensor
    y_b: Tensor
    teacher: TeacherOutput | None
    shard: BatchShard
    noise: StepNoise | None = None

    @property
    def drawn_noise(self) -> StepNoise:
        """What is random in the step, which has been drawn."""
        assert self.noise is not None
        return self.noise


class ImageTerms(NamedTuple):
    """The terms, their weights, and the logits of the perturbed images; None where there are none."""

    terms: Terms
    weights: dict[str, float]
    perturbed_bK: Tensor | None


class AdversarialSearch:
    """The images of a search step, perturbed or not.

    Args:
        supernet: What they are perturbed against.
        settings: Of the robust search; None for the cross-entropy of eq. (2).
        recorder: Of the supernet's maps, which are those of the clean images.
        compute: Device and precision.
    """

    def __init__(
        self,
        supernet: Supernet,
        settings: SearchRobustSettings | None,
        *,
        recorder: MapRecorder | None,
        compute: DeviceConfig,
    ) -> None:
        self._supernet, self._recorder, self._compute = supernet, recorder, compute
        self._robust = adversarial_objective(settings, statistics="batch")

    def draw(self, x_bCHW: Tensor, *, share: BatchShard, noise: torch.Generator) -> Tensor | None:
        """Draw how far from the images the method starts to look; None where none are to be perturbed."""
        return None if self._robust is None else self._robust.draw(x_bCHW, noise=own_stream(noise), share=share)

    def perturbed(self, part: BatchPart, g_DN: Tensor) -> Tensor | None:
        """Return the images perturbed against the supernet under the widths ``g``; None where none are wanted."""
        offset_bCHW = part.drawn_noise.offset_bCHW
        if self._robust is None or offset_bCHW is None:
            return None
        return self._robust.perturb(
            SupernetAtWidths(self._supernet, g_DN.detach()),
            part.x_bCHW,
            part.y_b,
            offset_BCHW=offset_bCHW,
            teacher_BK=None if part.teacher is None else part.teacher.logits_BK,
            unwatched=self._unwatched(),
        )

    def terms(self, part: BatchPart, clean_bK: Tensor, adversarial_bCHW: Tensor | None, g_DN: Tensor) -> ImageTerms:
        """Return the cross-entropy of the clean images, or the method's terms; the clean maps must be taken before."""
        if self._robust is None or adversarial_bCHW is None:
            return ImageTerms({"ce": cross_entropy(clean_bK, part.y_b)}, {}, None)
        with self._compute.student_autocast(), self._unwatched():
            perturbed_bK = self._supernet(adversarial_bCHW, g_DN)
        teacher_bK = None if part.teacher is None else part.teacher.logits_BK
        terms = self._robust.terms(clean_bK, perturbed_bK, part.y_b, teacher_bK)
        return ImageTerms(terms, self._robust.weights, perturbed_bK)

    def _unwatched(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._recorder is None else self._recorder.without_recording()
