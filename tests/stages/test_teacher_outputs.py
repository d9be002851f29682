"""The output cache of the teacher: the same numbers with and without it."""

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
from rnascl_cli.data.augment import Augment, Crop, augmentation
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.recipes.settings import AttentionSettings, DataSettings, TeacherCacheSettings
from rnascl_cli.teachers import output_cache
from rnascl_cli.teachers.forward import TeacherOutput, frozen_teacher
from rnascl_cli.teachers.load import Teacher, read_teacher
from rnascl_cli.teachers.output_cache import CachedTeacher, open_output_cache, outputs_dir, reserved_bytes
from rnascl_cli.teachers.output_store import OutputStore, StoredKind
from tests.command import done
from tests.engine.toy import CPU, image_set

pytestmark = pytest.mark.unit

ATTENTION = AttentionSettings(map_size=4)
DATA = DataSettings(spec="digits", limit_train=40, limit_test=10)
BF16 = dataclasses.replace(CPU, teacher="bf16")


@pytest.fixture
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "cache"))
    return outputs_dir()


@pytest.fixture(scope="module")
def data() -> Data:
    """Forty digits."""
    return load_data(DATA, seed=0)


@pytest.fixture
def teacher(tiny_teacher: Path) -> Teacher:
    """An untrained r8."""
    return read_teacher(str(tiny_teacher))


def outputs_of_run(
    teacher: Teacher,
    data: Data,
    kept: CachedTeacher | None,
    *,
    epochs: int = 3,
    layers: list[str] | None = None,
    compute: DeviceConfig = CPU,
) -> list[TeacherOutput]:
    """The teacher's outputs for each batch of a short run."""
    found = []
    with frozen_teacher(teacher, attention=ATTENTION, compute=compute, layers=layers, cache=kept) as frozen:
        for epoch in range(epochs):
            drawn = torch.Generator().manual_seed(epoch)
            for batch in batches(
                data.train, batch_size=12, generator=drawn, augment=Crop(flip=False), device=torch.device("cpu")
            ):
                found.append(frozen(batch))
            frozen.flush_cache()
    return found


def open_cache(
    teacher: Teacher,
    data: Data,
    *,
    attention: AttentionSettings = ATTENTION,
    maps: bool = True,
    compute: DeviceConfig = CPU,
    augment: Augment | None = None,
    **settings: Any,
) -> CachedTeacher | None:
    return open_output_cache(
        TeacherCacheSettings(**settings),
        teacher,
        images=data.train,
        augment=augment or augmentation(DATA, data.input_size),
        attention=attention,
        maps=maps,
        compute=compute,
    )


def opened(teacher: Teacher, data: Data, **options: Any) -> CachedTeacher:
    cache = open_cache(teacher, data, **options)
    assert cache is not None
    return cache


def same(one: list[TeacherOutput], other: list[TeacherOutput]) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return b is None if a is None else b is not None and torch.equal(a, b)

    return all(map(equal, [*sum(one, ())], [*sum(other, ())]))


@pytest.mark.usefixtures("own_outputs")
@pytest.mark.parametrize("compute", [CPU, BF16], ids=["fp32", "bf16"])
def test_outputs_are_the_same_without_while_filling_and_from_the_cache(
    teacher: Teacher, data: Data, compute: DeviceConfig
) -> None:
    plain = outputs_of_run(teacher, data, None, compute=compute)
    filling = opened(teacher, data, compute=compute)
    assert same(plain, outputs_of_run(teacher, data, filling, compute=compute))
    assert 0 < filling.computed <= filling.drawn
    full = opened(teacher, data, compute=compute)
    assert same(plain, outputs_of_run(teacher, data, full, compute=compute))
    assert (full.drawn, full.computed) == (filling.drawn, 0)


@pytest.mark.parametrize("compute", [CPU, BF16], ids=["fp32", "bf16"])
def test_outputs_from_device_memory_are_the_same(
    own_outputs: Path, teacher: Teacher, data: Data, compute: DeviceConfig
) -> None:
    plain = outputs_of_run(teacher, data, None, compute=compute)
    filling = opened(teacher, data, where="device", compute=compute)
    assert same(plain, outputs_of_run(teacher, data, filling, compute=compute))
    assert 0 < filling.computed <= filling.drawn
    computed = filling.computed
    assert same(plain, outputs_of_run(teacher, data, filling, compute=compute))
    assert filling.computed == computed
    assert not own_outputs.exists()


