"""``train --distill``: a distillation baseline of Figure 11 in place of the teacher terms of eq. (3).

    L = w_ce CE(y, p) + w baseline(student, teacher)        on clean images; w_ce is 1, but 0.1 for ``kd``

docs/method.md says what each baseline compares and at which layers.

Shape suffixes: B images of a batch, N images of the training set, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rnascl_cli.artifacts.documents import Baseline, DerivedDocument, Paradigm
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.core.random_streams import generator
from rnascl_cli.data import Batch, Data
from rnascl_cli.distill.baselines.at import attention_transfer_loss
from rnascl_cli.distill.baselines.crd import ContrastiveLoss, draw_negatives, most_negatives
from rnascl_cli.distill.baselines.kd import soft_label_loss
from rnascl_cli.distill.baselines.pkt import neighbour_loss
from rnascl_cli.distill.baselines.rkd import relational_loss
from rnascl_cli.distill.baselines.sp import similarity_loss
from rnascl_cli.distill.baselines.vid import VariationalLoss
from rnascl_cli.distill.tutor_baselines import same_depth_tutors
from rnascl_cli.engine.training_loop import at_current_step
from rnascl_cli.models.input_size import check_input_size
from rnascl_cli.models.student import Student
from rnascl_cli.recipes.baselines import AT, CRD, KD, PKT, RKD, SP, VID, BaselineSettings
from rnascl_cli.recipes.paradigms import required_baseline_teacher, trained_paradigm
from rnascl_cli.recipes.settings import TrainSettings
from rnascl_cli.spaces import space_named
from rnascl_cli.stages.training.sanity_checks import constant
from rnascl_cli.stages.training.setup import TrainingRun
from rnascl_cli.teachers.features import (
    FeaturePoints,
    FeatureRecorder,
    Point,
    recording_features,
    student_points,
    teacher_points,
)
from rnascl_cli.teachers.forward import FrozenTeacher, frozen_teacher, refuse_changed_teacher
from rnascl_cli.teachers.load import Teacher, read_teacher

Compared = Literal["logits", "the feature maps of its stages", "the output of its last stage", "its embedding"]
COMPARES: dict[Baseline, Compared] = {
    "kd": "logits",
    "at": "the feature maps of its stages",
    "sp": "the output of its last stage",
    "vid": "the feature maps of its stages",
    "rkd": "its embedding",
    "crd": "its embedding",
    "pkt": "its embedding",
}
Features = tuple[Tensor, Tensor]
"""Features of student and teacher for a batch, at one pair of layers."""


@dataclass(frozen=True)
class BaselineTeacher:
    """A baseline's settings, its teacher, and the layers of the teacher's features."""

    settings: BaselineSettings
    teacher: Teacher
    points: FeaturePoints


def training_paradigm(settings: TrainSettings, derived: DerivedDocument) -> Paradigm:
    """Return the paradigm of a training of this network; see :func:`~rnascl_cli.recipes.paradigms.trained_paradigm`.

    Raises:
        UserError: A baseline is combined with a paradigm that has teacher terms, or with adversarial training.
    """
    return trained_paradigm(settings, searched=derived.paradigm)


def find_baseline_teacher(
    source: str | None, settings: BaselineSettings, derived: DerivedDocument, *, data: Data
) -> BaselineTeacher:
    """Load the teacher of a baseline and find the layers that the loss compares.

    Args:
        source: The ``--teacher`` value, or the teacher of the search.
        settings: Settings of the baseline.
        derived: The network; its teacher's file must not have changed.
        data: The training data.

    Raises:
        UserError: There is no teacher, it cannot be read, takes images of another size, has other classes (``kd``) or
            lacks the features; or ``crd`` has images of one class only.
    """
    name = settings.name
    source = required_baseline_teacher(source, settings)
    teacher = read_teacher(source)
    if name == "kd" and teacher.num_classes != data.num_classes:
        raise UserError(
            f"--distill kd: compares class by class, and --teacher {source} has {teacher.num_classes} classes, the "
            f"data {data.num_classes}; use another teacher, or a baseline that compares features"
        )
    refuse_changed_teacher(teacher, derived)
    check_input_size(teacher.module, f"--teacher {source}", input_size=data.input_size)
    points = teacher_points(teacher.module, input_size=data.input_size)
    available: dict[Compared, bool] = {
        "logits": True,
        "the feature maps of its stages": bool(points.stages) and None not in points.channels,
        "the output of its last stage": bool(points.stages),
        "its embedding": points.embedding is not None,
    }
    if not available[COMPARES[name]]:
        possible = ", ".join(baseline for baseline, compared in COMPARES.items() if available[compared])
        raise UserError(
            f"--distill {name}: compares {COMPARES[name]}, which is not known for --teacher {source}; "
            f"possible with this teacher: {possible}"
        )
    if name == "crd" and not most_negatives(data.train.labels_N):
        raise UserError("--distill crd: needs training images of two classes or more")
    return BaselineTeacher(settings, teacher, points)


class BaselineLoss:
    """The loss of a baseline between a student and its teacher; built by :func:`baseline_loss`.

    Attributes:
        module: Parameters and memory of the loss itself, for the optimizer and the checkpoint; empty for most.
        weights: Of the loss terms ``ce`` and ``distill``.
    """

    def __init__(
        self,
        settings: BaselineSettings,
        module: nn.Module,
        teacher: FrozenTeacher,
        *,
        student_features: FeatureRecorder,
        teacher_features: FeatureRecorder,
        labels_N: Tensor,
    ) -> None:
        self.module = module
        self.weights = {"distill": settings.weight, "ce": settings.ce_weight if isinstance(settings, KD) else 1.0}
        self._settings, self._teacher = settings, teacher
        self._student_features, self._teacher_features = student_features, teacher_features
        self._labels_N, self._most_negatives = labels_N, most_negatives(labels_N)
        self._noise, self._checked = torch.Generator(), False

    def start_epoch(self, noise: torch.Generator) -> None:
        """Draw this epoch's negatives from ``noise``, and check the teacher's output again."""
        self._noise, self._checked = noise, False

    def end_epoch(self) -> None:
        """Write new teacher outputs to disk."""
        self._teacher.flush_cache()

    def term(self, batch: Batch, logits_BK: Tensor) -> Tensor:
        """Return the unweighted loss of a batch, right after the student's forward pass that gave ``logits_BK``.

        Raises:
            RunError: The teacher's output is the same for every image of the epoch's first batch.
        """
        teacher_BK = self._teacher(batch).logits_BK
        features = zip(self._student_features.take(), self._teacher_features.take(), strict=True)
        pairs = list(features) or [(logits_BK, teacher_BK)]
        self._check_teacher(pairs[-1][1])
        return self._compare(pairs, batch)

    def _compare(self, pairs: list[Features], batch: Batch) -> Tensor:
        student, teacher = pairs[-1]
        match self._settings:
            case KD(temperature=temperature):
                return soft_label_loss(student, teacher, temperature=temperature)
            case AT():
                return attention_transfer_loss(pairs)
            case SP():
                return similarity_loss(student, teacher)
            case VID():
                return self._of_module(pairs)
            case RKD(distance=distance, angle=angle):
                return relational_loss(student, teacher, distance=distance, angle=angle)
            case CRD(negatives=negatives):
                rows_B, negatives_BK = batch.rows_B.to(student.device), self._draw(batch.y_B, negatives)
                return self._of_module(student, teacher, rows_B=rows_B, negatives_BK=negatives_BK)
            case PKT():
                return neighbour_loss(student, teacher)

    def _of_module(self, *features: object, **others: Tensor) -> Tensor:
        loss: Tensor = self.module(*features, **others)
        return loss

    def _draw(self, y_B: Tensor, count: int) -> Tensor:
        # Many numbers, so they are drawn on the device; their seed comes from the epoch's stream on the CPU.
        seed = int(torch.randint(2**62, (), generator=self._noise))
        noise = torch.Generator(self._labels_N.device).manual_seed(seed)
        return draw_negatives(y_B, self._labels_N, count=min(count, self._most_negatives), generator=noise)

    def _check_teacher(self, features_B: Tensor) -> None:
        """Check the first batch of an epoch only, because the result must be copied from the device."""
        if not self._checked and constant(features_B.flatten(1)):
            what = "the teacher's output is the same for every image of the batch; use another --teacher"
            raise RunError(at_current_step("distill", what))
        self._checked = True


@contextlib.contextmanager
def baseline_loss(
    student: Student, baseline: BaselineTeacher, derived: DerivedDocument, training: TrainingRun
) -> Iterator[BaselineLoss]:
    """Record the features of a student and its teacher while the context is open, and yield the loss between them.

    Args:
        student: The student; its features are on the device that it is moved to.
        baseline: The baseline's settings and teacher.
        derived: The student's architecture.
        training: Images, device and seed. The parameters of the loss itself have a random stream of their own.
    """
    settings, compute, data = baseline.settings, training.compute, training.data
    attention = training.recipe.train.attention
    student_layers = student_points(student, space_named(derived.architecture.space), derived.architecture.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(training.recipe.seed, "train", "distill").initial_seed())
        module = _module(settings, student_layers, baseline.points, images=len(data.train)).to(compute.device)
    pairs, cache = _pairs(settings, student_layers, baseline.points), None
    if not pairs:  # kd compares logits, which can be cached
        cache = training.output_cache(baseline.teacher, attention=attention, maps=False)
    # Features are recorded by hooks, which a captured or compiled step would not run.
    eager = replace(compute, graph_backend=None, compile_enabled=False)
    with contextlib.ExitStack() as stack:
        teacher = stack.enter_context(
            frozen_teacher(baseline.teacher, attention=attention, compute=eager, layers=[], cache=cache)
        )
        student_features, teacher_features = (
            stack.enter_context(recording_features(network, points))
            for network, points in (
                (student, [point for point, _ in pairs]),
                (baseline.teacher.module, [point for _, point in pairs]),
            )
        )
        yield BaselineLoss(
            settings,
            module,
            teacher,
            student_features=student_features,
            teacher_features=teacher_features,
            labels_N=data.train.labels_N.to(compute.device),
        )


def _pairs(settings: BaselineSettings, student: FeaturePoints, teacher: FeaturePoints) -> list[tuple[Point, Point]]:
    """Return the pairs of layers that the loss compares; none for logits."""
    match COMPARES[settings.name]:
        case "logits":
            return []
        case "its embedding":
            assert student.embedding is not None
            assert teacher.embedding is not None
            return [(student.embedding, teacher.embedding)]
        case "the output of its last stage":
            return [(student.stages[-1], teacher.stages[-1])]
        case "the feature maps of its stages":
            return [(student.stages[own], teacher.stages[other]) for own, other in paired_stages(student, teacher)]


def paired_stages(student: FeaturePoints, teacher: FeaturePoints) -> list[tuple[int, int]]:
    """Pair each student stage with the teacher stage nearest in relative depth: first with first, last with last."""
    return list(enumerate(same_depth_tutors(len(student.stages), len(teacher.stages))))


def _module(settings: BaselineSettings, student: FeaturePoints, teacher: FeaturePoints, *, images: int) -> nn.Module:
    """Return the parameters and memory of the loss itself, initialized; an empty module for most."""
    match settings:
        case VID(variance=variance):
            pairs = [(student.channels[own], teacher.channels[other]) for own, other in paired_stages(student, teacher)]
            channels = [(own, other) for own, other in pairs if own is not None and other is not None]
            return VariationalLoss(channels, variance=variance)
        case CRD(dim=dim, temperature=temperature, momentum=momentum):
            return ContrastiveLoss(
                student.width, teacher.width, images=images, dim=dim, temperature=temperature, momentum=momentum
            )
        case _:
            return nn.Module()
