"""The frozen teacher: logits and unit attention maps of a batch, without gradients.

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
from rnascl_cli.recipes.adversarial import RobustMethod
from rnascl_cli.recipes.paradigms import required_teacher, uses_kl
from rnascl_cli.recipes.settings import AttentionSettings, KLSettings
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
    """Load the teacher that a paradigm or a method needs; return None where neither needs one.

    Args:
        source: The ``--teacher`` value.
        paradigm: Which terms eqs. (2) and (3) have.
        kl: KL settings of the stage. With the KL term, teacher and data must have the same number of classes.
        num_classes: Number of classes in the data.
        input_size: Height and width of the data's images, pixels.
        method: Adversarial training method whose targets are the teacher's logits, if any.

    Raises:
        UserError: A teacher is needed but none is named, it cannot be read, does not take such images, or has another
            number of classes than the data.
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
    """Refuse the search's teacher if its file has changed since the search.

    Raises:
        UserError: It has.
    """
    before = derived.provenance.teacher
    if before is not None and teacher.reference.path == before.path:
        path, sha256 = Path(before.path), teacher.reference.sha256
        refuse_changed(path, document="the derived document", expected=before.sha256, found=sha256)


def tutor_layers(teacher: Teacher, source: MapSource) -> list[str]:
    """Return the names of the teacher's layers that can be tutors; warn if there is only one.

    A vision transformer, for example, has a single convolution, its patch embedding.

    Raises:
        UserError: There are none.
    """
    layers = list(attention_layers(teacher.module, source))
    if not layers:
        raise UserError(
            f"--teacher {teacher.reference.source}: has no {source} layers to be tutors; use --paradigm kl, or another "
            "teacher or attention.source"
        )
    if len(layers) == 1:
        warning(
            f"teacher {teacher.reference.source}: has one {source} layer, {layers[0]}, so that every student layer has "
            "the same tutor; use --paradigm kl, or a teacher with more"
        )
    return layers


class TeacherOutput(NamedTuple):
    """The teacher's output for a batch: logits (B, K), and unit maps (B, T, P), or None where no maps are needed."""

    logits_BK: Tensor
    maps_BTP: Tensor | None

    def rows(self, rows: slice) -> TeacherOutput:
        """Return the output for some of the images."""
        return TeacherOutput(self.logits_BK[rows], None if self.maps_BTP is None else self.maps_BTP[rows])


class FrozenTeacher:
    """A teacher in eval mode with hooks that record its attention maps; see :func:`frozen_teacher`.

    Attributes:
        layers: Names of the layers whose maps an output has, in order.
    """

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
        recorded = [] if recorder is None else recorder.layers
        self.layers = recorded if selected_T is None else [recorded[index] for index in selected_T.tolist()]
        compiled = compute.maybe_compile(self._forward) if cache is None else None
        self._captured_forward = CapturedStep(
            self._forward, compute.graph_backend, what="the teacher's forward pass", compiled=compiled
        )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the output for a batch, from the cache where there is one."""
        if self._cache is None:
            forward = self._captured_forward if batch.full else self._captured_forward.eager
            logits_BK, maps_BTP = forward(batch.x_BCHW)
        else:  # runs the teacher on the views that are not cached: batches of any size, so nothing is captured
            logits_BK, maps_BTP = self._cache.forward(batch, self._forward)
        if maps_BTP is None:
            return TeacherOutput(logits_BK, None)
        if self._selected_T is not None:
            maps_BTP = maps_BTP[:, self._selected_T]
        return TeacherOutput(logits_BK, maps_BTP.float())

    def _forward(self, x_BCHW: Tensor) -> Outputs:
        with self._compute.teacher_autocast():
            logits_BK: Tensor = self._teacher.module(x_BCHW)
        if self._recorder is None:
            return logits_BK.float(), None
        maps_BTP = unit_maps(self._recorder.pop(), over=self._attention.norm)
        return logits_BK.float(), maps_BTP.to(map_dtype(self._compute))

    def flush_cache(self) -> None:
        """Write new outputs to disk; called once per epoch.

        Raises:
            RunError: Writing failed, for example because the disk is full.
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
    """Move the teacher to the device and record its attention maps while the context is open.

    Args:
        teacher: The teacher; its parameters get no gradients.
        attention: Map size, source and norm.
        compute: Device and precision.
        layers: The layers whose maps are needed; an empty list for logits only, None for all.
        cache: Cached outputs for the training images, of all layers where it has maps.
    """
    teacher.module.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with contextlib.ExitStack() as stack:
        stack.enter_context(compute.teacher_weights(teacher.module))
        recorder = selected_T = None
        if layers is None or layers:
            all_layers = list(attention_layers(teacher.module, attention.source))
            if cache is not None and layers is not None and list(layers) != all_layers:
                # The cache serves other runs, too, so it holds the maps of all layers.
                selected_T = torch.tensor([all_layers.index(layer) for layer in layers], device=compute.device)
                layers = all_layers
            recorder = stack.enter_context(
                record_attention_maps(teacher.module, side=attention.map_size, source=attention.source, layers=layers)
            )
        yield FrozenTeacher(teacher, recorder, attention, compute, cache=cache, selected_T=selected_T)
    if cache is not None:
        cache.log_hit_rate()
