"""Model selection on held-out training images; the test set is never used for it.

Adversarial training overfits, and with one-step attacks it can collapse within an epoch (Rice et al. 2020). After each
epoch PGD is therefore run on held-out images, and the weights of the best epoch are kept.
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
from rnascl_cli.recipes.paradigms import no_holdout
from rnascl_cli.recipes.settings import SelectSettings

SelectionMetric = Literal["robust", "clean"]


class BestCheckpoint:
    """The weights of the best epoch so far; ties go to the higher other accuracy, then to the later epoch.

    Attributes:
        epoch: The best epoch, from 0; -1 before the first.
        validation: Its accuracies, ``robust`` and ``clean``.
        weights: Its weights, on the CPU.
        epochs_without_improvement: Number of epochs since the last higher accuracy.
    """

    def __init__(self, metric: SelectionMetric = "robust") -> None:
        self._order = ("robust", "clean") if metric == "robust" else ("clean", "robust")
        self.epoch, self.epochs_without_improvement = -1, 0
        self.validation: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def update(self, module: nn.Module, epoch: int, *, robust: float, clean: float) -> None:
        """Copy the module's weights if they are at least as good as the best."""
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
            "epochs_without_improvement": self.epochs_without_improvement,
            "validation": self.validation,
            "weights": self.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state from a checkpoint."""
        self.epoch, self.epochs_without_improvement = state["epoch"], state["epochs_without_improvement"]
        self.validation, self.weights = state["validation"], state["weights"]


class ModelSelection:
    """Evaluates a network on the held-out images after each epoch, clean and under PGD, and keeps the best weights.

    Args:
        module: The network.
        holdout: Training images that are not trained on.
        select: Selection metric, patience and PGD steps; None to measure clean accuracy only.
        eps: Size of the PGD attack, L-inf, pixel units.
        compute: Device and precision.
        seed: Seed of the run; the attack starts at the same points every epoch.
        stage: Stage name.
        average: Weight average, which is then evaluated instead of the current weights.
    """

    def __init__(
        self,
        module: nn.Module,
        holdout: ImageSet,
        select: SelectSettings | None,
        *,
        eps: float,
        compute: DeviceConfig,
        seed: int,
        stage: str,
        average: WeightAverage | None = None,
    ) -> None:
        self._module, self._select, self._average = module, select, average
        self._holdout = holdout.to(compute.device)
        self._eps, self._compute, self._stream = eps, compute, (seed, stage, "validation")
        self.best = None if select is None else BestCheckpoint(select.metric)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluate, keep the weights if they are the best, and return the accuracies for the epoch's metrics."""
        if self._average is not None:
            self._average.after_epoch(epoch)
        if not len(self._holdout):
            return {}
        with contextlib.nullcontext() if self._average is None else self._average.in_place():
            clean = accuracy(self._module, self._holdout, compute=self._compute)
            if self.best is None or self._select is None:
                return {"holdout_accuracy": clean}
            robust = robust_accuracy(
                self._module,
                self._holdout,
                eps=self._eps,
                steps=self._select.steps,
                compute=self._compute,
                noise=generator(*self._stream),
            )
            self.best.update(self._module, epoch, robust=robust, clean=clean)
        return {"holdout_accuracy": clean, "holdout_robust_accuracy": robust}

    def finished(self) -> bool:
        """Return whether early stopping ends the run."""
        patience = None if self._select is None else self._select.patience
        return patience is not None and self.best is not None and self.best.epochs_without_improvement >= patience

    def restore_selected_weights(self) -> Literal["ema", "swa"] | None:
        """Load the selected weights into the network: the best epoch's, the average, or the last.

        Returns:
            The kind of average they are; None if they are none, such as those of a best epoch before SWA begins.
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
    """Check that images are held out for model selection.

    Raises:
        UserError: None is held out.
    """
    if not len(data.holdout):
        raise no_holdout(who)
