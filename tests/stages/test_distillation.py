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
from rnascl_cli.data import ImageSet
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.files import build_student
from rnascl_cli.models.student import Student
from rnascl_cli.recipes import SGD, AttentionSettings, KLSettings, TrainSettings
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.training.distillation import DistillationModel, distilling, distinct_tutors
from rnascl_cli.stages.training.train import TrainFromScratchStep
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
    with distilling(student, teacher, derived, paradigm=paradigm, attention=ATTENTION, kl=KL, compute=CPU) as found:
        yield found


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


def test_passes_without_an_attention_term_take_no_maps(distillation: DistillationModel) -> None:
    """The logits are the same, and the recorder stays empty."""
    assert distillation._recorder is not None
    with torch.no_grad(), fixed_statistics(distillation.student.train()):
        answer = distillation.forward_with_maps(X_BCHW)
        assert torch.equal(distillation.logits(X_BCHW), answer.logits_BK)
    assert not distillation._recorder._maps


@pytest.mark.parametrize(
    ("paradigm", "kl_weight", "taught"),
    [("rnas-cl", 1.0, True), ("icc", 0.0, True), ("kl", 1.0, True), ("kl", 0.0, False), ("standard", 1.0, False)],
)
def test_whether_there_are_terms_of_the_teacher(
    student: Student, teacher: Teacher, derived: DerivedDocument, paradigm: Any, kl_weight: float, taught: bool
) -> None:
    kl = KLSettings(weight=kl_weight)
    with distilling(student, teacher, derived, paradigm=paradigm, attention=ATTENTION, kl=kl, compute=CPU) as found:
        with torch.no_grad():
            terms = found.teacher_terms(as_batch(X_BCHW), found.forward_with_maps(X_BCHW))
        assert found.has_teacher_terms == bool(terms) == taught


def test_equation_3_by_hand(
    distillation: DistillationModel, student: Student, teacher: Teacher, derived: DerivedDocument
) -> None:
    expected = by_hand(student, teacher, derived)
    settings = TrainSettings(optimiser=SGD(lr=1e-9), attention=ATTENTION, kl=KL)
    holdout: ImageSet = image_set(0)
    found = TrainFromScratchStep(settings, distillation, holdout=holdout, compute=CPU, seed=0).step(
        as_batch(X_BCHW, Y_B)
    )
    assert {name: found[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)
    total = expected["ce"] + 0.5 * expected["kl"] + 5.0 * expected["attention"]
    assert found["loss"].item() == pytest.approx(total, rel=1e-4)


def test_a_swapped_tutor_changes_the_attention_term(
    student: Student, teacher: Teacher, derived: DerivedDocument
) -> None:
    assert derived.tutors is not None
    found = []
    for shift in (0, 1):
        tutor = [(index + shift) % len(derived.tutors.teacher_layers) for index in derived.tutors.tutor]
        document = derived.model_copy(update={"tutors": derived.tutors.model_copy(update={"tutor": tutor})})
        with (
            distilling(
                student, teacher, document, paradigm="icc", attention=ATTENTION, kl=KL, compute=CPU
            ) as distillation,
            fixed_statistics(student),
        ):
            found.append(
                distillation.teacher_terms(as_batch(X_BCHW), distillation.forward_with_maps(X_BCHW))["attention"].item()
            )
    assert abs(found[0] - found[1]) > 1e-4


@pytest.mark.parametrize("paradigm", ["rnas-cl", "icc", "kl"])
def test_terms_have_gradients_for_the_student_only(
    paradigm: Paradigm, student: Student, teacher: Teacher, derived: DerivedDocument
) -> None:
    with distilling(
        student, teacher, derived, paradigm=paradigm, attention=ATTENTION, kl=KL, compute=CPU
    ) as distillation:
        terms = distillation.teacher_terms(as_batch(X_BCHW), distillation.forward_with_maps(X_BCHW))
    assert set(terms) == {"rnas-cl": {"kl", "attention"}, "icc": {"attention"}, "kl": {"kl"}}[paradigm]
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert student.stem.conv.weight.grad is not None
    assert student.stem.conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert not teacher.module.training


def test_without_a_teacher_there_are_no_terms(student: Student, derived: DerivedDocument) -> None:
    with distilling(
        student, None, derived, paradigm="standard", attention=ATTENTION, kl=KL, compute=CPU
    ) as distillation:
        answer = distillation.forward_with_maps(X_BCHW)
        assert answer.maps_BSP is None
        assert distillation.teacher_terms(as_batch(X_BCHW), answer) == {}


def test_taps_are_gone_afterwards(distillation: DistillationModel, student: Student, teacher: Teacher) -> None:
    hooked = [len(module._forward_hooks) for model in (student, teacher.module) for module in model.modules()]
    assert sum(hooked) > 0


def test_only_the_distinct_tutors_are_tapped(derived: DerivedDocument, teacher: Teacher, student: Student) -> None:
    assert derived.tutors is not None
    distinct = distinct_tutors(derived.tutors)
    names = derived.tutors.teacher_layers
    assert distinct == [name for index, name in enumerate(names) if index in set(derived.tutors.tutor)]
    assert len(distinct) < len(names)

    def tapped() -> int:
        return sum(len(module._forward_hooks) for module in teacher.module.modules())

    with distilling(student, teacher, derived, paradigm="icc", attention=ATTENTION, kl=KL, compute=CPU):
        assert tapped() == len(distinct)
    assert tapped() == 0
