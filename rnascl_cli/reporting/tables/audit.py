"""Gradient-masking audits (``attack --audit``) as cards and cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AuditCheck
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, ComparableResult
from rnascl_cli.reporting.tables.provenance import provenance_anchor
from rnascl_cli.reporting.tables.table import Cell

MAX_OPEN = 4
"""With more cards than this, only those of failed audits are open."""


@dataclass(frozen=True)
class AuditCard:
    """Audit of one model.

    Attributes:
        model: Model name.
        trained: Training method.
        conditions: Data and protocol.
        href: Link to the provenance.
        checks: All checks.
        open: Whether the checks are visible without a click.
    """

    model: str
    trained: str
    conditions: str
    href: str
    checks: Sequence[AuditCheck]
    open: bool

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """Outcome in words."""
        return verdict(self.checks)


def verdict(checks: Sequence[AuditCheck]) -> str:
    """Return ``passed 9 of 9`` or ``failed 2 of 9``."""
    failed = sum(not check.passed for check in checks)
    return f"failed {failed} of {len(checks)}" if failed else f"passed {len(checks)} of {len(checks)}"


def audit_cards(groups: Sequence[ComparableGroup]) -> list[AuditCard]:
    """Return the cards of all audited models, failed audits first."""
    audited = [(group, one) for group in groups for one in group.measurements if one.audit]
    audited.sort(key=lambda pair: pair[1].passed_audit)
    return [
        AuditCard(
            one.model.name,
            one.model.trained,
            f"data {group.letter}, protocol {group.protocol}",
            provenance_anchor(one.attack),
            one.audit or (),
            open=len(audited) <= MAX_OPEN or not one.passed_audit,
        )
        for group, one in audited
    ]


def unaudited(groups: Sequence[ComparableGroup]) -> list[str]:
    """Return the names of models without an audit under any protocol."""
    attacked = {one.model.sha256: one.model.name for group in groups for one in group.measurements}
    audited = {one.model.sha256 for group in groups for one in group.measurements if one.audit}
    return [name for sha256, name in attacked.items() if sha256 not in audited]


def audit_cell(measurement: ComparableResult) -> Cell:
    """Return the outcome of the audit."""
    if not measurement.audit:
        pixel = measurement.attack.document.protocol == "pixel"
        note = "run attack --audit" if pixel else "audits need protocol pixel"
        return Cell("not audited", 0.5, note, tone="faint")
    failed = [check for check in measurement.audit if not check.passed]
    note = "; ".join(f"{check.name}: {check.detail}" for check in failed)
    return Cell(verdict(measurement.audit), float(not failed), note, bool(failed), tone="" if failed else "good")


def failed_audits(groups: Sequence[ComparableGroup]) -> list[str]:
    """Return a warning for each failed audit."""
    return [
        f"{one.model.name} ({group.protocol}, {one.model.trained}): audit {verdict(one.audit)}: "
        + "; ".join(f"{check.name} ({check.detail})" for check in one.audit if not check.passed)
        for group in groups
        for one in group.measurements
        if one.audit and not one.passed_audit
    ]
