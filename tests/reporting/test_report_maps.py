"""``report --image``: maps of students and tutors, or words on why there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from rnascl_cli.artifacts.documents import DerivedDocument, TeacherReference, TrainDocument, TutorMap
from rnascl_cli.artifacts.store import sha256_file, write_document
from rnascl_cli.core.errors import UserError
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.files import build_student, save_student
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.figures.attention_maps import map_plot
from rnascl_cli.stages.report import attention_maps as module
from rnascl_cli.stages.report.attention_maps import attention_maps
from rnascl_cli.teachers.architectures import build_teacher
from tests.reporting import factories as make
from tests.reporting.watching import watched


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "horse.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(path)
    return path


@pytest.fixture
def runs(tmp_path: Path, tiny_teacher: Path) -> Path:
    """A run with a student's file whose tutors are layers of the tiny teacher."""
    torch.manual_seed(0)
    folder, built = tmp_path / "runs" / "s3", make.architecture()
    folder.mkdir(parents=True)
    student = build_student(built)
    sha256 = save_student(folder / "student.safetensors", student, built)
    student_layers = list(attention_layers(student))
    teacher_layers = list(attention_layers(build_teacher("r8", num_classes=10)))
    teacher = TeacherReference(source="r8", path=str(tiny_teacher), architecture="r8", sha256=sha256_file(tiny_teacher))
    tutor = [min(index // 3, len(teacher_layers) - 1) for index in range(len(student_layers))]
    made = make.provenance("derive", teacher=teacher)
    tutors = TutorMap(teacher=teacher, student_layers=student_layers, teacher_layers=teacher_layers, tutor=tutor)
    derived = DerivedDocument(provenance=made, paradigm="rnas-cl", architecture=built, tutors=tutors)
    write_document(folder / "derived.json", derived)
    document = TrainDocument(
        provenance=made,
        paradigm="rnas-cl",
        architecture=built,
        student_sha256=sha256,
        clean_accuracy=0.1,
        epochs=1,
        seconds=1.0,
        history=[],
    )
    write_document(folder / "train.json", document)
    return tmp_path / "runs"


@pytest.fixture
def rivalled(runs: Path) -> Path:
    """Beside that run, students under KL alone: of the same seed and of another, and one of another teacher."""
    for name, seed, teacher in (("kl-1", 1, None), ("kl-0", 0, None), ("kl-other", 0, make.TEACHER)):
        folder = runs / name
        folder.mkdir()
        torch.manual_seed(10 + seed)
        built = make.architecture()
        sha256 = save_student(folder / "student.safetensors", build_student(built), built)
        own = teacher or collect([runs / "s3"]).derivations[0].document.provenance.teacher
        document = TrainDocument(
            provenance=make.provenance("train", teacher=own, seed=seed),
            paradigm="kl",
            architecture=built,
            student_sha256=sha256,
            clean_accuracy=0.1,
            epochs=1,
            seconds=1.0,
            history=[],
        )
        write_document(folder / "train.json", document)
    return runs


def test_the_student_under_kl_alone_stands_beside(rivalled: Path, image: Path) -> None:
    ((maps,), words) = attention_maps(models(collect([rivalled])), image)
    assert words == ["no attention maps of students trained without tutors: kl-0, kl-1, kl-other"]
    assert maps.baseline is not None
    assert maps.baseline.model == "kl-0"  # the same teacher and the same seed
    assert [found.layer for found in maps.baseline.maps] == [found.layer for found in maps.students]
    assert maps.baseline.maps[3].values != maps.students[3].values
    assert "kl-0, trained with KL and no tutors" in map_plot(maps).caption


def test_distances_are_those_of_eq_1(runs: Path, image: Path) -> None:
    """Worked out from the drawn maps alone: || s/|s| - t/|t| ||."""
    ((maps,), _) = attention_maps(models(collect([runs])), image)
    for student, tutor in zip(maps.students, maps.tutors, strict=True):
        s, t = torch.tensor(student.values).double(), torch.tensor(tutor.values).double()
        s = s / s.norm().clamp(min=1e-12)  # below that a layer is dead, as in training
        assert student.distance == pytest.approx(float((s - t / t.norm()).norm()), abs=1e-4)
        assert tutor.distance is None


def test_maps_of_student_and_tutor(runs: Path, image: Path) -> None:
    ((maps,), words) = attention_maps(models(collect([runs])), image)
    assert words == ["no student trained with KL alone under the same teacher is given to compare attention maps with"]
    assert maps.students[0].layer == "0: stem.conv"
    assert len(maps.students) == len(maps.tutors) == 7
    assert maps.popular[0].layer.endswith("×)")
    assert {(len(found.values), len(found.values[0])) for found in (*maps.students, *maps.tutors)} == {(16, 16)}
    assert all(value >= 0 for found in maps.students for row in found.values for value in row)
    assert map_plot(maps).name == "maps-s3"


def test_progress_ends_at_its_total(rivalled: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(monkeypatch, module)
    attention_maps(models(collect([rivalled])), image)
    assert shown == [("computing attention maps", 4, 4)]


def test_a_student_without_tutors_or_files_is_named(tmp_path: Path, image: Path) -> None:
    make.write_train(tmp_path / "runs" / "plain", student="a")
    searched = make.write_search(tmp_path / "runs" / "s3")
    derived = make.write_derived(tmp_path / "runs" / "s3-train", searched)
    make.write_train(tmp_path / "runs" / "s3-train", student="b", derived_sha256=derived)
    sets, words = attention_maps(models(collect([tmp_path / "runs"])), image)
    assert sets == []
    assert words == [
        "plain: no attention maps, since it has no tutors",
        "s3-train: no attention maps, since the student's file is missing",
    ]


def test_a_changed_student_is_not_shown(runs: Path, image: Path) -> None:
    with (runs / "s3" / "student.safetensors").open("ab") as file:
        file.write(b" ")
    _, words = attention_maps(models(collect([runs])), image)
    assert words == ["s3: no attention maps, since the student's file has changed"]


def test_an_image_of_another_size_or_none_is_refused(runs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png: is 40x30, the networks take 32x32"):
        attention_maps(models(collect([runs])), tmp_path / "large.png")
    (tmp_path / "text.png").write_text("none", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.png: does not decode"):
        attention_maps(models(collect([runs])), tmp_path / "text.png")
