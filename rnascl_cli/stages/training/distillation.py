"""The student under its teacher: forward passes with attention maps, for the losses of :mod:`.step`.

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
from rnascl_cli.distill.attention import unit_maps
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.attention_maps import MapRecorder, attention_layers, record_attention_maps
from rnascl_cli.models.student import Student
from rnascl_cli.recipes.adversarial import RobustMethod
from rnascl_cli.recipes.paradigms import no_tutors, other_source, uses_kl, uses_tutors
from rnascl_cli.recipes.settings import AttentionSettings, KLSettings
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
    """The student's output for a batch: logits (B, K), and unit maps (B, S, P) or None."""

    logits_BK: Tensor
    maps_BSP: Tensor | None


class DistillationModel:
    """A student with its frozen teacher, or with a distillation baseline; built by :func:`distilling`.

    Attributes:
        student: On the device.
        baseline: The loss of ``train --distill`` that replaces KL and attention; None without.
        kl: Settings of the KL term; None in a paradigm without one.
        attention: Settings of the attention term.
        tutor_index_S: Of each student layer, the position of its tutor's map in the teacher's output.
        teacher_layers: n_t of eq. (1), the number of layers that a tutor was chosen from.
    """

    def __init__(
        self,
        student: Student,
        *,
        teacher: FrozenTeacher | None,
        recorder: MapRecorder | None,
        tutors: TutorMap | None,
        kl: KLSettings | None,
        attention: AttentionSettings,
        compute: DeviceConfig,
        method: RobustMethod | None = None,
        baseline: BaselineLoss | None = None,
    ) -> None:
        self.student, self.baseline, self.kl, self.attention = student, baseline, kl, attention
        self._teacher, self._recorder, self._compute, self._method = teacher, recorder, compute, method
        self.teacher_layers = len(tutors.teacher_layers) if tutors is not None else 0
        # The teacher outputs the maps of the distinct tutors; several student layers may share one.
        position = {} if tutors is None else {layer: index for index, layer in enumerate(distinct_tutors(tutors))}
        tutor_index = [] if tutors is None else [position[tutors.teacher_layers[index]] for index in tutors.tutor]
        self.tutor_index_S = torch.tensor(tutor_index, dtype=torch.int64, device=compute.device)
        self.sanity_check = SanityCheck()

    def forward_with_maps(self, x_BCHW: Tensor) -> StudentOutput:
        """Run the student on images in [0, 1] and return its logits and unit attention maps."""
        with self._compute.student_autocast():
            logits_BK = self.student(x_BCHW)
        maps_BSP = None if self._recorder is None else unit_maps(self._recorder.pop(), over=self.attention.norm)
        return StudentOutput(logits_BK.float(), maps_BSP)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run the student without recording maps and return its logits (B, K)."""
        with self._compute.student_autocast(), self.without_recording():
            logits_BK: Tensor = self.student(x_BCHW)
        return logits_BK.float()

    def teacher_output(self, batch: Batch) -> TeacherOutput | None:
        """Return the teacher's output for a batch; None without a teacher."""
        return None if self._teacher is None else self._teacher(batch)

    @property
    def has_teacher_terms(self) -> bool:
        """Whether the loss has a KL, attention or baseline term, which all need the clean images."""
        teacher_terms = self._teacher is not None and (self.kl is not None or self._recorder is not None)
        return teacher_terms or self.baseline is not None

    def without_recording(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the student's maps are not recorded."""
        return contextlib.nullcontext() if self._recorder is None else self._recorder.without_recording()

    def start_epoch(self, noise: torch.Generator) -> None:
        """Check the outputs again in this epoch; a baseline draws its negatives from ``noise``."""
        self.sanity_check.start_epoch()
        if self.baseline is not None:
            self.baseline.start_epoch(noise)

    def end_epoch(self) -> None:
        """Write new teacher outputs to disk."""
        if self._teacher is not None:
            self._teacher.flush_cache()
        if self.baseline is not None:
            self.baseline.end_epoch()

    @torch.no_grad()
    def check_sanity(self, x_BCHW: Tensor, teacher: TeacherOutput | None) -> None:
        """Check the outputs of teacher and student once an epoch, outside the step, which may be captured."""
        if teacher is None or self._teacher is None or not self.sanity_check.pending:
            return
        maps_BSP = None
        if self._recorder is not None:
            self.student.train()
            with fixed_statistics(self.student):
                maps_BSP = self.forward_with_maps(x_BCHW).maps_BSP
        self.sanity_check.run(
            teacher,
            kl=self.kl is not None,
            teacher_layers=self._teacher.layers,
            student_layers=[] if self._recorder is None else self._recorder.layers,
            student_BLP=maps_BSP,
            method=self._method,
        )


def distinct_tutors(tutors: TutorMap) -> list[str]:
    """Return the names of the teacher layers that are a tutor, in the teacher's order."""
    return [tutors.teacher_layers[index] for index in sorted(set(tutors.tutor))]


def load_matching_teacher(
    source: str | None,
    paradigm: Paradigm,
    derived: DerivedDocument,
    *,
    data: Data,
    attention: AttentionSettings,
    kl: KLSettings,
    method: RobustMethod | None = None,
) -> Teacher | None:
    """Load the teacher of a student and check it against the tutor map.

    A method whose targets are the teacher's logits needs one in any paradigm; by default it is the search's.

    Raises:
        UserError: It is not the teacher of the tutor map, has other layers, or the paradigm needs a tutor map and the
            document has none.
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
    if list(attention_layers(teacher.module, attention.source)) != tutors.teacher_layers:
        raise other_source(f"--teacher {source}", attention.source)
    return teacher


def check_student_layers(
    student: Student, derived: DerivedDocument, *, paradigm: Paradigm, attention: AttentionSettings
) -> None:
    """Refuse a tutor map whose student layers are not those of the network.

    Raises:
        UserError: They are not.
    """
    if derived.tutors is None or not uses_tutors(paradigm):
        return
    if list(attention_layers(student, attention.source)) != derived.tutors.student_layers:
        raise UserError(
            f"derived document: tutors.student_layers are not the {attention.source} layers of the network; "
            "derive again"
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
    """Move student and teacher to the device and record their attention maps while the context is open.

    Args:
        student: Moved in place.
        teacher: None in the ``standard`` paradigm, and beside a baseline, which has a teacher of its own.
        derived: The tutor map.
        paradigm: Which terms eq. (3) has.
        attention: Attention settings.
        kl: KL settings.
        compute: Device and precision.
        cache: Cached outputs of the teacher for the training images.
        method: Adversarial training method whose targets are the teacher's logits, if any.
        baseline: Distillation baseline, if any.
    """
    tutors = derived.tutors if uses_tutors(paradigm) else None
    student.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with contextlib.ExitStack() as stack:
        frozen = recorder = None
        if teacher is not None:
            layers = distinct_tutors(tutors) if tutors is not None else []
            frozen = stack.enter_context(
                frozen_teacher(teacher, attention=attention, compute=compute, layers=layers, cache=cache)
            )
        if tutors is not None:
            recorder = stack.enter_context(
                record_attention_maps(
                    student, side=attention.map_size, source=attention.source, layers=tutors.student_layers
                )
            )
        yield DistillationModel(
            student,
            teacher=frozen,
            recorder=recorder,
            tutors=tutors,
            kl=kl if uses_kl(paradigm, kl) else None,
            attention=attention,
            compute=compute,
            method=method,
            baseline=baseline,
        )
