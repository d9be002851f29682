"""Attention maps of the reported students and their tutors for one image, for ``report --image``.

Shape suffixes: B images, C channels, H height, W width, L layers, P pixels of the common map (side squared).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rnascl_cli.artifacts.documents import TeacherReference, TutorMap
from rnascl_cli.artifacts.store import STUDENT, sha256_file
from rnascl_cli.data.decode import CROPPED_SIDE, Shape, decode, image_size
from rnascl_cli.errors import UserError
from rnascl_cli.models.checkpoints import read_teacher
from rnascl_cli.models.files import load_student
from rnascl_cli.models.taps import Tap, recording_maps
from rnascl_cli.models.teachers.timm_models import PREFIX
from rnascl_cli.reporting.lineage import Model
from rnascl_cli.reporting.map_plots import LayerMap, MapSet

SHOWN = 7
SMALLEST_SIDE = 16
TAPS: tuple[Tap, ...] = ("conv", "norm", "block")


def attention_maps(models: Sequence[Model], image: Path) -> tuple[list[MapSet], list[str]]:
    """Compute the maps of every student that has tutors, and whose files and teacher are still there.

    Args:
        models: The reported models.
        image: An image file of the size that the networks take (any size for 224-pixel networks).

    Returns:
        The maps, and in words which students have none and why.

    Raises:
        UserError: The image does not decode, or has another size than the networks take.
    """
    sets, words = [], []
    image_size(image)  # an image that is none is an error even where no model could use it
    for model in models:
        if model.made is None:
            continue
        tutors = model.derived.document.tutors if model.derived else None
        if model.made.document.paradigm not in ("rnas-cl", "icc"):
            words.append(f"{model.name}: no attention maps, since it was trained without tutors")
        elif tutors is None or not tutors.tutor:
            words.append(f"{model.name}: no attention maps, since it has no tutors")
        elif missing := _missing_file(model, tutors):
            words.append(f"{model.name}: no attention maps, since {missing}")
        else:
            sets.append(_maps(model, tutors, image))
    return sets, words


def _missing_file(model: Model, tutors: TutorMap) -> str | None:
    assert model.made is not None
    files = [("the student's file", model.made.folder / STUDENT, model.sha256)]
    if not tutors.teacher.path.startswith(PREFIX):
        files.append(("the teacher's file", Path(tutors.teacher.path), tutors.teacher.sha256))
    for name, path, sha256 in files:
        if not path.is_file():
            return f"{name} is not there"
        if sha256_file(path) != sha256:
            return f"{name} has changed"
    return _missing_weights(tutors.teacher) if tutors.teacher.path.startswith(PREFIX) else None


def _missing_weights(reference: TeacherReference) -> str | None:
    try:
        found = read_teacher(reference.path).reference
    except UserError as error:
        return f"the teacher cannot be had ({error})"
    return None if found.sha256 == reference.sha256 else "timm's weights of the teacher have changed"


def _maps(model: Model, tutors: TutorMap, image: Path) -> MapSet:
    assert model.made is not None
    student, architecture = load_student(model.made.folder / STUDENT)
    teacher = read_teacher(tutors.teacher.path)
    x_BCHW = _read(image, architecture.input_size)
    side = max(SMALLEST_SIDE, architecture.input_size // 4)
    student_LP = _record(student, x_BCHW, tutors.student_layers, side)
    teacher_LP = _record(teacher.module, x_BCHW, tutors.teacher_layers, side)
    last = len(tutors.tutor) - 1
    chosen = sorted({round(index * last / (SHOWN - 1)) for index in range(SHOWN)})
    popular = Counter(tutors.tutor).most_common(SHOWN)
    return MapSet(
        model=model.name,
        teacher=tutors.teacher.architecture,
        image=image.name,
        pixels=x_BCHW[0].permute(1, 2, 0).tolist(),
        students=[
            LayerMap(f"{index}: {tutors.student_layers[index]}", _square(student_LP[index], side)) for index in chosen
        ],
        tutors=[
            LayerMap(f"{tutor}: {tutors.teacher_layers[tutor]}", _square(teacher_LP[tutor], side))
            for tutor in (tutors.tutor[index] for index in chosen)
        ],
        popular=[
            LayerMap(f"{tutor}: {tutors.teacher_layers[tutor]} ({count}×)", _square(teacher_LP[tutor], side))
            for tutor, count in popular
        ],
    )


def _read(image: Path, side: int) -> Tensor:
    width, height = image_size(image)
    resize = side == CROPPED_SIDE
    if not resize and (width, height) != (side, side):
        raise UserError(f"--image {image}: is {width}x{height}, the networks take {side}x{side}; give one of that size")
    return decode([image], Shape(side, resize), what="image").float() / 255


def _record(module: nn.Module, x_BCHW: Tensor, layers: Sequence[str], side: int) -> Tensor:
    """Return the maps of the named layers, (L, P); which kind of layer they are is told by their names."""
    for tap in TAPS:
        try:
            context = recording_maps(module, side=side, tap=tap, layers=layers)
            with torch.no_grad(), context as recorder:
                module(x_BCHW)
                return recorder.take()[0]
        except ValueError:
            continue
    raise UserError(f"the model has no layers {', '.join(layers[:3])}; it does not fit its tutor map")


def _square(map_P: Tensor, side: int) -> list[list[float]]:
    rows: list[list[float]] = map_P.reshape(side, side).tolist()
    return rows
