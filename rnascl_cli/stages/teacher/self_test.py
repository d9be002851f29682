"""Self-test of an imported teacher: its accuracies on a few hundred test images, compared with the published ones.

A wrong normalisation is the most common fault of an imported checkpoint. It raises no error and costs tens of points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.data import Data, load_data
from rnascl_cli.data.builtin import cifar_is_here
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.evaluate import TeacherAccuracy, accuracy, measure
from rnascl_cli.models.input_size import check_input_size
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.recipes.settings import SELF_TEST_IMAGES, DataSettings
from rnascl_cli.stages.teacher.train import check_size
from rnascl_cli.teachers.architectures import architecture_named
from rnascl_cli.teachers.public_checkpoints import IDENTITY, PUBLIC, NormalisationConstants
from rnascl_cli.teachers.state_dict_conversion import ConvertedStateDict

MAX_DIFFERENCE = 0.1  # from the published accuracy; a larger one means that something is wrong
MAX_PGD_EXCESS = 0.2  # of PGD-20 over AutoAttack, which is the stronger attack by a few points only
CLEAR_GAIN = 0.05  # in clean accuracy, for another normalisation to be suggested
NEAR_CHANCE = 2  # times the accuracy of guessing
HALF = NormalisationConstants((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
USUAL = tuple(dict.fromkeys([IDENTITY, *(known.constants for known in PUBLIC.values()), HALF]))
"""The normalisations that public checkpoints expect."""


@dataclass(frozen=True, kw_only=True)
class SelfTestSettings:
    """How to test an imported teacher.

    Attributes:
        data: Test images; None for those of the data set that the architecture is made for, if it is in the cache.
        limit_test: Number of images of that data set.
        device: Where to run.
        seed: Seed of the attack's random starts.
    """

    data: Data | None = None
    limit_test: int = SELF_TEST_IMAGES
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def data_for(self, converted: ConvertedStateDict) -> Data | None:
        """Return the test images for a teacher; None where its usual data set is not in the cache.

        Raises:
            UserError: The given data have other classes, or images of another kind.
        """
        architecture = architecture_named(converted.architecture)
        if self.data is not None:
            if self.data.num_classes != converted.num_classes:
                raise UserError(
                    f"--data {self.data.spec}: has {self.data.num_classes} classes, the teacher {converted.num_classes}"
                )
            check_size(architecture, self.data)
            return self.data
        if architecture.input_size == 32 and converted.num_classes == 10 and cifar_is_here("cifar10"):
            spec = "cifar10"
        elif architecture.input_size == 32 and converted.num_classes == 100 and cifar_is_here("cifar100"):
            spec = "cifar100"
        else:
            return None
        info(f"self-test on {self.limit_test} images of {spec}, as no --data is given")
        return load_data(DataSettings(spec=spec, limit_test=self.limit_test), seed=self.seed, training=False)


@dataclass(frozen=True)
class ExpectedAccuracy:
    """The accuracies that a teacher should reach.

    Attributes:
        clean: Clean accuracy; None where unknown.
        robust: Accuracy under ``attack``; None where unknown.
        attack: The attack.
        eps: Its perturbation size, as text.
        source: Where the numbers are from, for a message.
    """

    clean: float | None = None
    robust: float | None = None
    attack: str = "AutoAttack"
    eps: str = "8/255"
    source: str = "published"


def expected_accuracy(
    published: Mapping[str, Any] | None, earlier: Mapping[str, Any] | None, data: Data
) -> ExpectedAccuracy:
    """Return the published accuracies, else those that an earlier self-test on the same images measured."""
    published = published or {}
    eps = published.get("eps") or "8/255"
    if published.get("clean") is not None:
        return ExpectedAccuracy(published["clean"], published.get("autoattack"), eps=eps)
    if earlier and earlier.get("fingerprint") == data.fingerprint:
        eps = earlier.get("eps") or "8/255"
        return ExpectedAccuracy(earlier.get("clean"), earlier.get("pgd20"), "PGD-20", eps, "in the file")
    return ExpectedAccuracy(eps=eps)


def self_test(
    module: nn.Module, data: Data, expected: ExpectedAccuracy, settings: SelfTestSettings, *, what: str
) -> TeacherAccuracy:
    """Measure clean and PGD-20 accuracy on the test images, and warn where they are not as expected.

    Args:
        module: The teacher, in eval mode.
        data: The test images.
        expected: What to compare with.
        settings: Device and seed.
        what: What to call the teacher in an error.

    Raises:
        UserError: The teacher does not take images of this size.
    """
    check_input_size(module, what, input_size=data.input_size)
    compute = resolve_device(settings.device, "fp32")
    eps = parse_epsilon(expected.eps).value
    measured = measure(module, data, eps=eps, compute=compute, seed=settings.seed)
    if difference := describe_difference(measured, expected):
        warning(
            f"FAR APART: {difference}. A wrong normalisation is the most common cause: compare --mean and --std with "
            "the checkpoint's page. Otherwise it is another checkpoint, or other images"
        )
    elif expected.clean is None and measured.clean < NEAR_CHANCE / data.num_classes:
        warning(f"clean accuracy is {measured.clean:.3f}, close to chance: another data set, or a wrong normalisation?")
    _try_usual_normalisations(module, data, measured.clean, compute=compute)
    return measured


def describe_difference(measured: TeacherAccuracy, expected: ExpectedAccuracy) -> str | None:
    """Return measured and expected accuracies side by side where they are far apart, else None."""
    if expected.clean is None:
        return None
    text = f"measured clean {measured.clean:.3f}, {expected.source} {expected.clean:.3f}"
    far = abs(measured.clean - expected.clean) > MAX_DIFFERENCE
    if expected.robust is not None:
        text += f"; PGD-20 {measured.pgd20:.3f}, {expected.attack} {expected.source} {expected.robust:.3f}"
        # AutoAttack is the stronger attack, so the accuracy under PGD-20 should be higher, not lower.
        far |= not expected.robust - MAX_DIFFERENCE <= measured.pgd20 <= expected.robust + MAX_PGD_EXCESS
    return text if far else None


def _try_usual_normalisations(module: nn.Module, data: Data, clean: float, *, compute: DeviceConfig) -> None:
    """Warn where another usual normalisation is clearly better. It is not applied: test images select nothing."""
    own = module.normalise
    scores: dict[NormalisationConstants, float] = {}
    try:
        for constants in USUAL:
            module.normalise = Normalise(*constants).to(compute.device)
            scores[constants] = accuracy(module, data.test, compute=compute)
    finally:
        module.normalise = own
    best = max(scores, key=lambda constants: scores[constants])
    if scores[best] > clean + CLEAR_GAIN:
        mean, std = (",".join(f"{value:g}" for value in values) for values in best)
        warning(
            f"WRONG NORMALISATION? Clean accuracy is {clean:.3f} as imported, and would be {scores[best]:.3f} with "
            f"--mean {mean} --std {std}; nothing was changed"
        )


def warn_untested(architecture: str, path: Path) -> None:
    """Warn that nothing was measured, and say how to do it."""
    spec = "cifar10" if architecture_named(architecture).input_size == 32 else "imagenet:DIR"
    warning(
        "NOT TESTED: no --data is given and the usual data set is not in the cache, so this teacher's normalisation "
        "is unchecked. Give the import --data SPEC, or run "
        f"'rnascl teacher measure {path} --data {spec} --attack pgd20 --limit-test {SELF_TEST_IMAGES}'"
    )
