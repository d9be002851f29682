"""What ``attack`` is going to do, checked before the first image is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rnascl_cli.attacks.interface import Attack
from rnascl_cli.attacks.protocol import PIXEL, AttackSpace, normalised_attack_space
from rnascl_cli.attacks.registry import Options, build_attacks
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import Epsilon
from rnascl_cli.data import Data, load_data
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.run_directory import JOURNAL
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.recipes import AttackSettings, Recipe
from rnascl_cli.stages.attack.epsilons import audit_epsilon, epsilons_of
from rnascl_cli.stages.attack.target import ATTACK_JSON, Target, check_fit

BATCH = {"cuda": 250, "cpu": 50}
"""Images a batch. A CPU is fastest with what stays in its caches, and an interruption costs less."""


@dataclass(frozen=True, eq=False)
class AttackPlan:
    """An attack that has been checked and touches nothing yet.

    Attributes:
        target: The model.
        recipe: Data, seed, device, and the attack table.
        directory: Where ``attack.json`` goes.
        data: The images.
        compute: Device and precision.
        attacks: By the recipe's names.
        epsilons: Ascending.
        audit_eps: Where the audit compares attacks; None without one.
        out: What ``--out`` must name for the same directory; None where it may be left out.
    """

    target: Target
    recipe: Recipe
    directory: Path
    data: Data
    compute: DeviceConfig
    attacks: Sequence[Attack]
    epsilons: Sequence[Epsilon]
    audit_eps: Epsilon | None
    out: Path | None = None

    @property
    def begun(self) -> bool:
        """Whether an earlier run has left anything to go on with."""
        return any((self.directory / name).exists() for name in (JOURNAL, ATTACK_JSON))

    @property
    def attack_space(self) -> AttackSpace:
        """Where perturbations live, on the device that the model is on now."""
        return _domain(self.target.loaded.module, self.recipe.attack, self.target)

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return self.recipe.attack.batch_size or BATCH[self.compute.device.type]

    def journal(self) -> Journal:
        """Return the journal of this attack, neither started nor read."""
        settings = self.recipe.attack.model_dump(mode="json", exclude={"attacks", "eps", "audit_images"})
        header = {
            "model_sha256": self.target.loaded.sha256,
            "data_fingerprint": self.data.fingerprint,
            "images": self.data.test.index_N.tolist(),
            "seed": self.recipe.seed,
            "precision": self.recipe.precision,
            "settings": {**settings, "batch_size": self.batch_size},
        }
        return Journal(self.directory / JOURNAL, header)


def plan_attack(
    target: Target, recipe: Recipe, directory: Path, *, audit: bool = False, out: Path | None = None
) -> AttackPlan:
    """Check everything that can be wrong about an attack before the first image is touched.

    Args:
        target: The model.
        recipe: Data, seed, device, and the attack table.
        directory: Where ``attack.json`` will go.
        audit: Also run the gradient-masking card.
        out: What ``--out`` must name for the same directory; None where it may be left out.

    Raises:
        UserError: A setting, the data or the model do not fit.
    """
    settings = recipe.attack
    # Verdicts are float32 in any case; so are the attacks unless bf16 is asked for, as they are then strongest.
    precision = "fp32" if recipe.precision == "auto" else recipe.precision
    compute = resolve_device(recipe.device, precision, deterministic=recipe.deterministic)
    if settings.capture == "on" and compute.device.type != "cuda":
        raise UserError("attack.capture=on: graphs are captured on a GPU only; leave it at auto")
    attacks = _attacks(settings)
    epsilons = epsilons_of(settings)
    audit_eps = audit_epsilon(settings, epsilons) if audit else None
    _domain(target.loaded.module, settings, target)
    data = load_data(recipe.data, seed=recipe.seed, training=False)
    check_fit(target, data)
    for item in attacks:
        item.is_standard(data.num_classes)  # refuses an attack that so few classes do not allow
    return AttackPlan(target, recipe, directory, data, compute, attacks, epsilons, audit_eps, out)


def _attacks(settings: AttackSettings) -> list[Attack]:
    options = Options(
        step_size=settings.step_size,
        restarts=settings.restarts,
        mi_steps=settings.mi_steps,
        mi_decay=settings.mi_decay,
        cw_steps=settings.cw_steps,
        cw_kappa=settings.cw_kappa,
        stop_early=settings.stop_early,
    )
    return build_attacks(
        settings.attacks, options=options, norm=settings.norm, paper_code=settings.protocol == "paper-code"
    )


def _domain(model: nn.Module, settings: AttackSettings, target: Target) -> AttackSpace:
    if settings.protocol == "pixel":
        return PIXEL
    layers = [module for module in model.modules() if isinstance(module, Normalise)]
    if len(layers) != 1:
        raise UserError(f"--protocol paper-code: {target.name} has no normalisation layer; use --protocol pixel")
    return normalised_attack_space(layers[0].mean, layers[0].std, clamp_to_unit=settings.paper_code_clamp)
