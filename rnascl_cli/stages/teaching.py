"""What the teacher says about a batch: logits and unit attention maps, once, without gradient.

Shape suffixes: B images, K classes, T teacher layers, P pixels of a map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import Paradigm
from rnascl_cli.data import Batch
from rnascl_cli.distill.attention import unit_maps
from rnascl_cli.engine.compute import Compute
from rnascl_cli.errors import UserError
from rnascl_cli.models.checkpoints import Teacher, read_teacher
from rnascl_cli.models.taps import MapRecorder, recording_maps
from rnascl_cli.recipes import AttentionSettings


def uses_kl(paradigm: Paradigm) -> bool:
    """Return whether the paradigm has the KL term (section 4.3)."""
    return paradigm in ("kl", "rnas-cl")


def uses_tutors(paradigm: Paradigm) -> bool:
    """Return whether the paradigm has the attention term (section 4.3)."""
    return paradigm in ("icc", "rnas-cl")


def require_teacher(source: str | None, paradigm: Paradigm, *, num_classes: int) -> Teacher | None:
    """Read the teacher that a paradigm needs; None for ``standard``.

    Raises:
        UserError: The paradigm needs a teacher and none is named, or it cannot be read, or the KL term would
            compare different numbers of classes.
    """
    if paradigm == "standard":
        return None
    if source is None:
        raise UserError(f"--teacher: paradigm '{paradigm}' needs a teacher; name one or use --paradigm standard")
    return read_teacher(source, num_classes=num_classes if uses_kl(paradigm) else None)


class Lesson(NamedTuple):
    """The teacher's view of a batch: logits (B, K), and unit maps (B, T, P) or None where none are wanted."""

    logits_BK: Tensor
    maps_BTP: Tensor | None

    def part(self, rows: slice) -> Lesson:
        """Return the lesson of some of the images."""
        return Lesson(self.logits_BK[rows], None if self.maps_BTP is None else self.maps_BTP[rows])


class TeacherOnDuty:
    """A teacher in eval mode whose layers are tapped; see :func:`on_duty`."""

    def __init__(
        self, teacher: Teacher, recorder: MapRecorder | None, attention: AttentionSettings, compute: Compute
    ) -> None:
        self._teacher, self._recorder, self._attention, self._compute = teacher, recorder, attention, compute

    @torch.no_grad()
    def look(self, batch: Batch) -> Lesson:
        """Return the lesson of a batch of images in [0, 1]."""
        x_BCHW = batch.x_BCHW
        with self._compute.teacher_autocast():
            logits_BK = self._teacher.module(x_BCHW)
        maps = None if self._recorder is None else unit_maps(self._recorder.take(), over=self._attention.norm)
        return Lesson(logits_BK.float(), maps)


@contextlib.contextmanager
def on_duty(
    teacher: Teacher,
    *,
    attention: AttentionSettings,
    compute: Compute,
    layers: Sequence[str] | None,
) -> Iterator[TeacherOnDuty]:
    """Move the teacher to the device and tap its layers while the context is open.

    Args:
        teacher: The teacher; its parameters take no gradient.
        attention: Map size, tap and norm.
        compute: Device and precision.
        layers: The layers to tap; an empty list for logits only, None for all.
    """
    teacher.module.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if layers is not None and not layers:
        yield TeacherOnDuty(teacher, None, attention, compute)
        return
    with recording_maps(teacher.module, side=attention.map_size, tap=attention.tap, layers=layers) as recorder:
        yield TeacherOnDuty(teacher, recorder, attention, compute)
