"""Eq. (3) by hand: a student under its tutors, the terms one by one.

Shape suffixes: B images, K classes, P pixels of a map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli.artifacts.documents import Architecture, DerivedDocument, Paradigm, Provenance, TutorMap
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.files import build_student
from rnascl_cli.models.student import Student
from rnascl_cli.recipes.settings import SGD, AttentionSettings, KLSettings, TrainSettings
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.training.distillation import DistillationModel, distilling, distinct_tutors
from rnascl_cli.stages.training.step import StudentStep
from rnascl_cli.teachers.load import Teacher, read_teacher
from tests.batches import as_batch
from tests.engine.toy import CPU, image_set
from tests.models.slimming import shaken

pytestmark = pytest.mark.unit

SPACE = SPACES["S3"]
WIDTHS = SPACE.smallest
ATTENTION = AttentionSettings(gamma=5.0, map_size=4)
KL = KLSettings(weight=0.5)
X_BCHW = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y_B = torch.arange(6)


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    """The tiny teacher, with numbers of its own in every BatchNorm."""
    read = read_teacher(str(tiny_teacher))
    shaken(read.module, 3)
    return read


@pytest.fixture
def derived(teacher: Teacher, provenance: Provenance) -> DerivedDocument:
    """A network whose tutors repeat, skip and go backwards."""
    cost = network_cost(SPACE, WIDTHS, num_classes=10)
    architecture = Architecture(
        space="S3", widths=WIDTHS, num_classes=10, input_size=32, params=cost.params, macs=cost.macs
    )
    names = list(attention_layers(build_student(architecture)))
    layers = list(attention_layers(teacher.module))
    tutors = TutorMap(
        teacher=teacher.reference,
        student_layers=names,
        teacher_layers=layers,
        tutor=[(7 * index + 5) % (len(layers) - 2) for index in range(len(names))][::-1],
    )
    return DerivedDocument(provenance=provenance, paradigm="rnas-cl", architecture=architecture, tutors=tutors)


@pytest.fixture
def student(derived: DerivedDocument) -> Student:
    """The network, with random numbers everywhere."""
    torch.manual_seed(4)
    built = build_student(derived.architecture)
    nn.init.normal_(built.classifier.weight, std=0.3)
    shaken(built, 5)
    return built.train()


@pytest.fixture
def distillation(
    student: Student, teacher: Teacher, derived: DerivedDocument, request: pytest.FixtureRequest
) -> Iterator[DistillationModel]:
    """The student under its teacher; the paradigm may be given as a parameter."""
    paradigm: Paradigm = getattr(request, "param", "rnas-cl")
    with distilling(student, teacher, derived, paradigm=paradigm, attention=ATTENTION, kl=KL, compute=CPU) as model:
        yield model


def unit_maps_by_hand(model: nn.Module, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and each conv's F(A) / ||F(A)|| at ``side`` x ``side``, image by image."""
    maps: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            energy_BHW = sum((output[:, channel] ** 2 for channel in range(output.shape[1])), torch.zeros(()))
            if energy_BHW.shape[-1] > side:
                energy_BHW = F.avg_pool2d(energy_BHW[:, None], energy_BHW.shape[-1] // side)[:, 0]
            assert energy_BHW.shape[-1] == side
            flat_BP = energy_BHW.flatten(1)
            maps[name] = flat_BP / (flat_BP**2).sum(dim=1, keepdim=True).sqrt()

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in attention_layers(model).items()]
    with torch.no_grad(), fixed_statistics(model):
        logits = model(X_BCHW)
    for handle in handles:
        handle.remove()
    return logits, maps


def by_hand(student: Student, teacher: Teacher, derived: DerivedDocument) -> dict[str, float]:
    """The terms of eq. (3) in plain loops."""
    assert derived.tutors is not None
    logits_BK, student_maps = unit_maps_by_hand(student, 4)
    teacher_BK, teacher_maps = unit_maps_by_hand(teacher.module, 4)
    p, q = logits_BK.double().softmax(1), teacher_BK.double().softmax(1)
    attention = 0.0
    for name, index in zip(derived.tutors.student_layers, derived.tutors.tutor, strict=True):
        gap_BP = student_maps[name] - teacher_maps[derived.tutors.teacher_layers[index]]
        attention += sum(math.sqrt(float((row**2).sum())) for row in gap_BP) / len(gap_BP)
    return {
        "ce": -sum(math.log(p[b, Y_B[b]].item()) for b in range(6)) / 6,
        "kl": float((p * (p / q).log()).sum()) / 6,
        "attention": attention / (len(derived.tutors.student_layers) * len(derived.tutors.teacher_layers)),
    }


