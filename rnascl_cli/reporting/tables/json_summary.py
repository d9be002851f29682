"""Typed summary of a report, for ``report --json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rnascl_cli.artifacts.documents import AuditCheck, Fraction, FrozenModel, Protocol, Sha256
from rnascl_cli.reporting.data.comparable_groups import ComparableResult
from rnascl_cli.reporting.data.lineage import ReportModel


class ReportedAttack(FrozenModel):
    """Attack results of one model."""

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
    """Output folder, files, models, warnings and caveats of a report."""

    kind: Literal["report"] = "report"
    out: str
    files: list[str]
    models: list[ReportedModel]
    warnings: list[str]
    gaps: list[str]


def summarize_models(models: Sequence[ReportModel]) -> list[ReportedModel]:
    """Return the models as records."""
    return [_model(model) for model in models]


def _model(model: ReportModel) -> ReportedModel:
    architecture = model.architecture
    return ReportedModel(
        name=model.name,
        kind=model.kind,
        trained=model.trained,
        origin=model.origin,
        space=architecture.space if architecture else None,
        widths=list(architecture.widths) if architecture else None,
        params=architecture.params if architecture else None,
        macs=architecture.macs if architecture else None,
        clean_accuracy=model.artifact.document.clean_accuracy if model.artifact else None,
        attacks=[_attack(ComparableResult(model, attack)) for attack in model.attacks],
    )


def _attack(measurement: ComparableResult) -> ReportedAttack:
    document = measurement.attack.document
    data = document.provenance.data
    return ReportedAttack(
        run=measurement.attack.run,
        protocol=document.protocol,
        fingerprint=data.fingerprint if data else None,
        n=document.n,
        clean_accuracy=document.clean_accuracy,
        worst_case_eps=measurement.largest.eps if measurement.largest else None,
        worst_case_accuracy=measurement.worst_case,
        audit=document.audit,
        warnings=list(document.warnings),
    )
