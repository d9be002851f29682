"""What a study measured, as one JSON document: a row a student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rnascl_cli.artifacts.documents import Fraction, FrozenModel, Protocol

NonNegative = Annotated[int, Field(ge=0)]


class MeasuredAttack(FrozenModel):
    """One attack at one eps, on one student."""

    attack: str
    eps: str
    accuracy: Fraction
    interval: tuple[Fraction, Fraction] = Field(description="95 % Wilson interval for the images drawn")


class AttackSummary(FrozenModel):
    """One measurement of one student."""

    protocol: Protocol
    n: int = Field(ge=1, description="test images")
    clean_accuracy: Fraction = Field(description="of those images")
    results: list[MeasuredAttack]
    warnings: list[str]
    audit_passed: NonNegative | None = Field(
        default=None, description="checks of the audit card that passed; null without"
    )
    audit_failed: list[str] | None = Field(default=None, description="names of those that did not")


class StudyRow(FrozenModel):
    """A student of the study."""

    space: str
    seed: NonNegative
    arm: str
    stage: str = Field(description="'train', or the fine-tuning's name")
    run: str = Field(description="its run directory below the study's")
    widths: list[int]
    params: int
    macs: int
    clean_accuracy: Fraction = Field(description="on all test images of the run")
    test_images: NonNegative
    epochs: NonNegative
    seconds: float = Field(ge=0.0, description="of its training alone")
    attacks: dict[str, AttackSummary]


class SearchRow(FrozenModel):
    """A search of the study, and the network that it ended in."""

    space: str
    seed: NonNegative
    arm: str
    run: str = Field(description="its run directory below the study's")
    epochs: NonNegative
    seconds: float = Field(ge=0.0)
    width_entropy: Fraction = Field(
        description="of softmax(v) after the last epoch, over the log of the choices' number"
    )
    tutor_entropy: Fraction | None = Field(description="likewise; null where the search has no tutors")
    macs: int = Field(description="of the derived network")
    smallest_macs: int = Field(description="of the smallest network of the space")


class Circumstances(FrozenModel):
    """What the numbers depend on besides the study's file; lists where not all runs agree."""

    data: list[str] = Field(description="spec, fingerprint and numbers of images")
    teachers: list[str]
    devices: list[str]
    precisions: list[str]
    torch_versions: list[str]
    tool_versions: list[str] = Field(description="with the commit")
    made: tuple[str, str] | None = Field(description="first and last day, ISO 8601")


class StudyDocument(FrozenModel):
    """A study, as far as it has been run."""

    kind: Literal["study"] = "study"
    schema_version: Literal[1] = 1
    title: str
    command: list[str]
    study_sha256: str
    reference: str
    arms: list[str] = Field(description="in the study's order")
    stages: list[str] = Field(description="'train', then the fine-tunings")
    steps: NonNegative
    steps_done: NonNegative
    failed: dict[str, str] = Field(default_factory=dict, description="steps that failed, and the last line of each")
    not_begun: list[str] = Field(default_factory=list, description="steps that need one that failed")
    circumstances: Circumstances
    searches: list[SearchRow] = Field(default_factory=list)
    rows: list[StudyRow]
