"""Which epoch's weights are kept: the best on held-out training images, so that test images choose nothing.

Adversarial training overfits, and with one step it can collapse within an epoch (Rice et al. 2020), so after each
epoch PGD is run on images that were set aside, and the weights of the best epoch are kept.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from torch import Tensor, nn

from rnascl_cli.core.random_streams import generator
from rnascl_cli.data import Data, ImageSet
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.evaluate import accuracy, robust_accuracy
from rnascl_cli.engine.weight_averaging import WeightAverage
from rnascl_cli.recipes import SelectSettings
from rnascl_cli.recipes.paradigms import no_holdout

SelectionMetric = Literal["robust", "clean"]


class BestCheckpoint:
    """The weights of the best epoch so far: highest in ``on``, then highest in the other accuracy, then latest.

    Attributes:
        epoch: The best one, from 0; -1 before the first.
        validation: Its accuracies, ``robust`` and ``clean``.
        weights: Its weights, on the CPU.
        barren: How many epochs in a row have brought no higher accuracy.
    """

    def __init__(self, on: SelectionMetric = "robust") -> None:
        self._order = ("robust", "clean") if on == "robust" else ("clean", "robust")
        self.epoch, self.epochs_without_improvement = -1, 0
        self.validation: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def update(self, module: nn.Module, epoch: int, *, robust: float, clean: float) -> None:
        """Take the module's weights if they are at least as good as the best."""
        found = {"robust": robust, "clean": clean}
        before = [self.validation.get(name, -1.0) for name in self._order]
        now = [found[name] for name in self._order]
        self.epochs_without_improvement = 0 if now > before else self.epochs_without_improvement + 1
        if now >= before:
            self.epoch, self.validation = epoch, found
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "epoch": self.epoch,
            "barren": self.epochs_without_improvement,
            "validation": self.validation,
            "weights": self.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the state of a checkpoint."""
        self.epoch, self.epochs_without_improvement = state["epoch"], state["barren"]
        self.validation, self.weights = state["validation"], state["weights"]


class ModelSelection:
    """Looks at a network after each epoch: on the held-out images, as they are and under PGD.

    Args:
        module: The network.
        holdout: Training images that are not trained on.
        stop: What chooses, and how hard the images are attacked; None to measure clean accuracy only.
        eps: Of the attack, L-inf, pixel units.
        compute: Device and precision.
        seed: Of the run; the attack starts at the same points every epoch.
        stage: Its name.
        average: Of the weights; what is looked at is the mean, as that is what would be kept.
    """

    def __init__(
        self,
        module: nn.Module,
        holdout: ImageSet,
        stop: SelectSettings | None,
        *,
        eps: float,
        compute: DeviceConfig,
        seed: int,
        stage: str,
        average: WeightAverage | None = None,
    ) -> None:
        self._module, self._stop, self._average = module, stop, average
        self._holdout = holdout.to(compute.device)
        self._eps, self._compute, self._stream = eps, compute, (seed, stage, "validation")
        self.best = None if stop is None else BestCheckpoint(stop.on)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Measure, keep the weights if they are the best, and return what the epoch's metrics should say."""
        if self._average is not None:
            self._average.after_epoch(epoch)
        if not len(self._holdout):
            return {}
        with contextlib.nullcontext() if self._average is None else self._average.in_place():
            clean = accuracy(self._module, self._holdout, compute=self._compute)
            if self.best is None or self._stop is None:
                return {"holdout_accuracy": clean}
            robust = robust_accuracy(
                self._module,
                self._holdout,
                eps=self._eps,
                steps=self._stop.steps,
                compute=self._compute,
                noise=generator(*self._stream),
            )
            self.best.update(self._module, epoch, robust=robust, clean=clean)
        return {"holdout_accuracy": clean, "holdout_robust_accuracy": robust}

    def finished(self) -> bool:
        """Return whether patience has run out."""
        patience = None if self._stop is None else self._stop.patience
        return patience is not None and self.best is not None and self.best.epochs_without_improvement >= patience

    def restore_selected_weights(self) -> Literal["ema", "swa"] | None:
        """Put the weights that are to be kept into the network: the best epoch's, the mean, or the last.

        Returns:
            Of what kind they are a mean; None where they are none, as those of a best epoch from before SWA begins.
        """
        average = self._average
        if self.best is not None:
            self._module.load_state_dict(self.best.weights)
            return None if average is None or not average.begun(self.best.epoch) else average.kind
        if average is None:
            return None
        average.put()  # SWA always has the last epoch
        return average.kind


def require_holdout(data: Data, *, who: str) -> None:
    """Refuse to choose an epoch where no image is held out.

    Raises:
        UserError: None is.
    """
    if not len(data.holdout):
        raise no_holdout(who)
