"""The Gumbel parameters of a search: one logit a filter choice, one a (student layer, teacher layer) pair.

Shape suffixes: D blocks, N filter choices of the block that has most of them, S student layers, T teacher layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnascl_cli.distill.gumbel import Noise, gumbel_softmax, sample_noise


class Sample(NamedTuple):
    """Gumbel weights: ``widths`` (D, N), rows that sum to 1; ``tutors`` (S, T), or None without tutors.

    A block with fewer choices than N has weight 0 behind its last one.

    Attributes:
        level: The MACs it was drawn for, a scalar; None where the logits alone decided (distill/levels.py).
        unshifted: Then what ``widths`` would have been under the same noise by the logits alone.
    """

    widths: Tensor
    tutors: Tensor | None
    level: Tensor | None = None
    unshifted: Tensor | None = None


class Choices(nn.Module):
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

    def sample(
        self,
        *,
        temperature: float,
        generator: torch.Generator,
        noise: Noise = "gumbel",
        shift_DN: Tensor | None = None,
    ) -> Sample:
        """Draw Gumbel weights for every choice; with ``shift_DN``, for width logits moved by so much."""

        def draw(*logits: Tensor) -> list[Tensor]:
            eps = sample_noise(logits[0].shape, generator=generator, kind=noise)
            return [gumbel_softmax(values, temperature=temperature, noise=eps) for values in logits]

        present_DN = self.present()
        widths = draw(present_DN) if shift_DN is None else draw(present_DN + shift_DN, present_DN)
        tutors = None if self.tutor_logits is None else draw(self.tutor_logits)[0]
        return Sample(widths[0], tutors, unshifted=widths[1].detach() if len(widths) > 1 else None)

    def expected(self, *, temperature: float = 1.0) -> Sample:
        """Return softmax(logits / tau), without noise."""
        tutors = None if self.tutor_logits is None else torch.softmax(self.tutor_logits / temperature, dim=1)
        return Sample(torch.softmax(self.present() / temperature, dim=1), tutors)

    def rows(self, values_DN: Tensor) -> list[Tensor]:
        """Return each block's own choices of ``values``, such as logits or weights, a vector a block."""
        return [row[:count] for row, count in zip(values_DN, self._counts, strict=True)]

    def present(self) -> Tensor:
        """Return the width logits (D, N), -inf behind a block's last choice."""
        return self.width_logits.masked_fill(self.get_buffer("absent"), -torch.inf)
