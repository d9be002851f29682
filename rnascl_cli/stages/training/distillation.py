"""The student in training: eq. (3), shared by ``train`` and ``adv-finetune``.

    L = CE(y, p) + KL(p, q) + gamma_t L_attn        (one-hot g: each student layer has one tutor)

Shape suffixes: B images, K classes, S student layers, P map pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import DerivedDocument, Paradigm, TutorMap
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Batch, Data
from rnascl_cli.distill.attention import tutor_distances, tutored_attention_loss, unit_maps
from rnascl_cli.distill.losses import kl_divergence
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.attention_maps import MapRecorder, attention_layers, record_attention_maps
from rnascl_cli.models.student import Student
from rnascl_cli.recipes import AttentionSettings, KLSettings, RobustMethod
from rnascl_cli.recipes.paradigms import no_tutors, other_tap, uses_kl, uses_tutors
from rnascl_cli.stages.training.distillation_baselines import BaselineLoss
from rnascl_cli.stages.training.sanity_checks import SanityCheck
from rnascl_cli.teachers.forward import (
    FrozenTeacher,
    TeacherOutput,
    frozen_teacher,
    refuse_changed_teacher,
    require_teacher,
)
from rnascl_cli.teachers.load import Teacher
from rnascl_cli.teachers.output_cache import CachedTeacher


class StudentOutput(NamedTuple):
    """A student's answer to a batch: logits (B, K), and unit maps (B, S, P) or None."""

    logits_BK: Tensor
    maps_BSP: Tensor | None


class DistillationModel:
    """A student, its teacher on duty, and the terms of eq. (3) that come from the teacher, or the rival in their place.

    Made by :func:`apprenticeship`.
    """

    def __init__(
        self,
        student: Student,
        *,
        teacher: FrozenTeacher | None,
        recorder: MapRecorder | None,
        tutors: TutorMap | None,
        paradigm: Paradigm,
        attention: AttentionSettings,
        kl: KLSettings,
        compute: DeviceConfig,
        method: RobustMethod | None = None,
        baseline: BaselineLoss | None = None,
    ) -> None:
        self.student, self.baseline = student, baseline
        self._teacher, self._recorder, self._method = teacher, recorder, method
        self._paradigm, self._attention, self._kl, self._compute = paradigm, attention, kl, compute
        self._teacher_layers = len(tutors.teacher_layers) if tutors is not None else 0
        # The teacher's maps come in the order of the distinct tutors; each student layer picks its own.
        seats = {} if tutors is None else {layer: seat for seat, layer in enumerate(distinct_tutors(tutors))}
        picks = [] if tutors is None else [seats[tutors.teacher_layers[index]] for index in tutors.tutor]
        self._tutor_index_S = torch.tensor(picks, dtype=torch.int64, device=compute.device)
        self.weights = {"kl": kl.weight, "attention": attention.gamma, **(baseline.weights if baseline else {})}
        self.sanity_check = SanityCheck()

    def forward_with_maps(self, x_BCHW: Tensor) -> StudentOutput:
        """Run the student on images in [0, 1]."""
        with self._compute.student_autocast():
            logits_BK = self.student(x_BCHW)
        maps = None if self._recorder is None else unit_maps(self._recorder.pop(), over=self._attention.norm)
        return StudentOutput(logits_BK.float(), maps)

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Run the student on images that have no attention term; return its logits (B, K)."""
        with self._compute.student_autocast(), self.without_recording():
            logits_BK: Tensor = self.student(x_BCHW)
        return logits_BK.float()

    @property
    def has_teacher_terms(self) -> bool:
        """Whether :meth:`teacher_terms` has any term."""
        taught = self._teacher is not None and (uses_kl(self._paradigm, self._kl) or self._recorder is not None)
        return taught or self.baseline is not None

    def without_recording(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the student's maps are not taken, for passes that have no attention term."""
        return contextlib.nullcontext() if self._recorder is None else self._recorder.without_recording()

    def end_epoch(self) -> None:
        """Bring the epoch's newly kept teacher outputs to disk."""
        if self._teacher is not None:
            self._teacher.flush_cache()
        if self.baseline is not None:
            self.baseline.end_epoch()

    def teacher_output(self, batch: Batch) -> TeacherOutput | None:
        """Return what the teacher says about a batch; None without one."""
        return None if self._teacher is None else self._teacher.forward(batch)

    @torch.no_grad()
    def check_sanity(self, x_BCHW: Tensor, teacher: TeacherOutput | None) -> None:
        """Look once an epoch at what teacher and student say of images, before the step, which asks for no value."""
        if teacher is None or self._teacher is None or not self.sanity_check.pending:
            return
        maps_BSP = None
        if self._recorder is not None:
            self.student.train()
            with fixed_statistics(self.student):
                maps_BSP = self.forward_with_maps(x_BCHW).maps_BSP
        self.sanity_check.run(
            teacher,
            kl=uses_kl(self._paradigm, self._kl),
            teacher_layers=self._teacher.layers,
            student_layers=[] if self._recorder is None else self._recorder.layers,
            student_BLP=maps_BSP,
            method=self._method,
        )

    def teacher_terms(
        self, batch: Batch, student: StudentOutput, teacher: TeacherOutput | None = None
    ) -> dict[str, Tensor]:
        """Return the paradigm's KL and attention terms, or the rival's, for the student's answer to a batch.

        Args:
            batch: The images.
            answer: The student's, to the clean ones.
            teacher_output: The teacher's; None to ask it here.
        """
        if self.baseline is not None:
            return {"distill": self.baseline.term(batch, student.logits_BK)}
        if self._teacher is None:
            return {}
        teacher = self._teacher.forward(batch) if teacher is None else teacher
        terms = {}
        if uses_kl(self._paradigm, self._kl):
            terms["kl"] = kl_divergence(
                student.logits_BK,
                teacher.logits_BK,
                direction=self._kl.direction,
                temperature=self._kl.temperature,
            )
        if student.maps_BSP is not None and teacher.maps_BTP is not None:
            distances_S = tutor_distances(student.maps_BSP, teacher.maps_BTP[:, self._tutor_index_S])
            terms["attention"] = tutored_attention_loss(distances_S, teacher_layers=self._teacher_layers)
        return terms


