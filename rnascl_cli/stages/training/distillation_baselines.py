"""``train --distill``: a rival loss of Figure 11 in place of the teacher terms of eq. (3).

    L = w_ce CE(y, p) + w rival(student, teacher)        on clean images; w_ce is 1, but 0.1 for ``kd``

docs/method.md tells what each rival compares, and where in the networks that is taken.

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
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.training_loop import at_current_step
from rnascl_cli.models.input_size import check_input_size
from rnascl_cli.models.student import Student
from rnascl_cli.recipes import AT, CRD, KD, PKT, RKD, SP, VID, BaselineSettings, Recipe, TrainSettings
from rnascl_cli.recipes.paradigms import required_baseline_teacher, trained_paradigm
from rnascl_cli.spaces import space_named
from rnascl_cli.stages.training.sanity_checks import constant
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
from rnascl_cli.teachers.output_cache import open_output_cache

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
"""What student and teacher make of a batch at one pair of points."""


@dataclass(frozen=True)
class BaselineTeacher:
    """A rival loss, its teacher, and where the teacher's features are."""

    settings: BaselineSettings
    teacher: Teacher
    points: FeaturePoints


def training_paradigm(settings: TrainSettings, derived: DerivedDocument) -> Paradigm:
    """Return the paradigm of a training of this network; see :func:`~rnascl_cli.recipes.paradigms.trained_paradigm`.

    Raises:
        UserError: A rival loss is asked for beside a paradigm with teacher terms, or on perturbed images.
    """
    return trained_paradigm(settings, searched=derived.paradigm)


def find_baseline_teacher(
    source: str | None, settings: BaselineSettings, derived: DerivedDocument, *, data: Data
) -> BaselineTeacher:
    """Read the teacher of a rival loss and find what the loss compares.

    Args:
        source: The ``--teacher`` value, or the teacher of the search.
        settings: Of the loss.
        derived: Its teacher's file must still be what it was.
        data: To be trained on.

    Raises:
        UserError: There is no teacher, it cannot be read, does not see such images, has other classes than ``kd`` can
            compare, or lacks the features; or ``crd`` has images of one class only.
    """
    name = settings.name
    source = required_baseline_teacher(source, settings)
    teacher = read_teacher(source)
    if name == "kd" and teacher.num_classes != data.num_classes:
        raise UserError(
            f"--distill kd: compares class by class, and --teacher {source} has {teacher.num_classes} classes, the "
            f"data {data.num_classes}; give another teacher, or take a rival that compares features"
        )
    refuse_changed_teacher(teacher, derived)
    check_input_size(teacher.module, f"--teacher {source}", input_size=data.input_size)
    points = teacher_points(teacher.module, input_size=data.input_size)
    there: dict[Compared, bool] = {
        "logits": True,
        "the feature maps of its stages": bool(points.stages) and None not in points.channels,
        "the output of its last stage": bool(points.stages),
        "its embedding": points.embedding is not None,
    }
    if not there[COMPARES[name]]:
        possible = ", ".join(rival for rival, compared in COMPARES.items() if there[compared])
        raise UserError(
            f"--distill {name}: compares {COMPARES[name]}, and what that is in --teacher {source} is not known; "
            f"possible with it: {possible}"
        )
    if name == "crd" and not most_negatives(data.train.labels_N):
        raise UserError("--distill crd: needs training images of two classes or more")
    return BaselineTeacher(settings, teacher, points)


class BaselineLoss:
    """A rival loss at work between a student and its teacher; made by :func:`rivalry`.

    Attributes:
        module: What the loss itself learns and remembers, for the optimiser and the checkpoint; empty for most.
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
        self._noise, self._inspected = torch.Generator(), False

    def start_epoch(self, noise: torch.Generator) -> None:
        """Draw this epoch's negatives from ``noise``, and look anew for a teacher that teaches nothing."""
        self._noise, self._inspected = noise, False

    def end_epoch(self) -> None:
        """Bring the epoch's newly kept teacher outputs to disk."""
        self._teacher.flush_cache()

    def term(self, batch: Batch, logits_BK: Tensor) -> Tensor:
        """Return the unweighted loss of a batch that the student has just answered with ``logits_BK``.

        Raises:
            RunError: The teacher says the same of every image of the epoch's first batch.
        """
        taught_BK = self._teacher.forward(batch).logits_BK
        taken = zip(self._student_features.take(), self._teacher_features.take(), strict=True)
        pairs = list(taken) or [(logits_BK, taught_BK)]
        self._inspect(pairs[-1][1])
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

    def _draw(self, y_B: Tensor, wanted: int) -> Tensor:
        # Drawn on the device, as the lots of a batch are many; their seed comes from the epoch's stream on the CPU.
        seed = int(torch.randint(2**62, (), generator=self._noise))
        lots = torch.Generator(self._labels_N.device).manual_seed(seed)
        return draw_negatives(y_B, self._labels_N, count=min(wanted, self._most_negatives), generator=lots)

    def _inspect(self, taught_B: Tensor) -> None:
        """Look at an epoch's first batch only, because the answer must be fetched from the device."""
        if not self._inspected and constant(taught_B.flatten(1)):
            what = "the teacher says the same of every image of the batch and can teach nothing; name another --teacher"
            raise RunError(at_current_step("distill", what))
        self._inspected = True


@contextlib.contextmanager
def baseline_loss(
    student: Student,
    guide: BaselineTeacher,
    derived: DerivedDocument,
    recipe: Recipe,
    *,
    data: Data,
    compute: DeviceConfig,
) -> Iterator[BaselineLoss]:
    """Take the features of a student and its teacher, to be compared, while the context is open.

    Args:
        student: Its features are taken on whatever device it is moved to.
        guide: The teacher.
        derived: The student's architecture.
        recipe: For the seed, as what the rival itself learns begins with numbers from a stream of it; and for whether
            the teacher's logits are kept, which only ``kd`` can use.
        data: Trained on its training images.
        compute: Device and precision.
    """
    settings, theirs, attention = guide.settings, guide.points, recipe.train.attention
    own = student_points(student, space_named(derived.architecture.space), derived.architecture.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(recipe.seed, "train", "distill").initial_seed())
        module = _module(settings, own, theirs, images=len(data.train)).to(compute.device)
    pairs, kept = _pairs(settings, own, theirs), None
    if not pairs:
        kept = open_output_cache(recipe, guide.teacher, data=data, attention=attention, maps=False, compute=compute)
    # Features are taken by hooks, which a replay would pass by.
    hooked = replace(compute, graph_backend=None, compile_enabled=False)
    with contextlib.ExitStack() as stack:
        teacher = stack.enter_context(
            frozen_teacher(guide.teacher, attention=attention, compute=hooked, layers=[], cache=kept)
        )
        student_features, teacher_features = (
            stack.enter_context(recording_features(network, points))
            for network, points in (
                (student, [point for point, _ in pairs]),
                (guide.teacher.module, [point for _, point in pairs]),
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
    """Return the points that the loss compares; none for logits."""
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
    """Return what the loss itself learns and remembers, with fresh numbers; an empty module for most."""
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
