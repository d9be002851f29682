"""The report in a few typed numbers, for ``report --json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rnascl_cli.artifacts.documents import AuditCheck, Fraction, FrozenModel, Protocol, Sha256
from rnascl_cli.reporting.data.comparable_groups import ComparableResult
from rnascl_cli.reporting.data.lineage import ReportModel


class ReportedAttack(FrozenModel):
    """One attack run on a model."""

    run: str
    protocol: Protocol
    fingerprint: Sha256 | None
    n: int
    clean_accuracy: Fraction
    worst_case_eps: str | None
    worst_case_accuracy: Fraction | None
    audit: list[AuditCheck] | None
    warnings: list[str]


class ReportedModel(FrozenModel):
    """One model of the report."""

    name: str
    kind: Literal["student", "teacher", "unknown"]
    trained: str
    origin: str
    space: str | None
    widths: list[int] | None
    params: int | None
    macs: int | None
    clean_accuracy: Fraction | None
    attacks: list[ReportedAttack]


class ReportSummary(FrozenModel):
    """What a report holds and where it lies."""

    kind: Literal["report"] = "report"
    out: str
    files: list[str]
    models: list[ReportedModel]
    warnings: list[str]
    gaps: list[str]


def reported(models: Sequence[ReportModel]) -> list[ReportedModel]:
    """Return the models as records."""
    return [_model(model) for model in models]


def _model(model: ReportModel) -> ReportedModel:
    built = model.architecture
    return ReportedModel(
        name=model.name,
        kind=model.kind,
        trained=model.trained,
        origin=model.origin,
        space=built.space if built else None,
        widths=list(built.widths) if built else None,
        params=built.params if built else None,
        macs=built.macs if built else None,
        clean_accuracy=model.made.document.clean_accuracy if model.made else None,
        attacks=[_attack(ComparableResult(model, attack)) for attack in model.attacks],
    )


def _attack(measured: ComparableResult) -> ReportedAttack:
    document = measured.attack.document
    data = document.provenance.data
    return ReportedAttack(
        run=measured.attack.run,
        protocol=document.protocol,
        fingerprint=data.fingerprint if data else None,
        n=document.n,
        clean_accuracy=document.clean_accuracy,
        worst_case_eps=measured.largest.eps if measured.largest else None,
        worst_case_accuracy=measured.worst_case,
        audit=document.audit,
        warnings=list(document.warnings),
    )
