"""The gradient-masking audit: the checks of Carlini et al. 2019 and of AutoAttack's flags, as a pass/fail card.

A model whose gradients lead nowhere looks robust to PGD. Each check asks for something that holds for every
honest model and fails for a masked one. The card works on a few images that the model classifies rightly, in
pixels.

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
from rnascl_cli.attacks.gradient_masking import AA_GAP, beyond_chance, percent
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.attacks.registry import Options, build_attacks
from rnascl_cli.core import distributed
from rnascl_cli.core.units import Epsilon

LARGE_EPS = 0.5
"""Every image comes within this of plain grey, so that no honest model is left with any accuracy."""
LEFT_AT_LARGE_EPS = 0.01
MORE_EFFORT = 0.03
"""Longer and repeated attacks may break this share of the images more; honest models show 0 to 1 per cent."""
DRIFT = 1e-3
"""Largest difference of logits between two forward passes, as a share of the largest logit."""
ALONE = 8
"""Images that are also passed one by one."""
QUERIES = 1000
"""Of Square: enough to beat a masked gradient, a fifth of AutoAttack's."""
RESTARTS = 5


@dataclass(frozen=True, eq=False)
class _Chosen:
    images_NCHW: Tensor
    labels_N: Tensor
    index_N: Tensor

    def pixels(self, rows: Tensor | slice) -> Tensor:
        return self.images_NCHW[rows]


@dataclass(frozen=True, eq=False)
class _Audit:
    """The audited images and what the card's attacks did to them.

    Attributes:
        evaluator: Over the audited images alone.
        eps: At which the attacks are compared.
        large: An eps at which nothing should be left.
    """

    evaluator: Evaluator
    eps: Epsilon
    large: Epsilon

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.evaluator.images.labels_N)

    @property
    def none_N(self) -> Tensor:  # noqa: N802
        """Verdicts with nothing broken."""
        return torch.zeros(self.count, dtype=torch.bool)

    def gradient(self, name: str, *, eps: Epsilon, broken_N: Tensor, restarts: int = 1) -> Outcome:
        """Run a gradient attack on the images not in ``broken_N``."""
        (attack,) = build_attacks([name], options=Options(restarts=restarts), norm=self.evaluator.norm)
        several = f" from {restarts} starts" if restarts > 1 else ""
        return self.evaluator.run(attack, eps, broken_N, label=f"audit: {name}{several}")

    def other(self, attack: Attack, broken_N: Tensor) -> Outcome:
        """Run any attack on the images not in ``broken_N``."""
        return self.evaluator.run(attack, self.eps, broken_N, label=f"audit: {attack.name}")


def audit_model(
    evaluator: Evaluator, right_N: Tensor, eps: Epsilon, outcomes: Sequence[Outcome], *, limit: int
) -> list[AuditCheck]:
    """Run the card.

    Args:
        evaluator: Model and images, pixel domain.
        right_N: Which images are classified rightly when clean.
        eps: At which attacks are compared; above 0.
        outcomes: What has been run already; AutoAttack and Square at ``eps`` are not run again.
        limit: How many images to work on.

    Returns:
        The checks in order; the model passes when all of them do. The card ends early where an image's logits
        depend on the images beside it: no verdict would be about that image.
    """
    rows = _spread(right_N.nonzero().squeeze(1), limit)
    if not len(rows):
        return [AuditCheck(name="images to audit", passed=False, detail="no image is classified rightly")]
    images = evaluator.images
    chosen = _Chosen(images.pixels(rows), images.labels_N[rows], images.index_N[rows])
    pixels = chosen.images_NCHW[0].numel()
    large = LARGE_EPS if evaluator.norm == "Linf" else LARGE_EPS * math.sqrt(pixels)
    audit = _Audit(replace(evaluator, images=chosen), eps, Epsilon(f"{large:.3g}", large))
    known = {outcome.attack.name: outcome.broken_N[rows] for outcome in outcomes if outcome.eps.value == eps.value}
    forward = distributed.from_rank_zero(
        lambda: _forward_checks(audit)
    )  # a random model would lead each rank another way
    if not forward[-1].passed:  # nothing an attack finds is about one image then
        return forward
    pgd = audit.gradient("pgd20", eps=eps, broken_N=audit.none_N)
    return [
        *forward,
        _gradient_check(audit),
        _large_eps_check(audit),
        _one_step_check(audit, pgd),
        _black_box_check(audit, pgd, known),
        _effort_check(audit, pgd),
        _autoattack_check(audit, pgd, known),
    ]