def distinct_tutors(tutors: TutorMap) -> list[str]:
    """Return the names of the teacher layers that some student layer chose, in the teacher's order."""
    return [tutors.teacher_layers[index] for index in sorted(set(tutors.tutor))]


def paradigm_teacher(
    source: str | None,
    paradigm: Paradigm,
    derived: DerivedDocument,
    *,
    data: Data,
    attention: AttentionSettings,
    kl: KLSettings,
    method: RobustMethod | None = None,
) -> Teacher | None:
    """Read the teacher a student is to learn from, and check it against the tutor map.

    A method whose targets are the teacher's logits has one whatever the paradigm: where none is named, the one that
    the network was searched under.

    Raises:
        UserError: It is not the teacher of the tutor map, has other layers, or the document has no tutor map
            although the paradigm needs one.
    """
    if method is not None and source is None and derived.provenance.teacher is not None:
        source = derived.provenance.teacher.path
    teacher = require_teacher(
        source, paradigm, kl=kl, num_classes=data.num_classes, input_size=data.input_size, method=method
    )
    if not uses_tutors(paradigm) or teacher is None:
        if teacher is not None:
            refuse_changed_teacher(teacher, derived)
        return teacher
    tutors = derived.tutors
    if tutors is None:
        raise no_tutors(paradigm, searched=derived.paradigm)
    if teacher.reference.sha256 != tutors.teacher.sha256:
        raise UserError(
            f"--teacher {source}: sha256 {teacher.reference.sha256[:12]}... is not that of the tutor map's teacher "
            f"({tutors.teacher.sha256[:12]}..., {tutors.teacher.architecture}); give the teacher of the search"
        )
    if list(attention_layers(teacher.module, attention.tap)) != tutors.teacher_layers:
        raise other_tap(f"--teacher {source}", attention.tap)
    return teacher


def check_student_layers(
    student: Student, derived: DerivedDocument, *, paradigm: Paradigm, attention: AttentionSettings
) -> None:
    """Refuse a tutor map for other student layers than the network has.

    Raises:
        UserError: They differ.
    """
    if derived.tutors is None or not uses_tutors(paradigm):
        return
    if list(attention_layers(student, attention.tap)) != derived.tutors.student_layers:
        raise UserError(
            f"derived document: tutors.student_layers are not the {attention.tap} layers of the network; derive again"
        )


@contextlib.contextmanager
def distilling(
    student: Student,
    teacher: Teacher | None,
    derived: DerivedDocument,
    *,
    paradigm: Paradigm,
    attention: AttentionSettings,
    kl: KLSettings,
    compute: DeviceConfig,
    cache: CachedTeacher | None = None,
    method: RobustMethod | None = None,
    baseline: BaselineLoss | None = None,
) -> Iterator[DistillationModel]:
    """Move the student to the device and tap it and its teacher while the context is open.

    With ``kept``, the teacher is asked only for views that it has not seen before. ``method`` is that of adversarial
    training, if its targets are the teacher's logits. A ``rival`` has its own teacher.
    """
    tutors = derived.tutors if uses_tutors(paradigm) else None
    student.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with contextlib.ExitStack() as stack:
        teacher_on_duty = recorder = None
        if teacher is not None:
            layers = distinct_tutors(tutors) if tutors is not None else []
            teacher_on_duty = stack.enter_context(
                frozen_teacher(teacher, attention=attention, compute=compute, layers=layers, cache=cache)
            )
        if tutors is not None:
            recorder = stack.enter_context(
                record_attention_maps(student, side=attention.map_size, tap=attention.tap, layers=tutors.student_layers)
            )
        yield DistillationModel(
            student,
            teacher=teacher_on_duty,
            recorder=recorder,
            tutors=tutors,
            paradigm=paradigm,
            attention=attention,
            kl=kl,
            compute=compute,
            method=method,
            baseline=baseline,
        )
