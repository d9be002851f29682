"""Hand-made run directories for the report: small numbers, real documents, hashes that link."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from rnascl_cli.artifacts.documents import (
    AdvFinetuneDocument,
    Architecture,
    AttackDocument,
    AttackResult,
    AuditCheck,
    Baseline,
    DataReference,
    DerivedDocument,
    Document,
    Paradigm,
    Protocol,
    Provenance,
    SearchDocument,
    TeacherReference,
    TrainDocument,
    TutorMap,
    TutorOrigin,
    Verdicts,
)
from rnascl_cli.artifacts.store import sha256_file, write_document
from rnascl_cli.spaces import network_cost, space_named

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WIDTHS = [16, 16, 12, 32, 28, 24, 64, 60, 52]
TEACHER_SHA256 = hashlib.sha256(b"teacher").hexdigest()
TEACHER = TeacherReference(
    source="teachers/r18.safetensors", path="/somewhere/r18.safetensors", architecture="r18", sha256=TEACHER_SHA256
)
STUDENT_LAYERS = [f"block{index}.project" for index in range(9)]
TEACHER_LAYERS = [f"layer{index}.conv" for index in range(12)]


def sha256(text: str) -> str:
    """Return the sha256 of a word: a stand-in for a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def data(name: str = "cifar", *, spec: str = "folder:/images/cifar10", test_images: int = 10000) -> DataReference:
    """Return a data reference whose fingerprint is of ``name``."""
    return DataReference(
        spec=spec,
        fingerprint=sha256(name),
        classes=CIFAR_CLASSES,
        train_images=49000,
        holdout_images=1000,
        test_images=test_images,
    )


def provenance(
    stage: str,
    *,
    reference: DataReference | None = None,
    inputs: dict[str, str] | None = None,
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
    teacher: TeacherReference | None = TEACHER,
) -> Provenance:
    """Return a provenance of today's tool on a CPU."""
    return Provenance(
        tool_version="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        command=["rnascl", stage, "--out", f"runs/{stage} 1"],
        recipe=recipe or {},
        seed=seed,
        data=reference or data(),
        teacher=teacher,
        inputs=inputs or {},
        device="cpu",
        precision="fp32",
        torch_version="2.8.0",
        commit="abcdef123456",
    )


def history(epochs: int, *, search: bool = False, adversarial: bool = False) -> list[dict[str, Any]]:
    """Return an epoch's metrics for each of ``epochs``."""
    entries = []
    for epoch in range(epochs):
        fall = math.exp(-0.3 * epoch)
        entry: dict[str, Any] = {
            "epoch": epoch,
            "loss": 0.8 + 3 * fall,
            "ce": 0.5 + 1.5 * fall,
            "kl": 0.2 + fall,
            "attention": 0.03 + 0.02 * fall,
            "train_accuracy": 0.9 - 0.5 * fall,
            "holdout_accuracy": 0.85 - 0.5 * fall,
            "lr": 0.1 if epoch < 0.75 * epochs else 0.01,
            "seconds": 3.0,
            "images_per_second": 1000.0,
            "peak_memory_bytes": None,
        }
        if adversarial:
            entry["adversarial"] = 0.1 + 0.2 * fall
        if search:
            entry |= {
                "temperature": 5 * math.exp(-0.045 * 10 * epoch),
                "expected_macs": 6.2e6 - 8e5 * (1 - fall),
                "width_entropy": 0.1 + 0.9 * fall,
                "tutor_entropy": 0.2 + 0.8 * fall,
                "width_top_weight": 1 - 0.7 * fall,
                "tutor_top_weight": 1 - 0.9 * fall,
            }
        entries.append(entry)
    return entries


def write(folder: Path, name: str, document: Document) -> str:
    """Write a document and return its sha256."""
    write_document(folder / name, document)
    return sha256_file(folder / name)