def _forward_checks(audit: _Audit) -> list[AuditCheck]:
    evaluator = audit.evaluator
    x_BCHW = evaluator.images.pixels(slice(evaluator.batch_size)).to(evaluator.device).float() / 255
    with torch.no_grad():
        first_BK, second_BK = evaluator.model(x_BCHW), evaluator.model(x_BCHW)
        turned_BK = evaluator.model(x_BCHW.flip(0)).flip(0)
        alone_BK = _one_by_one(evaluator.model, x_BCHW[:ALONE])
    scale = float(first_BK.abs().max().clamp(min=1e-12))
    repeated = float((first_BK - second_BK).abs().max()) / scale
    turned = float((first_BK - turned_BK).abs().max()) / scale
    alone = math.inf if alone_BK is None else float((first_BK[: len(alone_BK)] - alone_BK).abs().max()) / scale
    by_itself = "refused by itself" if alone_BK is None else f"one by one by {alone:.1e}"
    return [
        AuditCheck(
            name="the forward pass is deterministic",
            passed=repeated <= DRIFT,
            detail=f"two passes over the same images differ by {repeated:.1e} of the largest logit",
        ),
        AuditCheck(
            name="an image's logits do not depend on its batch",
            passed=max(turned, alone) <= DRIFT,
            detail=f"in another order they differ by {turned:.1e} of the largest logit, {by_itself}",
        ),
    ]


def _one_by_one(model: LogitFunction, x_BCHW: Tensor) -> Tensor | None:
    """Return the logits of images passed singly; None where the model takes no batch of one."""
    try:
        return torch.cat([model(x_BCHW[i : i + 1]) for i in range(len(x_BCHW))])
    except (RuntimeError, ValueError):  # statistics of a batch of one
        return None


def _gradient_check(audit: _Audit) -> AuditCheck:
    found = audit.evaluator.gradients(~audit.none_N)
    return AuditCheck(
        name="gradients are there",
        passed=not beyond_chance(found.zero / found.images, found.images) and not found.not_finite,
        detail=f"of {found.images} images {found.zero} have an all-zero loss gradient, {found.not_finite} one that is "
        "not finite",
    )


def _large_eps_check(audit: _Audit) -> AuditCheck:
    at_large = audit.gradient("pgd50", eps=audit.large, broken_N=audit.none_N)
    return AuditCheck(
        name="accuracy reaches about 0 at a large eps",
        passed=at_large.accuracy <= LEFT_AT_LARGE_EPS,
        detail=f"pgd50 at eps {audit.large.text} leaves {percent(at_large.accuracy)} of {audit.count} images",
    )


def _one_step_check(audit: _Audit, pgd: Outcome) -> AuditCheck:
    name = "many steps are no worse than one"
    if audit.evaluator.norm != "Linf":
        return AuditCheck(name=name, passed=True, detail="not asked: FGSM is an L-inf attack")
    one = audit.gradient("fgsm", eps=audit.eps, broken_N=audit.none_N)
    return AuditCheck(
        name=name,
        passed=not beyond_chance(pgd.accuracy - one.accuracy, audit.count),
        detail=f"at eps {audit.eps.text} fgsm leaves {percent(one.accuracy)}, pgd20 {percent(pgd.accuracy)}",
    )


def _black_box_check(audit: _Audit, pgd: Outcome, known: dict[str, Tensor]) -> AuditCheck:
    square_N = known.get("square")
    if square_N is None:
        square_N = audit.other(AutoAttack("square", queries=QUERIES), audit.none_N).broken_N
    black = int((~square_N).sum()) / audit.count
    return AuditCheck(
        name="a black-box attack does not beat gradients",
        passed=not beyond_chance(pgd.accuracy - black, audit.count),
        detail=f"at eps {audit.eps.text} Square leaves {percent(black)}, pgd20 {percent(pgd.accuracy)}",
    )


def _effort_check(audit: _Audit, pgd: Outcome) -> AuditCheck:
    longer = audit.gradient("pgd100", eps=audit.eps, broken_N=pgd.broken_N)
    repeated = audit.gradient("pgd20", eps=audit.eps, broken_N=pgd.broken_N, restarts=RESTARTS)
    more = max(pgd.accuracy - longer.accuracy, pgd.accuracy - repeated.accuracy)
    return AuditCheck(
        name="more steps and restarts change little",
        passed=more <= max(MORE_EFFORT, 2 / audit.count) + 1e-9,
        detail=f"pgd20 leaves {percent(pgd.accuracy)}, 100 steps {percent(longer.accuracy)}, {RESTARTS} starts "
        f"{percent(repeated.accuracy)}",
    )


def _autoattack_check(audit: _Audit, pgd: Outcome, known: dict[str, Tensor]) -> AuditCheck:
    broken_N = known.get("aa")
    if broken_N is None:
        # Only what PGD left needs AutoAttack; the two together are what a reviewer would report.
        broken_N = audit.other(AutoAttack("aa"), pgd.broken_N).broken_N
    left = int((~(broken_N | pgd.broken_N)).sum()) / audit.count
    apart = pgd.accuracy - left
    masked = ": gradient masking; the PGD number overstates the robustness" if apart > AA_GAP else ""
    return AuditCheck(
        name="AutoAttack is close to PGD",
        passed=apart <= AA_GAP + 1e-9,
        detail=f"at eps {audit.eps.text} pgd20 leaves {percent(pgd.accuracy)}, AutoAttack on top of it {percent(left)}"
        f", {100 * apart:.1f} points apart{masked}",
    )


def _spread(rows: Tensor, limit: int) -> Tensor:
    """Return at most ``limit`` of the rows, evenly spaced."""
    if len(rows) <= limit:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, limit).round().long()]