@pytest.mark.usefixtures("own_outputs")
def test_too_little_memory(
    teacher: Teacher, data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output_cache, "free_memory", lambda device: 1000)
    assert open_cache(teacher, data, where="device") is None
    assert "half of what is free" in capsys.readouterr().err
    assert open_cache(teacher, data, where="auto") is not None
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"teacher_cache.where.*half of what is free"):
        open_cache(teacher, data, where="device", mode="on")


@pytest.mark.usefixtures("own_outputs")
def test_training_with_some_layers_reuses_the_cache_of_a_search(teacher: Teacher, data: Data) -> None:
    outputs_of_run(teacher, data, opened(teacher, data))
    every = list(attention_layers(teacher.module))
    layers = [every[5], every[2]]
    kept = opened(teacher, data)
    assert same(outputs_of_run(teacher, data, None, layers=layers), outputs_of_run(teacher, data, kept, layers=layers))
    assert kept.computed == 0
    # And the KL paradigm finds the logits.
    logits = opened(teacher, data, maps=False)
    assert same(outputs_of_run(teacher, data, None, layers=[]), outputs_of_run(teacher, data, logits, layers=[]))
    assert logits.computed == 0


@pytest.mark.usefixtures("own_outputs")
@pytest.mark.parametrize(
    "change",
    [{"attention": AttentionSettings(map_size=2)}, {"attention": AttentionSettings(map_size=4, source="norm")}],
    ids=["size", "tap"],
)
def test_other_maps_are_other_outputs(teacher: Teacher, data: Data, change: dict[str, Any]) -> None:
    outputs_of_run(teacher, data, opened(teacher, data))
    kept = opened(teacher, data, **change)
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
    outputs_of_run(teacher, data, opened(teacher, data), epochs=1)
    for kept in (
        opened(read_teacher(str(other_teacher)), data),
        opened(teacher, data, compute=BF16),
    ):
        outputs_of_run(teacher, data, kept, epochs=1)
        assert kept.computed == kept.drawn


def test_off_keeps_nothing(own_outputs: Path, teacher: Teacher, data: Data) -> None:
    assert open_cache(teacher, data, mode="off") is None
    assert not own_outputs.exists()


def test_outputs_that_do_not_fit_are_cached_in_part_with_mode_on(
    own_outputs: Path, teacher: Teacher, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = len(attention_layers(teacher.module)) * 16
    per_image = 81 * (10 + maps) * 4  # float32
    limit = 10.5 * per_image / 1e9
    assert open_cache(teacher, data, limit_gb=limit) is None
    assert "would take" in capsys.readouterr().err
    kept = opened(teacher, data, mode="on", limit_gb=limit)
    assert same(outputs_of_run(teacher, data, None), outputs_of_run(teacher, data, kept))
    assert reserved_bytes(own_outputs) < limit * 1e9 + 10_000
    again = opened(teacher, data, mode="on", limit_gb=limit)
    outputs_of_run(teacher, data, again)
    assert again.drawn - again.computed == 3 * 10  # ten images have rows


@pytest.mark.usefixtures("own_outputs")
@pytest.mark.parametrize(
    ("augment", "attention", "word"),
    [("resized-crop-flip", ATTENTION, "crops"), ("auto", AttentionSettings(norm="batch"), "norm")],
    ids=["views", "norm"],
)
def test_uncountable_outputs_are_an_error_with_mode_on_only(
    teacher: Teacher, data: Data, augment: Any, attention: AttentionSettings, word: str
) -> None:
    transform = augmentation(DataSettings(augment=augment), data.input_size)
    options: dict[str, Any] = {"augment": transform, "attention": attention}
    assert open_cache(teacher, data, **options) is None
    with pytest.raises(UserError, match=rf"teacher_cache.mode.*{word}"):
        open_cache(teacher, data, mode="on", **options)


@pytest.mark.parametrize(("epochs", "share"), [(200, 0.58), (600, 0.27)], ids=["search and train", "S3, S5 and S7"])
def test_share_of_views_that_the_teacher_computes(tmp_path: Path, epochs: int, share: float) -> None:
    """100 epochs of search and 100 of training; the same for three spaces. 162 (1 - (161/162)^200) / 200 = 0.575."""
    images = dataclasses.replace(image_set(60))
    views = Crop().views
    digests = images.digests()
    store = OutputStore(StoredKind({}, views, (1,), torch.float32), digests, folder=tmp_path)
    kept = CachedTeacher(digests, views=views, logits=store, maps=None)
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
