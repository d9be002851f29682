"""What the teacher says about a batch: logits and unit attention maps, once, without gradient.

Shape suffixes: B images, K classes, T teacher layers, P pixels of a map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import DerivedDocument, Paradigm
from rnascl_cli.artifacts.runs import refuse_changed
from rnascl_cli.core.console import warn
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Batch
from rnascl_cli.distill.attention import unit_maps
from rnascl_cli.engine.cuda_graphs import Replay
from rnascl_cli.engine.device import Compute
from rnascl_cli.models.attention_maps import MapRecorder, Tap, recording_maps, tappable_layers
from rnascl_cli.models.input_size import check_sees
from rnascl_cli.recipes import AttentionSettings, KLSettings, RobustMethod
from rnascl_cli.recipes.paradigms import uses_kl, wanted_teacher
from rnascl_cli.teachers.load import Teacher, read_teacher
from rnascl_cli.teachers.output_cache import KeptOutputs, Outputs, map_dtype


def require_teacher(
    source: str | None,
    paradigm: Paradigm,
    *,
    kl: KLSettings,
    num_classes: int,
    input_size: int,
    method: RobustMethod | None = None,
) -> Teacher | None:
    """Read the teacher that a paradigm or a method needs; None where neither does.

    Args:
        source: The ``--teacher`` value.
        paradigm: Which terms of eqs. (2) and (3) there are.
        kl: Of the stage. Only while the KL term is on must teacher and data have the same number of classes.
        num_classes: Of the data.
        input_size: Height and width of the data's images, pixels.
        method: Of adversarial training, if its targets are the teacher's logits.

    Raises:
        UserError: A teacher is needed and none is named, it cannot be read or cannot see such images, or logits of
            different numbers of classes would be compared.
    """
    source = wanted_teacher(source, paradigm, method=method)
    if source is None:
        return None
    if method is not None:
        otherwise = f"use another method than {method}, which compares class by class"
        teacher = read_teacher(source, num_classes=num_classes, otherwise=otherwise)
    else:
        teacher = read_teacher(source, num_classes=num_classes if uses_kl(paradigm, kl) else None)
    check_sees(teacher.module, f"--teacher {source}", input_size=input_size)
    return teacher


def refuse_changed_teacher(teacher: Teacher, derived: DerivedDocument) -> None:
    """Refuse the search's teacher where its file is no longer what it was.

    Raises:
        UserError: It is not.
    """
    before = derived.provenance.teacher
    if before is not None and teacher.reference.path == before.path:
        path, found = Path(before.path), teacher.reference.sha256
        refuse_changed(path, document="the derived document", expected=before.sha256, found=found)


def tutor_layers(teacher: Teacher, tap: Tap) -> list[str]:
    """Return the names of the teacher's layers that can be tutors.

    A network without any is refused; one with a single one (a vision transformer has its patch embedding only)
    leaves nothing to choose, and that is said.

    Raises:
        UserError: There are none.
    """
    layers = list(tappable_layers(teacher.module, tap))
    if not layers:
        raise UserError(
            f"--teacher {teacher.reference.source}: has no {tap} layers to be tutors; use --paradigm kl, or another "
            "teacher or attention.tap"
        )
    if len(layers) == 1:
        warn(
            f"teacher {teacher.reference.source}: has one {tap} layer, {layers[0]}, so that every student layer has "
            "the same tutor; use --paradigm kl, or a teacher with more"
        )
    return layers


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
        self,
        teacher: Teacher,
        recorder: MapRecorder | None,
        attention: AttentionSettings,
        compute: Compute,
        *,
        kept: KeptOutputs | None = None,
        wanted_T: Tensor | None = None,
    ) -> None:
        self._teacher, self._recorder, self._attention, self._compute = teacher, recorder, attention, compute
        self._kept, self._wanted_T = kept, wanted_T
        tapped = [] if recorder is None else recorder.layers
        self.layers = tapped if wanted_T is None else [tapped[index] for index in wanted_T.tolist()]
        """Names of the layers whose maps a lesson has, in their order."""
        compiled = compute.compiled(self._ask_teacher) if kept is None else None
        self._ask = Replay(self._ask_teacher, compute.step_recorder, what="the teacher's pass", compiled=compiled)

    @torch.no_grad()
    def look(self, batch: Batch) -> Lesson:
        """Return the lesson of a batch: from the kept outputs where there are any, else from the teacher."""
        if self._kept is None:
            ask = self._ask if batch.full else self._ask.plainly
            logits_BK, maps_BTP = ask(batch.x_BCHW)
        else:  # the teacher is asked for the views not seen before: batches of any size
            logits_BK, maps_BTP = self._kept.look(batch, self._ask_teacher)
        if maps_BTP is None:
            return Lesson(logits_BK, None)
        return Lesson(logits_BK, (maps_BTP if self._wanted_T is None else maps_BTP[:, self._wanted_T]).float())

    def _ask_teacher(self, x_BCHW: Tensor) -> Outputs:
        with self._compute.teacher_autocast():
            logits_BK: Tensor = self._teacher.module(x_BCHW)
        if self._recorder is None:
            return logits_BK.float(), None
        maps_BTP = unit_maps(self._recorder.take(), over=self._attention.norm)
        return logits_BK.float(), maps_BTP.to(map_dtype(self._compute))

    def settle(self) -> None:
        """Bring newly kept outputs to disk; to be called once an epoch.

        Raises:
            RunError: The disk is full, or failed.
        """
        if self._kept is not None:
            self._kept.settle()


@contextlib.contextmanager
def on_duty(
    teacher: Teacher,
    *,
    attention: AttentionSettings,
    compute: Compute,
    layers: Sequence[str] | None,
    kept: KeptOutputs | None = None,
) -> Iterator[TeacherOnDuty]:
    """Move the teacher to the device and tap its layers while the context is open.

    Args:
        teacher: The teacher; its parameters take no gradient.
        attention: Map size, tap and norm.
        compute: Device and precision.
        layers: The layers whose maps are wanted; an empty list for logits only, None for all.
        kept: Outputs kept for the images to be looked at; of all layers, where maps are wanted.
    """
    teacher.module.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with contextlib.ExitStack() as stack:
        stack.enter_context(compute.teacher_weights(teacher.module))
        recorder = wanted_T = None
        if layers is None or layers:
            every = list(tappable_layers(teacher.module, attention.tap))
            if kept is not None and layers is not None and list(layers) != every:
                # What is kept serves any run, so it is kept of every layer.
                wanted_T = torch.tensor([every.index(layer) for layer in layers], device=compute.device)
                layers = every
            recorder = stack.enter_context(
                recording_maps(teacher.module, side=attention.map_size, tap=attention.tap, layers=layers)
            )
        yield TeacherOnDuty(teacher, recorder, attention, compute, kept=kept, wanted_T=wanted_T)
    if kept is not None:
        kept.account()
