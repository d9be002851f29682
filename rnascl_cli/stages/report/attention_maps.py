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
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.progress import long_progress
from rnascl_cli.data.decode import Shape, decode, image_size
from rnascl_cli.distill.attention import tutor_distances, unit_maps
from rnascl_cli.models.attention_maps import MapSource, record_attention_maps
from rnascl_cli.models.files import load_student
from rnascl_cli.recipes.data_spec import CROPPED_SIDE
from rnascl_cli.recipes.paradigms import uses_tutors
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.figures.attention_maps import ComparedMaps, LayerMap, MapSet
from rnascl_cli.teachers.files import PREFIX
from rnascl_cli.teachers.load import read_teacher

SHOWN = 7
SMALLEST_SIDE = 16
SOURCES: tuple[MapSource, ...] = ("conv", "norm", "block")


def attention_maps(models: Sequence[ReportModel], image: Path) -> tuple[list[MapSet], list[str]]:
    """Compute the maps of each student with tutors whose files still exist.

    A student trained under the same teacher with KL alone is shown for comparison, if one is given.

    Args:
        models: The reported models.
        image: An image file of the size that the networks take (any size for 224-pixel networks).

    Returns:
        The maps, and a sentence for each student without maps.

    Raises:
        UserError: The image cannot be decoded, or does not have the input size of the networks.
    """
    sets, words, untutored = [], [], []
    image_size(image)  # a bad image is an error even if no model uses it
    trained = [model for model in models if model.artifact is not None]
    with long_progress("computing attention maps", len(trained)) as advance:
        for model in trained:
            assert model.artifact is not None
            tutors = model.derived.document.tutors if model.derived else None
            if not uses_tutors(model.artifact.document.paradigm):
                untutored.append(model.name)
            elif tutors is None or not tutors.tutor:
                words.append(f"{model.name}: no attention maps, since it has no tutors")
            elif missing := _missing_student(model) or _missing_teacher(tutors.teacher):
                words.append(f"{model.name}: no attention maps, since {missing}")
            else:
                sets.append(_maps(model, tutors, image, baseline=kl_baseline(model, models)))
            advance()
    if untutored:
        words.append(f"no attention maps of students trained without tutors: {', '.join(untutored)}")
    if sets and not any(found.baseline for found in sets):
        words.append("no student trained with KL alone under the same teacher is given to compare attention maps with")
    return sets, words


def kl_baseline(model: ReportModel, models: Sequence[ReportModel]) -> ReportModel | None:
    """Return a student of the same space that was trained under the same teacher with KL alone; None without one.

    One with the same widths and seed is preferred.
    """
    assert model.artifact is not None
    document = model.artifact.document

    def difference(other: ReportModel) -> tuple[bool, ...]:
        assert other.artifact is not None
        found = other.artifact.document
        return (found.architecture != document.architecture, found.provenance.seed != document.provenance.seed)

    candidates = [
        other
        for other in models
        if other.artifact
        and other.artifact.document.paradigm == "kl"
        and other.distill is None
        and other.artifact.document.architecture.space == document.architecture.space
        and other.artifact.document.architecture.input_size == document.architecture.input_size
        and other.finetuned == model.finetuned
        and other.teacher
        and model.teacher
        and other.teacher.sha256 == model.teacher.sha256
        and _missing_student(other) is None
    ]
    return min(candidates, key=difference, default=None)


def _missing_student(model: ReportModel) -> str | None:
    assert model.artifact is not None
    return _missing("the student's file", model.artifact.folder / STUDENT, model.sha256)


def _missing_teacher(reference: TeacherReference) -> str | None:
    if not reference.path.startswith(PREFIX):
        return _missing("the teacher's file", Path(reference.path), reference.sha256)
    try:
        found = read_teacher(reference.path).reference
    except UserError as error:
        return f"the teacher is unavailable ({error})"
    return None if found.sha256 == reference.sha256 else "timm's weights of the teacher have changed"


def _missing(name: str, path: Path, sha256: str) -> str | None:
    if not path.is_file():
        return f"{name} is missing"
    return None if sha256_file(path) == sha256 else f"{name} has changed"


