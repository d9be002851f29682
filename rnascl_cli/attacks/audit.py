"""The gradient-masking audit: checks of Carlini et al. 2019 and of AutoAttack's warnings, each passed or failed.

A model whose gradients are masked looks robust to PGD. Each check tests a property that every honest model has and a
masked one lacks. The audit works on a few images that the model classifies correctly, in pixels.

Shape suffixes: N images, B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import AuditCheck
from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.evaluate import Evaluator, Outcome
from rnascl_cli.attacks.gradient import LogitFunction
from rnascl_cli.attacks.gradient_masking import (
    autoattack_check,
    beyond_chance,
    black_box_check,
    one_step_check,
    percent,
)
from rnascl_cli.attacks.registry import AttackOptions, build_attacks
from rnascl_cli.core import distributed
from rnascl_cli.core.units import Epsilon

LARGE_EPS = 0.5
"""Every image is within this distance of plain gray, so no honest model keeps any accuracy."""
LEFT_AT_LARGE_EPS = 0.01
MORE_EFFORT = 0.03
"""Longer and repeated attacks may break this additional share of the images; honest models show 0 to 1 %."""
DRIFT = 1e-3
"""Largest difference of logits between two forward passes, relative to the largest logit."""
ALONE = 8
"""Images that are also passed one by one."""
QUERIES = 1000
"""Of Square: enough to detect masked gradients, a fifth of AutoAttack's."""
RESTARTS = 5


@dataclass(frozen=True, eq=False)
class _Images:
    images_NCHW: Tensor
    labels_N: Tensor
    index_N: Tensor

    def pixels(self, rows: Tensor | slice) -> Tensor:
        return self.images_NCHW[rows]


def audit_model(
    evaluator: Evaluator, right_N: Tensor, eps: Epsilon, outcomes: Sequence[Outcome], *, limit: int
) -> list[AuditCheck]:
    """Run the audit.

    Args:
        evaluator: Model and images, in the pixel protocol.
        right_N: Which images are classified correctly when clean.
        eps: At which attacks are compared; above 0.
        outcomes: Attacks that have run already; AutoAttack and Square at ``eps`` are not run again.
        limit: Maximum number of images.

    Returns:
        The checks in order; the model passes if all of them do. The list ends early if an image's logits depend on
        its batch, because verdicts are meaningless then.
    """
    rows = _spread(right_N.nonzero().squeeze(1), limit)
    if not len(rows):
        return [AuditCheck(name="images to audit", passed=False, detail="no image is classified correctly")]
    images = evaluator.images
    selected = _Images(images.pixels(rows), images.labels_N[rows], images.index_N[rows])
    known = {
        outcome.attack.name: replace(outcome, broken_N=outcome.broken_N[rows])
        for outcome in outcomes
        if outcome.eps.value == eps.value
    }
    return _Audit(replace(evaluator, images=selected), eps, known).run()


