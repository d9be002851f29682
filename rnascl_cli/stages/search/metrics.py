"""What a search reports per step and per epoch.

Shape suffixes: b images of one part of the batch, D blocks, N filter choices, S student layers, T teacher layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rnascl_cli.data import ImageSet
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters, GumbelSample
from rnascl_cli.distill.expected_cost import CostMeasure, ExpectedCost
from rnascl_cli.distill.gumbel import mean_entropy, mean_largest
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.models.supernet import Supernet, SupernetAtWidths

if TYPE_CHECKING:
    from rnascl_cli.stages.search.step import SearchLoss


class SearchMetrics:
    """Metrics of a search.

    Args:
        supernet: Evaluated on the held-out images.
        architecture: Width and tutor logits.
        holdout: Held-out training images, on the device; may be empty.
        expected_macs: Expected MACs of a sample.
        cost_measure: What n_f is computed from.
        compute: Device and precision.
    """

    def __init__(
        self,
        supernet: Supernet,
        architecture: ArchitectureParameters,
        *,
        holdout: ImageSet,
        expected_macs: ExpectedCost,
        cost_measure: CostMeasure,
        compute: DeviceConfig,
    ) -> None:
        self._supernet, self._architecture, self._holdout, self._compute = supernet, architecture, holdout, compute
        self.expected_macs, self._cost_measure = expected_macs, cost_measure

    @torch.no_grad()
    def of_step(self, found: SearchLoss, y_b: Tensor, sample: GumbelSample) -> dict[str, Tensor]:
        """Return the detached metrics of a weight step."""
        # MACs under the logits alone, also where the sample was conditioned on a cost: comparable between searches.
        widths_DN = sample.widths if sample.unconditioned_widths is None else sample.unconditioned_widths
        known = self._cost_measure == "macs" and sample.unconditioned_widths is None
        robust = {}
        if found.adversarial_bK is not None:
            robust["train_robust_accuracy"] = _accuracy(found.adversarial_bK, y_b)
        return {
            "loss": found.loss.detach(),
            **{name: term.detach() for name, term in found.terms.items()},
            "n_f": found.n_f.detach(),
            "expected_macs": (found.cost if known else self.expected_macs(widths_DN)).detach(),
            "train_accuracy": _accuracy(found.logits_bK, y_b),
            **robust,
        }

    @torch.no_grad()
    def of_epoch(self, temperature: float) -> dict[str, Any]:
        """Return the entropies of the architecture parameters and the accuracy of the weighted supernet."""
        # softmax(v) is the probability that each choice has the largest noisy logit, at any temperature.
        probabilities = self._architecture.expected()
        entry: dict[str, Any] = {
            "temperature": temperature,
            "width_entropy": mean_entropy(self._architecture.rows(probabilities.widths)),
        }
        if probabilities.tutors is not None:
            entry["tutor_entropy"] = mean_entropy([probabilities.tutors])
        # The weights harden with the temperature even where the probabilities stay, so both are reported.
        weights = self._architecture.expected(temperature=temperature)
        entry["width_top_weight"] = mean_largest(self._architecture.rows(weights.widths))
        if weights.tutors is not None:
            entry["tutor_top_weight"] = mean_largest([weights.tutors])
        if len(self._holdout):
            model = SupernetAtWidths(self._supernet, weights.widths)
            entry["holdout_accuracy"] = accuracy(model, self._holdout, compute=self._compute)
        return entry


def _accuracy(logits_bK: Tensor, y_b: Tensor) -> Tensor:
    return (logits_bK.argmax(dim=1) == y_b).float().mean()
