"""What an imported teacher can really do: a few hundred test images, beside what is published of it.

A wrong normalisation is the commonest fault of an imported checkpoint. It raises no error and loses tens of points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rnascl_cli.core.console import info, warning
from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.data import Data, load_data
from rnascl_cli.data.builtin import cifar_is_here
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.evaluate import TeacherAccuracy, accuracy, measure
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.recipes import SELF_TEST_IMAGES, DataSettings
from rnascl_cli.teachers.architectures import architecture_named
from rnascl_cli.teachers.public_checkpoints import IDENTITY, PUBLIC
from rnascl_cli.teachers.state_dict_conversion import Constants

FAR_APART = 0.1  # a measured accuracy this far from the published one means that something is wrong
TOO_GOOD = 0.2  # PGD-20 finds fewer mistakes than AutoAttack, by a few points and not by this
CLEARLY_BETTER = 0.05
NEAR_CHANCE = 2  # times the accuracy of guessing
# What public checkpoints are normalised by; whatever else they hold, these are what one forgets to write down.
USUAL: tuple[Constants, ...] = tuple(
    dict.fromkeys([IDENTITY, *(known.constants for known in PUBLIC.values()), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
)


@dataclass(frozen=True)
class ExpectedAccuracy:
    """What a teacher should reach.

    Attributes:
        clean: Clean accuracy; None where unknown.
        robust: Accuracy under ``attack``; None where unknown.
        attack: Which attack that was.
        eps: Size of its perturbation, as text.
        where: Who says so, for a message.
    """

    clean: float | None = None
    robust: float | None = None
    attack: str = "AutoAttack"
    eps: str = "8/255"
    where: str = "published"


def expectation(
    published: Mapping[str, Any] | None, before: Mapping[str, Any] | None, data: Data | None
) -> ExpectedAccuracy:
    """Return what to compare with: the published accuracies, else what the file says was measured on these images."""
    if published and published.get("clean") is not None:
        return ExpectedAccuracy(
            published["clean"], published.get("autoattack"), "AutoAttack", published.get("eps") or "8/255"
        )
    if before and data is not None and before.get("fingerprint") == data.fingerprint:
        return ExpectedAccuracy(
            before.get("clean"), before.get("pgd20"), "PGD-20", before.get("eps") or "8/255", "as the file"
        )
    return ExpectedAccuracy(eps=(published or {}).get("eps") or "8/255")


def default_data(architecture: str, num_classes: int, *, limit: int, seed: int) -> Data | None:
    """Return test images of the set that an architecture is for, where they are here already; never a download."""
    small = architecture_named(architecture).input_size == 32
    name = {10: "cifar10", 100: "cifar100"}.get(num_classes) if small else None
    if name not in ("cifar10", "cifar100") or not cifar_is_here("cifar10" if name == "cifar10" else "cifar100"):
        return None
    info(f"self-test on {limit} images of {name}, as no --data is given")
    return load_data(DataSettings(spec=name, limit_test=limit), seed=seed, training=False)


def say_skipped(architecture: str, path: object) -> None:
    """Warn that nothing was measured, and say how to do it."""
    spec = "cifar10" if architecture_named(architecture).input_size == 32 else "imagenet:DIR"
    warning(
        "NOT TESTED: no --data is given and the usual data set is not in the cache, so nobody has looked whether this "
        "teacher's normalisation is right. Give the import --data SPEC, or run "
        f"'rnascl teacher measure {path} --data {spec} --attack pgd20 --limit-test {SELF_TEST_IMAGES}'"
    )


def self_test(
    module: nn.Module, data: Data, expected: ExpectedAccuracy, *, compute: DeviceConfig, seed: int
) -> TeacherAccuracy:
    """Measure clean and PGD-20 accuracy on the test images, and warn where they are not what they should be."""
    measured = measure(module, data, eps=parse_epsilon(expected.eps).value, compute=compute, seed=seed)
    if wrong := _far_apart(measured, expected):
        warning(
            f"FAR APART: {wrong}. A wrong normalisation is the commonest cause; compare --mean and --std with the "
            "checkpoint's page. Or is it another checkpoint, or other images?"
        )
    elif expected.clean is None and measured.clean < NEAR_CHANCE / data.num_classes:
        warning(f"clean accuracy is {measured.clean:.3f}, close to chance: another data set, or a wrong normalisation?")
    _try_others(module, data, measured.clean, compute=compute)
    return measured


def _far_apart(measured: TeacherAccuracy, expected: ExpectedAccuracy) -> str | None:
    """Say which accuracies are far from the expected ones, beside them; None where none is."""
    if expected.clean is None:
        return None
    said = f"measured clean {measured.clean:.3f}, {expected.where} {expected.clean:.3f}"
    far = abs(measured.clean - expected.clean) > FAR_APART
    if expected.robust is not None:
        said += f"; PGD-20 {measured.pgd20:.3f}, {expected.attack} {expected.where} {expected.robust:.3f}"
        # AutoAttack is the stronger attack, so PGD-20 should leave more images standing, not fewer.
        far |= not expected.robust - FAR_APART <= measured.pgd20 <= expected.robust + TOO_GOOD
    return said if far else None


def _try_others(module: nn.Module, data: Data, clean: float, *, compute: DeviceConfig) -> None:
    """Warn where another usual normalisation is clearly better; it is not put in, as test images choose nothing."""
    own = module.normalise
    scores: dict[Constants, float] = {}
    try:
        for constants in USUAL:
            module.normalise = Normalise(*constants).to(compute.device)
            scores[constants] = accuracy(module, data.test, compute=compute)
    finally:
        module.normalise = own
    best = max(scores, key=lambda constants: scores[constants])
    if scores[best] > clean + CLEARLY_BETTER:
        mean, std = (",".join(f"{value:g}" for value in part) for part in best)
        warning(
            f"WRONG NORMALISATION? Clean accuracy is {clean:.3f} as imported, and would be {scores[best]:.3f} with "
            f"--mean {mean} --std {std}; nothing was changed"
        )
