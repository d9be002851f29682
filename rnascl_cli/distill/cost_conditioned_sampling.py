"""Cost-conditioned sampling: one search for a Pareto front of networks.

A search whose logits settle at 6 M MACs hardly trains its networks of 4 or 8 M. As in AttentiveNAS (Wang et al. 2021),
a sample is therefore drawn in two steps: first target MACs, uniformly over the range of the front, then a network
given the target. It is drawn from softmax(v - lambda m), where v are the logits, m the MACs of each choice with the
widest neighbors, and lambda is such that the expected MACs equal the target. Among all distributions with these
expected MACs, this one is closest to softmax(v) in KL divergence. Its most likely network solves the Lagrangian
relaxation of the most likely network within a budget, which ``derive`` takes (spaces/budget.py).

Lambda is interpolated on a fixed grid, so a step does not wait for the device. It has no gradient.

Shape suffixes: D blocks, N filter choices of the block that has most of them, K values of lambda.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnascl_cli.core.device_transfer import to_device_async
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters, GumbelNoise, GumbelSample
from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.distill.gumbel import Noise
from rnascl_cli.spaces import SearchSpace, network_cost

GRID, STEEPNESS = 257, 12.0
"""Lambdas on either side of 0, spaced as a hyperbolic sine: finely near 0, and beyond what any logit could outweigh."""


class CostConditionedSampler(nn.Module):
    """Samples Gumbel weights with expected MACs that are uniform over a range.

    Args:
        space: The search space.
        macs: Expected MACs of a sample.
        low: Smallest target, MACs.
        high: Largest target, MACs.
        num_classes: Number of classes.
        input_size: Height and width of the images.
    """

    def __init__(
        self, space: SearchSpace, macs: ExpectedCost, *, low: int, high: int, num_classes: int, input_size: int
    ) -> None:
        super().__init__()
        self._macs, self.low, self.high = macs, low, high
        most = max(len(choices) for choices in space.block_choices)
        m_DN = torch.zeros(len(space.block_choices), most, dtype=torch.float64)
        for block, choices in enumerate(space.block_choices):
            for index, width in enumerate(choices):
                widths = [*space.largest[:block], width, *space.largest[block + 1 :]]
                m_DN[block, index] = network_cost(space, widths, num_classes=num_classes, input_size=input_size).macs
        rows = [row[: len(choices)] for row, choices in zip(m_DN, space.block_choices, strict=True)]
        step = torch.cat([-row.diff() for row in rows]).mean()  # between two choices of a block, so that lambda is one
        self.register_buffer("m", m_DN / step, persistent=False)
        steps_K = torch.linspace(-STEEPNESS, STEEPNESS, GRID, dtype=torch.float64)
        self.register_buffer("lambdas", steps_K.sinh() / 100, persistent=False)

    def draw(
        self, choices: ArchitectureParameters, *, generator: torch.Generator, kind: Noise = "gumbel"
    ) -> GumbelNoise:
        """Draw a level, and the noise of one sample of the choices."""
        level = torch.rand((), generator=generator, dtype=torch.float64)
        noise = choices.draw_noise(generator=generator, kind=kind)
        return noise._replace(target_quantile=to_device_async(level, self.get_buffer("m").device))

    def sample(
        self, choices: ArchitectureParameters, noise: GumbelNoise, *, temperature: float | Tensor
    ) -> GumbelSample:
        """Return the Gumbel weights of the drawn level; the level is in the sample, in MACs, float64."""
        assert noise.target_quantile is not None
        level = self.low + noise.target_quantile * (self.high - self.low)
        shift_DN = self.shift(choices.masked_width_logits().detach(), level)
        return choices.sample(noise, temperature=temperature, shift_DN=shift_DN)._replace(target_macs=level)

    @torch.no_grad()
    def shift(self, logits_DN: Tensor, level: Tensor) -> Tensor:
        """Return -lambda m, which moves the expected MACs of softmax(logits) as near to the level as the grid can."""
        lambdas_K, m_DN = self.get_buffer("lambdas"), self.get_buffer("m")
        shifts_KDN = -lambdas_K[:, None, None] * m_DN
        expected_K = torch.vmap(self._macs)(torch.softmax(logits_DN.double() + shifts_KDN, dim=-1))
        nearest = (expected_K - level).abs().argmin()
        return shifts_KDN.index_select(0, nearest.view(1)).squeeze(0).to(logits_DN.dtype)
