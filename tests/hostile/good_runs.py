"""A search, a training and a fine-tuning that fit together, written without any computing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnascl_cli.artifacts.documents import (
    AdvFinetuneDocument,
    Architecture,
    AttackDocument,
    AttackResult,
    DataReference,
    DerivedDocument,
    Provenance,
    SearchDocument,
    TeacherReference,
    TrainDocument,
    TutorMap,
    Verdicts,
)
from rnascl_cli.artifacts.store import sha256_file, write_document
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.files import build_student, save_student
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.teachers.load import read_teacher

SPACE = SPACES["S3"]
WIDTHS = [choices[0] for choices in SPACE.block_choices]
DATA = DataReference(
    spec="digits",
    fingerprint="a" * 64,
    limit_train=40,
    limit_test=20,
    classes=[str(digit) for digit in range(10)],
    train_images=36,
    holdout_images=4,
    test_images=20,
)


def write_runs(root: Path, teacher: Path) -> None:
    """Write ``search/``, ``train/``, ``fine/`` and ``attack/`` under ``root``: all good, all of one network."""
    reference = read_teacher(str(teacher)).reference
    _search(root / "search", reference)
    derived = _derived(reference, {"search.json": sha256_file(root / "search" / "search.json")})
    architecture = derived.architecture
    for run, document in (("train", TrainDocument), ("fine", AdvFinetuneDocument)):
        folder = root / run
        write_document(folder / "derived.json", derived)
        inputs = {"derived.json": sha256_file(folder / "derived.json")}
        if run == "fine":
            inputs["train.json"] = sha256_file(root / "train" / "train.json")
        student = build_student(architecture, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
        fields: dict[str, Any] = {
            "provenance": provenance(reference, inputs),
            "paradigm": "rnas-cl",
            "architecture": architecture,
            "student_sha256": save_student(folder / "student.safetensors", student, architecture),
            "clean_accuracy": 0.5,
            "epochs": 2,
            "seconds": 1.5,
            "history": [{"epoch": epoch, "loss": 2.0 - epoch, "lr": 0.1, "seconds": 0.5} for epoch in range(2)],
        }
        if run == "fine":
            fields["method"] = "trades"
        write_document(folder / f"{document.model_fields['kind'].default}.json", document(**fields))
    _attack(root / "attack", sha256_file(root / "fine" / "student.safetensors"))


def provenance(teacher: TeacherReference | None = None, inputs: dict[str, str] | None = None) -> Provenance:
    """Some stage's, on forty digits."""
    return Provenance(
        tool_version="0.1.0",
        created="2030-01-01T00:00:00+00:00",
        command=["rnascl", "search"],
        recipe=Recipe(space=SPACE.name).model_dump(mode="json"),
        seed=0,
        data=DATA,
        teacher=teacher,
        inputs=inputs or {},
        device="cpu (test)",
        precision="fp32",
    )


def _derived(teacher: TeacherReference, inputs: dict[str, str]) -> DerivedDocument:
    cost = network_cost(SPACE, WIDTHS, num_classes=10)
    architecture = Architecture(
        space=SPACE.name, widths=WIDTHS, num_classes=10, input_size=32, params=cost.params, macs=cost.macs
    )
    student_layers = list(attention_layers(build_student(architecture), "conv"))
    teacher_layers = list(attention_layers(read_teacher(teacher.path).module, "conv"))
    return DerivedDocument(
        provenance=provenance(teacher, inputs),
        paradigm="rnas-cl",
        architecture=architecture,
        tutors=TutorMap(
            teacher=teacher,
            student_layers=student_layers,
            teacher_layers=teacher_layers,
            tutor=[index % len(teacher_layers) for index in range(len(student_layers))],
        ),
    )


def _search(folder: Path, teacher: TeacherReference) -> None:
    derived = _derived(teacher, {})
    assert derived.tutors is not None
    student_layers, teacher_layers = derived.tutors.student_layers, derived.tutors.teacher_layers
    document = SearchDocument(
        provenance=provenance(teacher),
        space=SPACE.name,
        paradigm="rnas-cl",
        num_classes=10,
        input_size=32,
        width_choices=[list(choices) for choices in SPACE.block_choices],
        width_logits=[[-float(index) for index in range(len(choices))] for choices in SPACE.block_choices],
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        tutor_logits=[
            [float(row == column) for column in range(len(teacher_layers))] for row in range(len(student_layers))
        ],
        temperature=0.5,
        expected_macs=6e6,
        history=[{"epoch": 0, "loss": 1.5, "temperature": 5.0, "seconds": 0.5}],
    )
    write_document(folder / "search.json", document)


def _attack(folder: Path, model_sha256: str) -> None:
    document = AttackDocument(
        provenance=provenance(None, {"student.safetensors": model_sha256}),
        model="runs/fine",
        model_sha256=model_sha256,
        protocol="pixel",
        n=3,
        images=[0, 4, 9],
        clean_accuracy=2 / 3,
        worst_case_accuracy=1 / 3,
        results=[
            AttackResult(
                attack="pgd20",
                eps="8/255",
                eps_value=8 / 255,
                steps=20,
                accuracy=1 / 3,
                confidence_interval=(0.0, 0.5),
                seconds=0.5,
                images_per_second=6.0,
            )
        ],
        verdicts=[Verdicts(attack="pgd20", eps="8/255", broken=[0, 9])],
        warnings=[],
    )
    write_document(folder / "attack.json", document)
