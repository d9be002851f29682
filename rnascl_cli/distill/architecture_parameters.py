"""The Gumbel parameters of a search: one logit a filter choice, one a (student layer, teacher layer) pair.

Shape suffixes: D blocks, N filter choices of the block that has most of them, S student layers, T teacher layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.distill.gumbel import Noise, gumbel_softmax, sample_noise


class GumbelSample(NamedTuple):
    """Gumbel weights: ``widths`` (D, N), rows that sum to 1; ``tutors`` (S, T), or None without tutors.

    A block with fewer choices than N has weight 0 behind its last one.

    Attributes:
        level: The MACs it was drawn for, a scalar; None where the logits alone decided
            (distill/cost_conditioned_sampling.py).
        unshifted: Then what ``widths`` would have been under the same noise by the logits alone.
    """

    widths: Tensor
    tutors: Tensor | None
    target_macs: Tensor | None = None
    unconditioned_widths: Tensor | None = None


class GumbelNoise(NamedTuple):
    """The noise of one sample: ``widths`` (D, N), ``tutors`` (S, T) or None without tutors.

    Attributes:
        level: Uniform in [0, 1), float64: where in a range of MACs the sample is to be (see
            distill/cost_conditioned_sampling.py); None where
            the logits alone decide.
    """

    widths: Tensor
    tutors: Tensor | None
    target_quantile: Tensor | None = None

    def to(self, device: torch.device) -> GumbelNoise:
        """Send it to a device without waiting: a GPU's queue is not emptied for it."""
        return GumbelNoise(*(None if part is None else to_device_async(part, device) for part in self))  # type: ignore[arg-type]


class ArchitectureParameters(nn.Module):
    """Width and tutor logits, all zero at first.

    Args:
        width_choices: The filter choices of each block.
        student_layers: n_s; 0 where the paradigm uses no tutors.
        teacher_layers: n_t.
    """

    def __init__(self, width_choices: Sequence[Sequence[int]], *, student_layers: int, teacher_layers: int) -> None:
        super().__init__()
        self._counts = [len(choices) for choices in width_choices]
        # One matrix for all blocks, so that a sample costs the same few operations whatever the depth.
        self.width_logits = nn.Parameter(torch.zeros(len(self._counts), max(self._counts)))
        absent_DN = torch.arange(max(self._counts)) >= torch.tensor(self._counts)[:, None]
        self.register_buffer("absent", absent_DN, persistent=False)
        self.tutor_logits: nn.Parameter | None = None
        if student_layers and teacher_layers:
            self.tutor_logits = nn.Parameter(torch.zeros(student_layers, teacher_layers))

    def draw_noise(self, *, generator: torch.Generator, kind: Noise = "gumbel") -> GumbelNoise:
        """Draw the noise of one sample, and send it to where the logits are."""
        eps = [
            None if logits is None else sample_noise(logits.shape, generator=generator, kind=kind)
            for logits in (self.width_logits, self.tutor_logits)
        ]
        assert eps[0] is not None
        return GumbelNoise(eps[0], eps[1]).to(self.width_logits.device)

    def sample(
        self, noise: GumbelNoise, *, temperature: float | Tensor, shift_DN: Tensor | None = None
    ) -> GumbelSample:
        """Return the Gumbel weights of every choice under ``noise``; with ``shift_DN``, for width logits so moved."""
        present_DN = self.masked_width_logits()
        unshifted = widths = gumbel_softmax(present_DN, temperature=temperature, noise=noise.widths)
        if shift_DN is not None:
            widths = gumbel_softmax(present_DN + shift_DN, temperature=temperature, noise=noise.widths)
        tutors = None
        if self.tutor_logits is not None:
            assert noise.tutors is not None
            tutors = gumbel_softmax(self.tutor_logits, temperature=temperature, noise=noise.tutors)
        return GumbelSample(widths, tutors, unconditioned_widths=None if shift_DN is None else unshifted.detach())

    def expected(self, *, temperature: float = 1.0) -> GumbelSample:
        """Return softmax(logits / tau), without noise."""
        tutors = None if self.tutor_logits is None else torch.softmax(self.tutor_logits / temperature, dim=1)
        return GumbelSample(torch.softmax(self.masked_width_logits() / temperature, dim=1), tutors)

    def rows(self, values_DN: Tensor) -> list[Tensor]:
        """Return each block's own choices of ``values``, such as logits or weights, a vector a block."""
        return [row[:count] for row, count in zip(values_DN, self._counts, strict=True)]

    def masked_width_logits(self) -> Tensor:
        """Return the width logits (D, N), -inf behind a block's last choice."""
        return self.width_logits.masked_fill(self.get_buffer("absent"), -torch.inf)
