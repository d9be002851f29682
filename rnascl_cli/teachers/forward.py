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
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Batch
from rnascl_cli.distill.attention import unit_maps
from rnascl_cli.engine.cuda_graphs import CapturedStep
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.attention_maps import MapRecorder, MapSource, attention_layers, record_attention_maps
from rnascl_cli.models.input_size import check_input_size
from rnascl_cli.recipes import AttentionSettings, KLSettings, RobustMethod
from rnascl_cli.recipes.paradigms import required_teacher, uses_kl
from rnascl_cli.teachers.load import Teacher, read_teacher
from rnascl_cli.teachers.output_cache import CachedTeacher, Outputs, map_dtype


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
    source = required_teacher(source, paradigm, method=method)
    if source is None:
        return None
    if method is not None:
        otherwise = f"use another method than {method}, which compares class by class"
        teacher = read_teacher(source, num_classes=num_classes, otherwise=otherwise)
    else:
        teacher = read_teacher(source, num_classes=num_classes if uses_kl(paradigm, kl) else None)
    check_input_size(teacher.module, f"--teacher {source}", input_size=input_size)
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


def tutor_layers(teacher: Teacher, tap: MapSource) -> list[str]:
    """Return the names of the teacher's layers that can be tutors.

    A network without any is refused; one with a single one (a vision transformer has its patch embedding only)
    leaves nothing to choose, and that is said.

    Raises:
        UserError: There are none.
    """
    layers = list(attention_layers(teacher.module, tap))
    if not layers:
        raise UserError(
            f"--teacher {teacher.reference.source}: has no {tap} layers to be tutors; use --paradigm kl, or another "
            "teacher or attention.tap"
        )
    if len(layers) == 1:
        warning(
            f"teacher {teacher.reference.source}: has one {tap} layer, {layers[0]}, so that every student layer has "
            "the same tutor; use --paradigm kl, or a teacher with more"
        )
    return layers


class TeacherOutput(NamedTuple):
    """The teacher's view of a batch: logits (B, K), and unit maps (B, T, P) or None where none are wanted."""

    logits_BK: Tensor
    maps_BTP: Tensor | None

    def rows(self, rows: slice) -> TeacherOutput:
        """Return the teacher_output of some of the images."""
        return TeacherOutput(self.logits_BK[rows], None if self.maps_BTP is None else self.maps_BTP[rows])


class FrozenTeacher:
    """A teacher in eval mode whose layers are tapped; see :func:`frozen_teacher`."""

    def __init__(
        self,
        teacher: Teacher,
        recorder: MapRecorder | None,
        attention: AttentionSettings,
        compute: DeviceConfig,
        *,
        cache: CachedTeacher | None = None,
        selected_T: Tensor | None = None,
    ) -> None:
        self._teacher, self._recorder, self._attention, self._compute = teacher, recorder, attention, compute
        self._cache, self._selected_T = cache, selected_T
        tapped = [] if recorder is None else recorder.layers
        self.layers = tapped if selected_T is None else [tapped[index] for index in selected_T.tolist()]
        """Names of the layers whose maps a teacher_output has, in their order."""
        compiled = compute.maybe_compile(self._uncached_forward) if cache is None else None
        self._captured_forward = CapturedStep(
            self._uncached_forward, compute.graph_backend, what="the teacher's pass", compiled=compiled
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> TeacherOutput:
        """Return the teacher_output of a batch: from the kept outputs where there are any, else from the teacher."""
        if self._cache is None:
            ask = self._captured_forward if batch.full else self._captured_forward.eager
            logits_BK, maps_BTP = ask(batch.x_BCHW)
        else:  # the teacher is asked for the views not seen before: batches of any size
            logits_BK, maps_BTP = self._cache.forward(batch, self._uncached_forward)
        if maps_BTP is None:
            return TeacherOutput(logits_BK, None)
        return TeacherOutput(
            logits_BK, (maps_BTP if self._selected_T is None else maps_BTP[:, self._selected_T]).float()
        )

    def _uncached_forward(self, x_BCHW: Tensor) -> Outputs:
        with self._compute.teacher_autocast():
            logits_BK: Tensor = self._teacher.module(x_BCHW)
        if self._recorder is None:
            return logits_BK.float(), None
        maps_BTP = unit_maps(self._recorder.pop(), over=self._attention.norm)
        return logits_BK.float(), maps_BTP.to(map_dtype(self._compute))

    def flush_cache(self) -> None:
        """Bring newly kept outputs to disk; to be called once an epoch.

        Raises:
            RunError: The disk is full, or failed.
        """
        if self._cache is not None:
            self._cache.flush()


@contextlib.contextmanager
def frozen_teacher(
    teacher: Teacher,
    *,
    attention: AttentionSettings,
    compute: DeviceConfig,
    layers: Sequence[str] | None,
    cache: CachedTeacher | None = None,
) -> Iterator[FrozenTeacher]:
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
            every = list(attention_layers(teacher.module, attention.tap))
            if cache is not None and layers is not None and list(layers) != every:
                # What is kept serves any run, so it is kept of every layer.
                wanted_T = torch.tensor([every.index(layer) for layer in layers], device=compute.device)
                layers = every
            recorder = stack.enter_context(
                record_attention_maps(teacher.module, side=attention.map_size, tap=attention.tap, layers=layers)
            )
        yield FrozenTeacher(teacher, recorder, attention, compute, cache=cache, selected_T=wanted_T)
    if cache is not None:
        cache.log_hit_rate()
