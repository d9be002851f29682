"""One good document of every kind."""

from __future__ import annotations

from typing import Any

from rnascl_cli.artifacts.documents import (
    AdvFinetuneDocument,
    AnyDocument,
    Architecture,
    AttackDocument,
    AttackResult,
    DerivedDocument,
    Provenance,
    SearchDocument,
    TeacherReference,
    TrainDocument,
    TutorMap,
    Verdicts,
)

TEACHER = TeacherReference(source="r8", path="/t/r8.safetensors", architecture="r8", sha256="b" * 64)


def architecture() -> Architecture:
    """Some student's."""
    return Architecture(space="S3", widths=[16, 12], num_classes=10, input_size=32, params=7, macs=8)


def every_document(provenance: Provenance) -> dict[str, AnyDocument]:
    """Each kind's example, by kind."""
    trained: dict[str, Any] = {
        "provenance": provenance,
        "paradigm": "rnas-cl",
        "architecture": architecture(),
        "student_sha256": "d" * 64,
        "clean_accuracy": 0.5,
        "epochs": 2,
        "seconds": 1.25,
        "history": [{"epoch": 0, "loss": 1.5}],
    }
    found: list[AnyDocument] = [
        SearchDocument(
            provenance=provenance,
            space="S3",
            paradigm="rnas-cl",
            num_classes=10,
            input_size=32,
            width_choices=[[16, 12], [32, 28, 24]],
            width_logits=[[0.5, -0.5], [0.0, 1e-9, -3.25]],
            student_layers=["stem.conv", "head.conv"],
            teacher_layers=["conv1", "conv2", "conv3"],
            tutor_logits=[[0.0, 1.0, 2.0], [3.0, 0.25, -1.0]],
            temperature=0.5,
            expected_macs=6.64e6,
            history=[{"epoch": 0, "loss": 1.5, "note": None}],
        ),
        DerivedDocument(
            provenance=provenance,
            paradigm="icc",
            architecture=architecture(),
            tutors=TutorMap(teacher=TEACHER, student_layers=["a", "b"], teacher_layers=["x", "y"], tutor=[1, 0]),
        ),
        TrainDocument(**trained),
        AdvFinetuneDocument(**trained, method="trades"),
        AttackDocument(
            provenance=provenance,
            model="runs/x",
            model_sha256="e" * 64,
            protocol="pixel",
            n=3,
            images=[4, 0, 9],
            clean_accuracy=2 / 3,
            worst_case_accuracy=0.0,
            results=[
                AttackResult(
                    attack="pgd20",
                    eps="8/255",
                    eps_value=8 / 255,
                    steps=20,
                    accuracy=1 / 3,
                    confidence_interval=(0.0, 0.5),
                    seconds=0.1,
                    images_per_second=30.0,
                )
            ],
            verdicts=[Verdicts(attack="pgd20", eps="8/255", broken=[0, 9])],
            warnings=["é: a warning\nin two lines"],
        ),
    ]
    return {document.kind: document for document in found}
