"""What ``attack`` is going to do, checked before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from rnascl_cli.attacks.checks import audit_epsilon, checked_epsilons
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.attacks.protocol import PIXEL, AttackSpace, normalised_attack_space
from rnascl_cli.attacks.registry import AttackOptions, build_attacks
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import Epsilon
from rnascl_cli.data import Data, load_data
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.run_directory import JOURNAL
from rnascl_cli.models.input_size import check_input_size
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.recipes.settings import AttackSettings, Recipe
from rnascl_cli.stages.attack.target import ATTACK_JSON, Target

BATCH = {"cuda": 250, "cpu": 50}
"""Default batch size. CPUs are fastest with what fits into their caches, and an interruption costs less."""


@dataclass(frozen=True, eq=False)
class AttackPlan:
    """An attack that has been checked and not started.

    Attributes:
        target: The model.
        recipe: Data, seed, device, and the attack table.
        directory: Where ``attack.json`` goes.
        data: The images.
        compute: Device and precision.
        attacks: In the order of the recipe.
        epsilons: Ascending.
        audit_eps: Where the audit compares attacks; None without an audit.
        out: What ``--out`` must name for the same directory; None if it may be left out.
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
    def settings(self) -> AttackSettings:
        """The attack table of the recipe."""
        return self.recipe.attack

    @property
    def begun(self) -> bool:
        """Whether there is a finished or interrupted attack in the directory."""
        return any((self.directory / name).exists() for name in (JOURNAL, ATTACK_JSON))

    @property
    def attack_space(self) -> AttackSpace:
        """Where perturbations are added, on the model's current device."""
        return _attack_space(self.target.loaded.module, self.settings, self.target.name)

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.settings.batch_size or BATCH[self.compute.device.type]

    def journal(self) -> Journal:
        """Return the journal of this attack, neither started nor read."""
        settings = self.settings.model_dump(mode="json", exclude={"attacks", "eps", "audit_images"})
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
    """Check settings, data and model of an attack before it starts.

    Args:
        target: The model.
        recipe: Data, seed, device, and the attack table.
        directory: Where ``attack.json`` will go.
        audit: Also run the gradient-masking audit.
        out: What ``--out`` must name for the same directory; None if it may be left out.

    Raises:
        UserError: A setting, the data or the model do not fit.
    """
    settings = recipe.attack
    # Verdicts are always float32. So are the attacks unless bf16 is requested, because they are strongest then.
    precision = "fp32" if recipe.precision == "auto" else recipe.precision
    compute = resolve_device(recipe.device, precision, deterministic=recipe.deterministic)
    norm, protocol = settings.norm, settings.protocol
    options = AttackOptions(**settings.model_dump(include={field.name for field in fields(AttackOptions)}))
    attacks = build_attacks(settings.attacks, options, norm=norm, protocol=protocol)
    epsilons = checked_epsilons(settings.eps, norm=norm)
    audit_eps = audit_epsilon(epsilons, norm=norm, protocol=protocol) if audit else None
    _attack_space(target.loaded.module, settings, target.name)
    data = load_data(recipe.data, seed=recipe.seed, training=False)
    classes = target.loaded.num_classes
    if classes != data.num_classes:
        raise UserError(
            f"{target.name}: has {classes} classes and --data {data.spec} has {data.num_classes}; "
            "name the data it was trained on"
        )
    check_input_size(target.loaded.module, target.name, input_size=data.input_size)
    for attack in attacks:
        attack.is_standard(data.num_classes)  # refuses an attack that needs more classes
    return AttackPlan(target, recipe, directory, data, compute, attacks, epsilons, audit_eps, out)


def _attack_space(model: nn.Module, settings: AttackSettings, name: str) -> AttackSpace:
    if settings.protocol == "pixel":
        return PIXEL
    layers = [module for module in model.modules() if isinstance(module, Normalise)]
    if len(layers) != 1:
        raise UserError(f"--protocol paper-code: {name} has no normalisation layer; use --protocol pixel")
    return normalised_attack_space(layers[0].mean, layers[0].std, clamp_to_unit=settings.paper_code_clamp)