def step_for(model: DistillationModel) -> StudentStep:
    """A training step that leaves the weights almost as they are."""
    settings = TrainSettings(optimiser=SGD(lr=1e-9), attention=ATTENTION, kl=KL)
    return StudentStep("train", settings, model, holdout=image_set(0), compute=CPU, seed=0)


def terms_of(model: DistillationModel) -> dict[str, Tensor]:
    """The terms of eq. (3) for the images."""
    batch = as_batch(X_BCHW, Y_B)
    return step_for(model).loss(batch, model.teacher_output(batch), None).terms


def hooks(*models: nn.Module) -> int:
    return sum(len(module._forward_hooks) for model in models for module in model.modules())


def test_forward_records_no_maps(distillation: DistillationModel) -> None:
    """The logits are those of ``forward_with_maps``, and the next maps are of the next images alone."""
    with torch.no_grad(), fixed_statistics(distillation.student.train()):
        output = distillation.forward_with_maps(X_BCHW)
        assert torch.equal(distillation.forward(X_BCHW), output.logits_BK)
        again = distillation.forward_with_maps(X_BCHW)
    assert output.maps_BSP is not None
    assert again.maps_BSP is not None
    assert torch.equal(again.maps_BSP, output.maps_BSP)


@pytest.mark.parametrize(
    ("paradigm", "kl_weight", "expected"),
    [
        ("rnas-cl", 1.0, {"kl", "attention"}),
        ("icc", 0.0, {"attention"}),
        ("kl", 1.0, {"kl"}),
        ("kl", 0.0, set()),
        ("standard", 1.0, set()),
    ],
)
def test_teacher_terms_of_each_paradigm(
    student: Student, teacher: Teacher, derived: DerivedDocument, paradigm: Any, kl_weight: float, expected: set[str]
) -> None:
    kl, given = KLSettings(weight=kl_weight), None if paradigm == "standard" else teacher
    with distilling(student, given, derived, paradigm=paradigm, attention=ATTENTION, kl=kl, compute=CPU) as model:
        assert set(terms_of(model)) == {"ce", *expected}
        assert model.has_teacher_terms == bool(expected)


def test_equation_3_by_hand(
    distillation: DistillationModel, student: Student, teacher: Teacher, derived: DerivedDocument
) -> None:
    expected = by_hand(student, teacher, derived)
    found = step_for(distillation).step(as_batch(X_BCHW, Y_B))
    assert {name: found[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    total = expected["ce"] + 0.5 * expected["kl"] + 5.0 * expected["attention"]
    assert found["loss"].item() == pytest.approx(total, rel=1e-4)


def test_another_tutor_map_changes_the_attention_term(
    student: Student, teacher: Teacher, derived: DerivedDocument
) -> None:
    assert derived.tutors is not None
    found = []
    for shift in (0, 1):
        tutor = [(index + shift) % len(derived.tutors.teacher_layers) for index in derived.tutors.tutor]
        document = derived.model_copy(update={"tutors": derived.tutors.model_copy(update={"tutor": tutor})})
        with (
            distilling(student, teacher, document, paradigm="icc", attention=ATTENTION, kl=KL, compute=CPU) as model,
            fixed_statistics(student),
        ):
            found.append(terms_of(model)["attention"].item())
    assert abs(found[0] - found[1]) > 1e-4


@pytest.mark.parametrize("paradigm", ["rnas-cl", "icc", "kl"])
def test_teacher_terms_have_gradients_for_the_student_only(
    paradigm: Paradigm, student: Student, teacher: Teacher, derived: DerivedDocument
) -> None:
    with distilling(student, teacher, derived, paradigm=paradigm, attention=ATTENTION, kl=KL, compute=CPU) as model:
        terms = terms_of(model)
    torch.stack([term for name, term in terms.items() if name != "ce"]).sum().backward()  # type: ignore[no-untyped-call]
    assert student.stem.conv.weight.grad is not None
    assert student.stem.conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert not teacher.module.training


def test_without_a_teacher_no_maps_are_recorded(student: Student, derived: DerivedDocument) -> None:
    with distilling(student, None, derived, paradigm="standard", attention=ATTENTION, kl=KL, compute=CPU) as model:
        assert model.forward_with_maps(X_BCHW).maps_BSP is None
        assert hooks(student) == 0


def test_only_distinct_tutors_have_hooks(derived: DerivedDocument, teacher: Teacher, student: Student) -> None:
    assert derived.tutors is not None
    distinct = distinct_tutors(derived.tutors)
    names = derived.tutors.teacher_layers
    assert distinct == [name for index, name in enumerate(names) if index in set(derived.tutors.tutor)]
    assert len(distinct) < len(names)

    with distilling(student, teacher, derived, paradigm="icc", attention=ATTENTION, kl=KL, compute=CPU):
        assert hooks(teacher.module) == len(distinct)
        assert hooks(student) == len(derived.tutors.student_layers)
    assert hooks(teacher.module, student) == 0