class _Audit:
    """The audit of a model on the selected images.

    Args:
        evaluator: Over the selected images alone.
        eps: At which the attacks are compared.
        known: Attacks that have run at ``eps``, on the selected images, by name.
    """

    def __init__(self, evaluator: Evaluator, eps: Epsilon, known: dict[str, Outcome]) -> None:
        self.evaluator, self.eps, self.known = evaluator, eps, known
        self.count = len(evaluator.images.labels_N)
        self.none_N = torch.zeros(self.count, dtype=torch.bool)

    def run(self) -> list[AuditCheck]:
        """Return the checks in order."""
        # On one rank: a model with random outputs would lead each rank to another result.
        forward = distributed.from_rank_zero(self._forward_checks)
        if not forward[-1].passed:
            return forward
        pgd = self._gradient("pgd20", broken_N=self.none_N)
        square = self._autoattack(AutoAttack("square", queries=QUERIES), broken_N=self.none_N)
        aa = self._autoattack(AutoAttack("aa"), broken_N=pgd.broken_N)  # only on what PGD leaves
        both = replace(aa, broken_N=aa.broken_N | pgd.broken_N)
        return [
            *forward,
            self._gradient_check(),
            self._large_eps_check(),
            self._one_step_check(pgd),
            black_box_check(square, pgd),
            self._effort_check(pgd),
            autoattack_check(both, pgd, label="AutoAttack on top of it"),
        ]

    def _gradient(self, name: str, *, broken_N: Tensor, eps: Epsilon | None = None, restarts: int = 1) -> Outcome:
        """Run a gradient attack on the images not in ``broken_N``."""
        (attack,) = build_attacks([name], AttackOptions(restarts=restarts), norm=self.evaluator.norm)
        several = f" from {restarts} starts" if restarts > 1 else ""
        return self.evaluator.run(attack, eps or self.eps, broken_N, label=f"audit: {name}{several}")

    def _autoattack(self, attack: AutoAttack, *, broken_N: Tensor) -> Outcome:
        """Return the outcome of an attack of the AutoAttack family: as known, or by running it."""
        if attack.name in self.known:
            return self.known[attack.name]
        return self.evaluator.run(attack, self.eps, broken_N, label=f"audit: {attack.name}")

    def _forward_checks(self) -> list[AuditCheck]:
        evaluator = self.evaluator
        x_BCHW = evaluator.images.pixels(slice(evaluator.batch_size)).to(evaluator.device).float() / 255
        with torch.no_grad():
            first_BK, second_BK = evaluator.model(x_BCHW), evaluator.model(x_BCHW)
            flipped_BK = evaluator.model(x_BCHW.flip(0)).flip(0)
            alone_BK = _one_by_one(evaluator.model, x_BCHW[:ALONE])
        scale = float(first_BK.abs().max().clamp(min=1e-12))
        repeated = float((first_BK - second_BK).abs().max()) / scale
        flipped = float((first_BK - flipped_BK).abs().max()) / scale
        alone = math.inf if alone_BK is None else float((first_BK[: len(alone_BK)] - alone_BK).abs().max()) / scale
        by_itself = "a single image is refused" if alone_BK is None else f"one by one by {alone:.1e}"
        return [
            AuditCheck(
                name="the forward pass is deterministic",
                passed=repeated <= DRIFT,
                detail=f"two passes over the same images differ by {repeated:.1e} of the largest logit",
            ),
            AuditCheck(
                name="an image's logits do not depend on its batch",
                passed=max(flipped, alone) <= DRIFT,
                detail=f"in another order they differ by {flipped:.1e} of the largest logit, {by_itself}",
            ),
        ]

    def _gradient_check(self) -> AuditCheck:
        found = self.evaluator.gradients(~self.none_N)
        return AuditCheck(
            name="gradients are there",
            passed=not beyond_chance(found.zero / found.images, found.images) and not found.not_finite,
            detail=f"of {found.images} images {found.zero} have an all-zero loss gradient, {found.not_finite} one that "
            "is not finite",
        )

    def _large_eps_check(self) -> AuditCheck:
        pixels = self.evaluator.images.pixels(slice(1)).numel()
        value = LARGE_EPS if self.evaluator.norm == "Linf" else LARGE_EPS * math.sqrt(pixels)
        large = Epsilon(f"{value:.3g}", value)
        outcome = self._gradient("pgd50", eps=large, broken_N=self.none_N)
        return AuditCheck(
            name="accuracy reaches about 0 at a large eps",
            passed=outcome.accuracy <= LEFT_AT_LARGE_EPS,
            detail=f"pgd50 at eps {large.text} leaves {percent(outcome.accuracy)} of {self.count} images",
        )

    def _one_step_check(self, pgd: Outcome) -> AuditCheck:
        if self.evaluator.norm != "Linf":
            name, detail = "many steps are no worse than one", "skipped: FGSM is an L-inf attack"
            return AuditCheck(name=name, passed=True, detail=detail)
        return one_step_check(self._gradient("fgsm", broken_N=self.none_N), pgd)

    def _effort_check(self, pgd: Outcome) -> AuditCheck:
        longer = self._gradient("pgd100", broken_N=pgd.broken_N)
        repeated = self._gradient("pgd20", broken_N=pgd.broken_N, restarts=RESTARTS)
        more = max(pgd.accuracy - longer.accuracy, pgd.accuracy - repeated.accuracy)
        return AuditCheck(
            name="more steps and restarts change little",
            passed=more <= max(MORE_EFFORT, 2 / self.count) + 1e-9,
            detail=f"pgd20 leaves {percent(pgd.accuracy)}, 100 steps {percent(longer.accuracy)}, {RESTARTS} starts "
            f"{percent(repeated.accuracy)}",
        )


def _one_by_one(model: LogitFunction, x_BCHW: Tensor) -> Tensor | None:
    """Return the logits of images passed singly; None if the model takes no batch of one."""
    try:
        return torch.cat([model(x_BCHW[i : i + 1]) for i in range(len(x_BCHW))])
    except (RuntimeError, ValueError):  # BatchNorm in training mode refuses a single value
        return None


def _spread(rows: Tensor, limit: int) -> Tensor:
    """Return at most ``limit`` of the rows, evenly spaced."""
    if len(rows) <= limit:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, limit).round().long()]
