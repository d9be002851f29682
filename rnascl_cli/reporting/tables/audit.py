"""The gradient-masking audit of ``attack --audit`` as a card for each model: is its robust accuracy to be trusted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AuditCheck
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, ComparableResult
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import Cell

FEW = 4
"""Up to so many cards are shown open; beyond, those that failed."""


@dataclass(frozen=True)
class AuditCard:
    """One model's audit.

    Attributes:
        model: Its name.
        trained: How it was trained.
        where: On what the audit worked.
        href: Where the page tells how it was made.
        checks: In order.
        unfolded: Whether the checks are shown at once.
    """

    model: str
    trained: str
    where: str
    href: str
    checks: Sequence[AuditCheck]
    unfolded: bool

    @property
    def passed(self) -> bool:
        """Whether every check was passed."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        return verdict(self.checks)


def verdict(checks: Sequence[AuditCheck]) -> str:
    """Return ``passed 9 of 9`` or ``failed 2 of 9``."""
    failed = sum(not check.passed for check in checks)
    return f"failed {failed} of {len(checks)}" if failed else f"passed {len(checks)} of {len(checks)}"


def audit_cards(groups: Sequence[ComparableGroup]) -> list[AuditCard]:
    """Return the cards of all audited models, those that failed first."""
    audited = [(group, found) for group in groups for found in group.measured if found.card]
    audited.sort(key=lambda pair: _passed(pair[1]))
    return [
        AuditCard(
            found.model.name,
            found.model.trained,
            f"data {group.letter}, protocol {group.protocol}",
            provenance_anchor(found.attack),
            found.card or (),
            unfolded=len(audited) <= FEW or not _passed(found),
        )
        for group, found in audited
    ]


def _passed(found: ComparableResult) -> bool:
    return all(check.passed for check in found.card or ())


def unaudited(groups: Sequence[ComparableGroup]) -> list[str]:
    """Name the models whose gradients nobody has audited, under any protocol."""
    attacked = {found.model.sha256: found.model.name for group in groups for found in group.measured}
    audited = {found.model.sha256 for group in groups for found in group.measured if found.card}
    return [name for sha256, name in attacked.items() if sha256 not in audited]


def audit_cell(found: ComparableResult) -> Cell:
    """Return the outcome as a cell."""
    checks = found.card
    if not checks:
        pixel = found.attack.document.protocol == "pixel"
        note = "attack --audit makes the card" if pixel else "the audit works on pixels"
        return Cell("not audited", 0.5, note, tone="faint")
    failed = [check for check in checks if not check.passed]
    note = "; ".join(f"{check.name}: {check.detail}" for check in failed)
    return Cell(verdict(checks), float(not failed), note, bool(failed), tone="" if failed else "good")


def failed_audits(groups: Sequence[ComparableGroup]) -> list[str]:
    """Say which checks failed, for the warnings at the head of the report."""
    return [
        f"{found.model.name} ({group.protocol}, {found.model.trained}): audit {verdict(found.card)}: "
        + "; ".join(f"{check.name}: no ({check.detail})" for check in found.card if not check.passed)
        for group in groups
        for found in group.measured
        if found.card and not _passed(found)
    ]
