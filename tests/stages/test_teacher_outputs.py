"""The teacher's outputs, kept: the same numbers, and far fewer looks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnascl_cli.artifacts.store import sha256_file
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data, batches, load_data
from rnascl_cli.data.augment import Crop
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.recipes import AttentionSettings, Recipe, resolve
from rnascl_cli.teachers import output_cache
from rnascl_cli.teachers.disk_store import ArrayRecord, DiskStore
from rnascl_cli.teachers.forward import TeacherOutput, frozen_teacher
from rnascl_cli.teachers.load import Teacher, read_teacher
from rnascl_cli.teachers.output_cache import CachedTeacher, open_output_cache, outputs_dir, reserved_bytes
from tests.command import done
from tests.engine.toy import CPU, image_set

pytestmark = pytest.mark.unit

ATTENTION = AttentionSettings(map_size=4)
BF16 = dataclasses.replace(CPU, teacher="bf16")


@pytest.fixture
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    return outputs_dir()


@pytest.fixture(scope="module")
def data() -> Data:
    """Forty digits."""
    return load_data(recipe().data, seed=0)


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    """An untrained r8."""
    return read_teacher(str(tiny_teacher))


def recipe(**cache: Any) -> Recipe:
    return resolve([{"data": {"spec": "digits", "limit_train": 40, "limit_test": 10}, "teacher_cache": cache}])


def lessons(
    teacher: Teacher,
    data: Data,
    kept: CachedTeacher | None,
    *,
    epochs: int = 3,
    layers: list[str] | None = None,
    compute: DeviceConfig = CPU,
) -> list[TeacherOutput]:
    """What the teacher says of each batch of a short run."""
    found = []
    with frozen_teacher(teacher, attention=ATTENTION, compute=compute, layers=layers, cache=kept) as duty:
        for epoch in range(epochs):
            drawn = torch.Generator().manual_seed(epoch)
            for batch in batches(
                data.train, batch_size=12, generator=drawn, augment=Crop(flip=False), device=torch.device("cpu")
            ):
                found.append(duty.forward(batch))
            duty.flush_cache()
    return found


def opened(
    teacher: Teacher, data: Data, *, maps: bool = True, compute: DeviceConfig = CPU, **cache: Any
) -> CachedTeacher:
    kept = open_output_cache(recipe(**cache), teacher, data=data, attention=ATTENTION, maps=maps, compute=compute)
    assert kept is not None
    return kept


def same(one: list[TeacherOutput], other: list[TeacherOutput]) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return b is None if a is None else b is not None and torch.equal(a, b)

    return all(map(equal, [*sum(one, ())], [*sum(other, ())]))


@pytest.mark.usefixtures("own_outputs")
@pytest.mark.parametrize("compute", [CPU, BF16], ids=["fp32", "bf16"])
def test_the_same_lessons_without_the_cache_while_it_fills_and_from_it(
    teacher: Teacher, data: Data, compute: DeviceConfig
) -> None:
    plain = lessons(teacher, data, None, compute=compute)
    filling = opened(teacher, data, compute=compute)
    assert same(plain, lessons(teacher, data, filling, compute=compute))
    assert 0 < filling.computed <= filling.drawn
    full = opened(teacher, data, compute=compute)
    assert same(plain, lessons(teacher, data, full, compute=compute))
    assert (full.drawn, full.computed) == (filling.drawn, 0)


@pytest.mark.parametrize("compute", [CPU, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("where", ["device", "both"])
def test_the_same_lessons_from_the_memory_of_the_device(
    own_outputs: Path, teacher: Teacher, data: Data, where: str, compute: DeviceConfig
) -> None:
    plain = lessons(teacher, data, None, compute=compute)
    filling = opened(teacher, data, where=where, compute=compute)
    assert same(plain, lessons(teacher, data, filling, compute=compute))
    assert 0 < filling.computed <= filling.drawn
    computed = filling.computed
    assert same(plain, lessons(teacher, data, filling, compute=compute))
    assert filling.computed == computed
    assert own_outputs.exists() is (where == "both")
    if where == "both":  # the files serve a later run, wherever it keeps them
        for later in (opened(teacher, data, compute=compute), opened(teacher, data, where=where, compute=compute)):
            assert same(plain, lessons(teacher, data, later, compute=compute))
            assert later.computed == 0


@pytest.mark.usefixtures("own_outputs")
def test_too_little_memory(
    teacher: Teacher, data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output_cache, "free_memory", lambda device: 1000)
    options: dict[str, Any] = {"data": data, "attention": ATTENTION, "maps": True, "compute": CPU}
    assert open_output_cache(recipe(where="device"), teacher, **options) is None
    assert "half of what is free" in capsys.readouterr().err
    assert open_output_cache(recipe(where="both"), teacher, **options) is not None
    assert "on the disk only" in capsys.readouterr().err
    assert open_output_cache(recipe(where="auto"), teacher, **options) is not None
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"teacher_cache.where.*half of what is free"):
        open_output_cache(recipe(where="device", mode="on"), teacher, **options)


@pytest.mark.usefixtures("own_outputs")
def test_a_training_that_wants_some_layers_shares_with_a_search_that_wanted_all(teacher: Teacher, data: Data) -> None:
    lessons(teacher, data, opened(teacher, data))
    every = list(attention_layers(teacher.module))
    layers = [every[5], every[2]]
    kept = opened(teacher, data)
    assert same(lessons(teacher, data, None, layers=layers), lessons(teacher, data, kept, layers=layers))
    assert kept.computed == 0
    # And the KL paradigm finds the logits.
    logits = opened(teacher, data, maps=False)
    assert same(lessons(teacher, data, None, layers=[]), lessons(teacher, data, logits, layers=[]))
    assert logits.computed == 0


@pytest.mark.usefixtures("own_outputs")
@pytest.mark.parametrize(
    "change",
    [{"attention": AttentionSettings(map_size=2)}, {"attention": AttentionSettings(map_size=4, tap="norm")}],
    ids=["size", "tap"],
)
def test_other_maps_are_other_outputs(teacher: Teacher, data: Data, change: dict[str, Any]) -> None:
    lessons(teacher, data, opened(teacher, data))
    kept = open_output_cache(recipe(), teacher, data=data, maps=True, compute=CPU, **change)
    assert kept is not None
    asked: list[int] = []

    def ask(x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        asked.append(len(x_BCHW))
        raise StopIteration

    drawn = torch.Generator().manual_seed(0)
    batch = next(
        batches(data.train, batch_size=12, generator=drawn, augment=Crop(flip=False), device=torch.device("cpu"))
    )
    with pytest.raises(StopIteration):
        kept.forward(batch, ask)
    assert asked == [12]


@pytest.mark.usefixtures("own_outputs")
def test_another_teacher_and_precision_are_other_outputs(teacher: Teacher, other_teacher: Path, data: Data) -> None:
    lessons(teacher, data, opened(teacher, data), epochs=1)
    for kept in (
        opened(read_teacher(str(other_teacher)), data),
        opened(teacher, data, compute=BF16),
    ):
        lessons(teacher, data, kept, epochs=1)
        assert kept.computed == kept.drawn


def test_off_keeps_nothing(own_outputs: Path, teacher: Teacher, data: Data) -> None:
    kept = open_output_cache(recipe(mode="off"), teacher, data=data, attention=ATTENTION, maps=True, compute=CPU)
    assert kept is None
    assert not own_outputs.exists()


def test_what_would_not_fit_is_not_kept_unless_asked_and_then_in_part(
    own_outputs: Path, teacher: Teacher, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = len(attention_layers(teacher.module)) * 16
    per_image = 81 * (10 + maps) * 4  # float32
    limit = 10.5 * per_image / 1e9
    options: dict[str, Any] = {"data": data, "attention": ATTENTION, "maps": True, "compute": CPU}
    assert open_output_cache(recipe(limit_gb=limit), teacher, **options) is None
    assert "would take" in capsys.readouterr().err
    kept = opened(teacher, data, mode="on", limit_gb=limit)
    assert same(lessons(teacher, data, None), lessons(teacher, data, kept))
    assert reserved_bytes(own_outputs) < limit * 1e9 + 10_000
    again = opened(teacher, data, mode="on", limit_gb=limit)
    lessons(teacher, data, again)
    assert again.drawn - again.computed == 3 * 10  # ten images have rows


@pytest.mark.usefixtures("own_outputs")
@pytest.mark.parametrize(
    ("settings", "attention", "word"),
    [
        ({"data": {"augment": "resized-crop-flip"}}, ATTENTION, "crops"),
        ({}, AttentionSettings(norm="batch"), "norm"),
    ],
    ids=["views", "norm"],
)
def test_what_cannot_be_kept_is_an_error_only_where_it_was_asked_for(
    teacher: Teacher, data: Data, settings: dict[str, Any], attention: AttentionSettings, word: str
) -> None:
    options: dict[str, Any] = {"data": data, "attention": attention, "maps": True, "compute": CPU}
    assert open_output_cache(resolve([settings]), teacher, **options) is None
    with pytest.raises(UserError, match=rf"teacher_cache.mode.*{word}"):
        open_output_cache(resolve([settings, {"teacher_cache": {"mode": "on"}}]), teacher, **options)


@pytest.mark.parametrize(("epochs", "share"), [(200, 0.58), (600, 0.27)], ids=["search and train", "S3, S5 and S7"])
def test_how_often_the_teacher_looks(tmp_path: Path, epochs: int, share: float) -> None:
    """100 epochs of search and 100 of training; the same for three spaces. 162 (1 - (161/162)^200) / 200 = 0.575."""
    images = dataclasses.replace(image_set(60))
    views = Crop().views
    record = ArrayRecord((1,), torch.float32)
    kept = CachedTeacher(DiskStore.open(tmp_path, record, views=views, digests=images.digests()), None)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in batches(images, batch_size=60, generator=drawn, augment=Crop(), device=torch.device("cpu")):
            kept.forward(batch, lambda x_BCHW: (torch.zeros(len(x_BCHW), 1), None))
    expected = views * (1 - (1 - 1 / views) ** epochs) / epochs
    assert kept.computed / kept.drawn == pytest.approx(expected, rel=0.02)
    assert kept.computed / kept.drawn <= share


@pytest.mark.pipeline
def test_search_and_train_end_in_the_same_bytes_with_and_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path, small: list[object]
) -> None:
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    weights, tables = [], []
    for name, mode in (("off", "off"), ("filling", "auto"), ("filled", "on")):
        common: list[object] = ["--set", f"teacher_cache.mode={mode}", *small, "--epochs", 3]
        done(
            "search", "--space", "S3", "--data", "digits", "--teacher", tiny_teacher, *common, "--out", tmp_path / name
        )
        done("train", tmp_path / name, *common, "--out", tmp_path / f"{name}-train")
        weights.append(sha256_file(tmp_path / f"{name}-train" / "student.safetensors"))
        tables.append(json.loads((tmp_path / name / "search.json").read_text())["tutor_logits"])
    assert len(set(weights)) == 1
    assert tables[0] == tables[1] == tables[2]
    shutil.rmtree(tmp_path / "cache")
