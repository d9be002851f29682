"""Results of a study as one JSON document, ``study.json``: one row per student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rnascl_cli.artifacts.documents import Fraction, FrozenModel, Protocol

NonNegative = Annotated[int, Field(ge=0)]


class MeasuredAttack(FrozenModel):
    """Accuracy of one student under one attack at one eps."""

    attack: str
    eps: str
    accuracy: Fraction
    interval: tuple[Fraction, Fraction] = Field(description="95 % Wilson interval over the test images")


class AttackSummary(FrozenModel):
    """One attack run on one student."""

    protocol: Protocol
    n: int = Field(ge=1, description="number of test images")
    clean_accuracy: Fraction = Field(description="on those images")
    results: list[MeasuredAttack]
    warnings: list[str]
    audit_passed: NonNegative | None = Field(default=None, description="audit checks passed; null without an audit")
    audit_failed: list[str] | None = Field(default=None, description="names of the audit checks that failed")


class StudyRow(FrozenModel):
    """A student of the study."""

    space: str
    seed: NonNegative
    arm: str
    stage: str = Field(description="'train', or the name of the fine-tuning")
    run: str = Field(description="run directory relative to the study's folder")
    widths: list[int]
    params: int
    macs: int
    clean_accuracy: Fraction = Field(description="on all test images of the run")
    test_images: NonNegative
    epochs: NonNegative
    seconds: float = Field(ge=0.0, description="training time of this stage")
    attacks: dict[str, AttackSummary]


class SearchRow(FrozenModel):
    """A search of the study and the network derived from it."""

    space: str
    seed: NonNegative
    arm: str
    run: str = Field(description="run directory relative to the study's folder")
    epochs: NonNegative
    seconds: float = Field(ge=0.0)
    width_entropy: Fraction = Field(
        description="mean entropy of softmax(v) after the last epoch, divided by the log of the number of choices"
    )
    tutor_entropy: Fraction | None = Field(description="the same for the tutors; null without tutors")
    macs: int = Field(description="of the derived network")
    smallest_macs: int = Field(description="of the smallest network in the space")


class Circumstances(FrozenModel):
    """Data, hardware and software of the runs; several entries where runs differ."""

    data: list[str] = Field(description="spec, fingerprint and numbers of images")
    teachers: list[str]
    devices: list[str]
    precisions: list[str]
    torch_versions: list[str]
    tool_versions: list[str] = Field(description="with the commit")
    made: tuple[str, str] | None = Field(description="first and last day, ISO 8601")


class StudyDocument(FrozenModel):
    """Results of a study so far."""

    kind: Literal["study"] = "study"
    schema_version: Literal[1] = 1
    title: str
    command: list[str]
    study_sha256: str
    reference: str = Field(description="arm that the others are compared with")
    arms: list[str] = Field(description="in the order of the study")
    stages: list[str] = Field(description="'train', then the fine-tunings")
    steps: NonNegative
    steps_done: NonNegative
    failed: dict[str, str] = Field(default_factory=dict, description="failed steps, and the last line of each error")
    not_begun: list[str] = Field(default_factory=list, description="steps that depend on a failed one")
    circumstances: Circumstances
    searches: list[SearchRow] = Field(default_factory=list)
    rows: list[StudyRow]