def write_search(
    folder: Path, *, seed: int = 0, paradigm: Paradigm = "rnas-cl", epochs: int = 6, tutor_logit: float = 3.0
) -> str:
    """Write ``search.json`` of S3 and return its sha256; ``tutor_logit`` is that of the chosen tutors."""
    space = space_named("S3")
    choices = [list(block) for block in space.block_choices]
    learned_tutor_maps = paradigm in ("rnas-cl", "icc")
    document = SearchDocument(
        provenance=provenance("search", seed=seed),
        space="S3",
        paradigm=paradigm,
        num_classes=10,
        input_size=32,
        width_choices=choices,
        width_logits=[
            [2.0 if index == block % len(row) else 0.5 for index in range(len(row))]
            for block, row in enumerate(choices)
        ],
        student_layers=STUDENT_LAYERS,
        teacher_layers=TEACHER_LAYERS if learned_tutor_maps else [],
        tutor_logits=[
            [tutor_logit if column == tutor else 0.1 * (column % 3) for column in range(len(TEACHER_LAYERS))]
            for tutor in tutors(seed)
        ]
        if learned_tutor_maps
        else [],
        temperature=3.8,
        expected_macs=5.6e6,
        history=history(epochs, search=True),
    )
    return write(folder, "search.json", document)


def tutors(seed: int) -> list[int]:
    """Return a tutor for each student layer; seeds 0 and 1 agree on six of nine."""
    return [0, 2, 2, 5, 5, 7, 11, 11, 11] if seed == 0 else [0, 2, 2, 5, 5, 7, 9, 9, 9]


def architecture(space: str = "S3", widths: list[int] | None = None) -> Architecture:
    """Return an architecture with its true cost."""
    chosen = widths or WIDTHS
    params, macs = network_cost(space_named(space), chosen, num_classes=10)
    return Architecture(space=space, widths=chosen, num_classes=10, input_size=32, params=params, macs=macs)


def write_derived(
    folder: Path,
    search_sha256: str,
    *,
    seed: int = 0,
    paradigm: Paradigm = "rnas-cl",
    origin: TutorOrigin = "searched",
) -> str:
    """Write ``derived.json`` and return its sha256; tutors that were not searched are all the last layer."""
    tutor_map = TutorMap(
        teacher=TEACHER,
        student_layers=STUDENT_LAYERS,
        teacher_layers=TEACHER_LAYERS,
        tutor=tutors(seed) if origin == "searched" else [len(TEACHER_LAYERS) - 1] * len(STUDENT_LAYERS),
        origin=origin,
    )
    document = DerivedDocument(
        provenance=provenance("derive", inputs={"search.json": search_sha256}, seed=seed),
        paradigm=paradigm,
        architecture=architecture(),
        tutors=tutor_map if paradigm in ("rnas-cl", "icc") else None,
    )
    return write(folder, "derived.json", document)


def write_train(
    folder: Path,
    *,
    student: str,
    derived_sha256: str | None = None,
    clean: float = 0.894,
    paradigm: Paradigm = "rnas-cl",
    reference: DataReference | None = None,
    epochs: int = 8,
    seed: int = 0,
    distill: Baseline | None = None,
) -> str:
    """Write ``train.json`` of a student whose weights hash as ``student``; return the document's sha256."""
    document = TrainDocument(
        provenance=provenance(
            "train",
            reference=reference,
            inputs={"derived.json": derived_sha256} if derived_sha256 else {},
            recipe={"train": {"epochs": epochs, "kl": {"weight": 1.0}}},
            seed=seed,
            teacher=None if paradigm == "standard" and distill is None else TEACHER,
        ),
        paradigm=paradigm,
        distill=distill,
        architecture=architecture(),
        student_sha256=sha256(student),
        clean_accuracy=clean,
        epochs=epochs,
        seconds=24.0,
        history=history(epochs),
    )
    return write(folder, "train.json", document)