def _maps(model: ReportModel, tutors: TutorMap, image: Path, *, baseline: ReportModel | None) -> MapSet:
    assert model.artifact is not None
    student, architecture = load_student(model.artifact.folder / STUDENT)
    teacher = read_teacher(tutors.teacher.path)
    x_BCHW = _read(image, architecture.input_size)
    side = max(SMALLEST_SIDE, architecture.input_size // 4)
    student_LP = _record(student, x_BCHW, tutors.student_layers, side)
    teacher_LP = _record(teacher.module, x_BCHW, tutors.teacher_layers, side)
    tutors_LP = teacher_LP[tutors.tutor]
    last = len(tutors.tutor) - 1
    chosen = sorted({round(index * last / (SHOWN - 1)) for index in range(SHOWN)})
    popular = Counter(tutors.tutor).most_common(SHOWN)
    shown, distance = _with_distances(student_LP, tutors_LP, tutors, chosen, side)
    return MapSet(
        model=model.name,
        teacher=tutors.teacher.architecture,
        image=image.name,
        pixels=x_BCHW[0].permute(1, 2, 0).tolist(),
        students=shown,
        tutors=[
            LayerMap(f"{tutor}: {tutors.teacher_layers[tutor]}", _square(teacher_LP[tutor], side))
            for tutor in (tutors.tutor[index] for index in chosen)
        ],
        popular=[
            LayerMap(f"{tutor}: {tutors.teacher_layers[tutor]} ({count}×)", _square(teacher_LP[tutor], side))
            for tutor, count in popular
        ],
        mean_distance=distance,
        baseline=_baseline_maps(baseline, x_BCHW, tutors_LP, tutors, chosen, side) if baseline else None,
    )


def _with_distances(
    maps_LP: Tensor, tutors_LP: Tensor, tutors: TutorMap, chosen: Sequence[int], side: int
) -> tuple[list[LayerMap], float]:
    """Return the maps of some student layers with the distance to their tutor, and the mean distance of all layers."""
    distances_L = tutor_distances(unit_maps(maps_LP.unsqueeze(0)), unit_maps(tutors_LP.unsqueeze(0)))
    shown = [
        LayerMap(
            f"{index}: {tutors.student_layers[index]}",
            _square(maps_LP[index], side),
            distance=float(distances_L[index]),
        )
        for index in chosen
    ]
    return shown, float(distances_L.mean())


def _baseline_maps(
    baseline: ReportModel, x_BCHW: Tensor, tutors_LP: Tensor, tutors: TutorMap, chosen: Sequence[int], side: int
) -> ComparedMaps:
    assert baseline.artifact is not None
    student, _ = load_student(baseline.artifact.folder / STUDENT)
    baseline_LP = _record(student, x_BCHW, tutors.student_layers, side)
    shown, distance = _with_distances(baseline_LP, tutors_LP, tutors, chosen, side)
    return ComparedMaps(baseline.name, shown, distance)


def _read(image: Path, side: int) -> Tensor:
    width, height = image_size(image)
    resize = side == CROPPED_SIDE
    if not resize and (width, height) != (side, side):
        raise UserError(
            f"--image {image}: is {width}x{height}, the networks take {side}x{side}; give an image of that size"
        )
    return decode([image], Shape(side, resize), what="image").float() / 255


def _record(module: nn.Module, x_BCHW: Tensor, layers: Sequence[str], side: int) -> Tensor:
    """Return the maps of the named layers, (L, P); the names determine the kind of layer."""
    for tap in SOURCES:
        try:
            context = record_attention_maps(module, side=side, source=tap, layers=layers)
            with torch.no_grad(), context as recorder:
                module(x_BCHW)
                return recorder.pop()[0]
        except ValueError:
            continue
    raise UserError(f"the model has no layers {', '.join(layers[:3])}; it does not fit its tutor map")


def _square(map_P: Tensor, side: int) -> list[list[float]]:
    rows: list[list[float]] = map_P.reshape(side, side).tolist()
    return rows
