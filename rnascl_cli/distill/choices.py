"""The Gumbel parameters of a search: one logit a filter choice, one a (student layer, teacher layer) pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.distill.gumbel import Noise, gumbel_softmax, sample_noise


class Sample(NamedTuple):
    """Gumbel weights: ``widths`` one vector a block, ``tutors`` (S, T) or None without tutors."""

    widths: list[Tensor]
    tutors: Tensor | None


class Choices(nn.Module):
    """Width and tutor logits, all zero at first.

    Args:
        width_choices: The filter choices of each block.
        student_layers: n_s; 0 where the paradigm uses no tutors.
        teacher_layers: n_t.
    """

    def __init__(self, width_choices: Sequence[Sequence[int]], *, student_layers: int, teacher_layers: int) -> None:
        super().__init__()
        self.width_logits = nn.ParameterList(nn.Parameter(torch.zeros(len(choices))) for choices in width_choices)
        self.tutor_logits: nn.Parameter | None = None
        if student_layers and teacher_layers:
            self.tutor_logits = nn.Parameter(torch.zeros(student_layers, teacher_layers))

    def sample(self, *, temperature: float, generator: torch.Generator, noise: Noise = "gumbel") -> Sample:
        """Draw Gumbel weights for every choice."""

        def draw(logits: Tensor) -> Tensor:
            eps = sample_noise(logits.shape, generator=generator, kind=noise)
            return gumbel_softmax(logits, temperature=temperature, noise=eps)

        widths = [draw(logits) for logits in self.width_logits]
        return Sample(widths, None if self.tutor_logits is None else draw(self.tutor_logits))

    def expected(self, *, temperature: float = 1.0) -> Sample:
        """Return softmax(logits / tau), without noise."""
        widths = [torch.softmax(logits / temperature, dim=0) for logits in self.width_logits]
        tutors = None if self.tutor_logits is None else torch.softmax(self.tutor_logits / temperature, dim=1)
        return Sample(widths, tutors)