def write_finetune(
    folder: Path,
    *,
    student: str,
    source: str,
    clean: float = 0.83,
    paradigm: Paradigm = "rnas-cl",
    distill: Baseline | None = None,
) -> str:
    """Write ``adv-finetune.json`` of a student fine-tuned from the weights of ``source``."""
    document = AdvFinetuneDocument(
        provenance=provenance(
            "adv-finetune",
            inputs={"student.safetensors": sha256(source)},
            teacher=None if paradigm == "standard" else TEACHER,
        ),
        method="trades",
        paradigm=paradigm,
        distill=distill,
        architecture=architecture(),
        student_sha256=sha256(student),
        clean_accuracy=clean,
        epochs=2,
        seconds=12.0,
        history=history(2, adversarial=True),
    )
    return write(folder, "adv-finetune.json", document)


def result(
    attack: str, eps: int, accuracy: float, *, subset: bool = True, step: float | None = 2 / 255
) -> AttackResult:
    """Return a result at eps/255."""
    return AttackResult(
        attack=attack,
        eps=f"{eps}/255",
        eps_value=eps / 255,
        steps=20 if attack == "pgd20" else 1,
        step_size=step,
        accuracy=accuracy,
        confidence_interval=(max(0.0, accuracy - 0.04), min(1.0, accuracy + 0.04)) if subset else None,
        seconds=4.0,
        images_per_second=125.0,
    )


def write_attack(
    folder: Path,
    *,
    student: str,
    results: list[AttackResult] | None = None,
    protocol: Protocol = "pixel",
    n: int = 500,
    clean: float = 0.84,
    worst: float | None = 0.38,
    verdicts: list[Verdicts] | None = None,
    warnings: list[str] | None = None,
    reference: DataReference | None = None,
    asked: dict[str, Any] | None = None,
    model: str = "runs/model",
    audit: list[AuditCheck] | None = None,
) -> str:
    """Write ``attack.json`` on the weights of ``student``."""
    document = AttackDocument(
        provenance=provenance("attack", reference=reference, recipe={"attack": asked} if asked else {}),
        model=model,
        model_sha256=sha256(student),
        protocol=protocol,
        n=n,
        images=list(range(n)),
        clean_accuracy=clean,
        worst_case_accuracy=worst,
        results=[result("fgsm", 8, 0.5), result("pgd20", 8, 0.43), result("aa", 8, 0.38, step=None)]
        if results is None
        else results,
        verdicts=verdicts or [],
        warnings=warnings or [],
        audit=audit,
    )
    return write(folder, "attack.json", document)


def card(*failed: str) -> list[AuditCheck]:
    """Return an audit of three checks, of which the named ones failed."""
    names = ("gradients are there", "many steps are no worse than one", "AutoAttack is close to PGD")
    assert set(failed) <= set(names)
    return [AuditCheck(name=name, passed=name not in failed, detail=f"measured: {name}") for name in names]


def write_control(
    runs: Path, *, seed: int, origin: TutorOrigin, robust: float, clean: float = 0.7, epochs: int = 8
) -> str:
    """Write a student under searched tutors or a control, of its seed's search, and its attack; return its name."""
    searched = write_search(runs / f"s3-{seed}", seed=seed)
    name = f"{origin}-{seed}"
    derived = write_derived(runs / name, searched, seed=seed, origin=origin)
    write_train(runs / name, student=name, derived_sha256=derived, clean=clean, seed=seed, epochs=epochs)
    write_attack(runs / name, student=name, clean=clean, results=[result("pgd20", 8, robust)], worst=robust)
    return name


def write_chain(runs: Path) -> Path:
    """Write search, train, adv-finetune with attacks on the last two, and return the folder of runs."""
    searched = write_search(runs / "s3")
    derived = write_derived(runs / "s3-train", searched)
    write_train(runs / "s3-train", student="student", derived_sha256=derived)
    write_attack(
        runs / "s3-train",
        student="student",
        clean=0.894,
        worst=0.0,
        results=[result("fgsm", 8, 0.2), result("pgd20", 8, 0.004), result("aa", 8, 0.0, step=None)],
        warnings=["PGD-20 keeps 34 % and AutoAttack 0 %: the gradients are masked"],
    )
    write_finetune(runs / "s3-trades", student="robust student", source="student")
    write_attack(runs / "s3-trades", student="robust student")
    return runs
