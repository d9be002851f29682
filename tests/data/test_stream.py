"""Sets that stay in their files: the same images, the same batches, whoever decodes them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, RandomResizedCrop, Resize
from torchvision.transforms import functional as reference

from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.data import Batch, Data, batches, load_data, ordered_batches, stream
from rnascl_cli.data.augment import Augment, Crop, ResizedCrop, Unchanged
from rnascl_cli.data.stream import StreamedSet, default_workers
from rnascl_cli.recipes.settings import DataSettings
from tests.data.conftest import MakeFolder
from tests.photographs import write_photograph, write_photographs
from tests.ranks import become

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, six training and four test photographs each."""
    return write_photographs(tmp_path_factory.mktemp("photographs"), ["a", "b"], train=6, test=4)


def load(root: Path, *, keep: str = "stream", workers: int = 0, **settings: object) -> Data:
    given = {"spec": f"folder:{root}", "keep": keep, "workers": workers, "holdout": 0.0, **settings}
    return load_data(DataSettings.model_validate(given), seed=0)


def one_pass(data: Data, augment: Augment, *, seed: int = 0, batch_size: int = 5) -> list[Batch]:
    drawn = torch.Generator().manual_seed(seed)
    return list(batches(data.train, batch_size=batch_size, generator=drawn, augment=augment, device=CPU))


def photograph(data: Data, row: int) -> Image.Image:
    assert isinstance(data.train, StreamedSet)
    (path,) = data.train.files.paths(data.train.index_N[row : row + 1])
    return Image.open(path).convert("RGB")


def same(first: list[Batch], second: list[Batch]) -> bool:
    def tensors(batch: Batch) -> tuple[Tensor, ...]:
        return batch.x_BCHW, batch.y_B, batch.rows_B, batch.views_B

    return len(first) == len(second) and all(
        torch.equal(one, other)
        for pair in zip(first, second, strict=True)
        for one, other in zip(*map(tensors, pair), strict=True)
    )


@pytest.mark.unit
def test_evaluated_as_in_memory_and_as_torchvision_does(photographs: Path) -> None:
    streamed, kept = load(photographs), load(photographs, keep="memory")
    assert isinstance(streamed.test, StreamedSet)
    assert not isinstance(kept.test, StreamedSet)
    assert streamed.input_size == 224
    assert torch.equal(streamed.test.pixels(slice(None)), kept.test.images_NCHW)
    for one, other in zip(
        ordered_batches(streamed.test, batch_size=3, device=CPU),
        ordered_batches(kept.test, batch_size=3, device=CPU),
        strict=True,
    ):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    usual = Compose([Resize(256, InterpolationMode.BILINEAR), CenterCrop(224), PILToTensor()])
    for row in range(len(streamed.train)):
        assert torch.equal(streamed.train.pixels(torch.tensor([row]))[0], usual(photograph(streamed, row)))


@pytest.mark.unit
def test_a_random_crop_is_torchvisions_of_the_whole_photograph(photographs: Path) -> None:
    data, crop = load(photographs), ResizedCrop()
    mirrored = 0
    for batch in one_pass(data, crop):
        for x_CHW, row, view in zip(batch.x_BCHW, batch.rows_B.tolist(), batch.views_B.tolist(), strict=True):
            image = photograph(data, row)
            left, top, right, bottom = crop.pixel_box(view, width=image.width, height=image.height)
            wanted = reference.resized_crop(image, top, left, bottom - top, right - left, [224, 224])
            mirrored += int(view[0])
            wanted = reference.hflip(wanted) if view[0] else wanted
            assert torch.equal(x_CHW, reference.pil_to_tensor(wanted).float() / 255)
    assert 0 < mirrored < 12


@pytest.mark.unit
@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 300), (900, 100)])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    """Mean of each of left, top, width and height over 4,000 boxes: within four standard errors of torchvision's."""
    count = 4000
    views_B = ResizedCrop().draw(count, torch.Generator().manual_seed(0))
    ours = torch.tensor([ResizedCrop().pixel_box(view, width=width, height=height) for view in views_B.tolist()])
    ours_B4 = torch.stack([ours[:, 0], ours[:, 1], ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]], dim=1).double()
    blank = torch.empty(3, height, width)
    found = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs_B4 = torch.tensor(found).double()[:, [1, 0, 3, 2]]
    error_4 = (ours_B4.var(dim=0) + theirs_B4.var(dim=0)).div(count).sqrt()
    assert bool(((ours_B4.mean(dim=0) - theirs_B4.mean(dim=0)).abs() <= 4 * error_4 + 1e-9).all())
    for column, limit in ((0, width), (1, height)):
        assert int(ours_B4[:, column].min()) >= 0
        assert int((ours_B4[:, column] + ours_B4[:, column + 2]).max()) <= limit
    share_B = ours_B4[:, 2] * ours_B4[:, 3] / (width * height)
    ratio_B = ours_B4[:, 2] / ours_B4[:, 3]
    assert float(share_B.min()) > 0.07
    assert float(ratio_B.min()) > 0.74
    assert float(ratio_B.max()) < 1.35


@pytest.mark.unit
def test_where_no_box_fits_the_largest_central_one_is_taken() -> None:
    never = [0.0] + [0.999] * 40  # the whole area at ratio 4/3: fits neither
    assert ResizedCrop().pixel_box(never, width=1000, height=90) == (440, 0, 560, 90)
    assert ResizedCrop().pixel_box(never, width=90, height=1000) == (0, 440, 90, 560)


@pytest.mark.unit
@pytest.mark.parametrize("augment", [ResizedCrop(), Crop(), Unchanged()], ids=lambda item: type(item).__name__)
def test_the_batches_do_not_depend_on_the_workers(photographs: Path, augment: Augment) -> None:
    passes = {
        workers: [one_pass(data, augment, seed=seed) for seed in (0, 1, 0)]
        for workers in (0, 1, 3)
        for data in [load(photographs, workers=workers)]
    }
    assert not same(passes[0][0], passes[0][1])
    assert same(passes[0][0], passes[0][2])
    for workers in (1, 3):
        assert all(same(*pair) for pair in zip(passes[0], passes[workers], strict=True))


@pytest.mark.unit
def test_the_crops_of_all_ranks_are_those_of_one(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(photographs, workers=1)
    alone = one_pass(data, ResizedCrop())
    assert [len(batch) for batch in alone] == [5, 5, 2]
    for number in (0, 1):
        become(monkeypatch, number, 2)
        own = one_pass(data, ResizedCrop())
        assert [len(batch) for batch in own] == [[3, 3, 1], [2, 2, 1]][number]
        for batch, whole in zip(own, alone, strict=True):
            assert batch.x_BCHW.equal(batch.shard.of(whole.x_BCHW))
            assert batch.y_B.equal(batch.shard.of(whole.y_B))


@pytest.mark.unit
@pytest.mark.parametrize("augment", [Crop(), Unchanged()], ids=lambda item: type(item).__name__)
def test_small_images_give_the_batches_of_memory(make_folder: MakeFolder, augment: Augment) -> None:
    root = make_folder()
    streamed, kept = load(root, workers=1), load(root, keep="memory")
    assert same(one_pass(streamed, augment), one_pass(kept, augment))


@pytest.mark.unit
def test_a_pass_draws_nothing_from_the_global_stream(photographs: Path) -> None:
    data = load(photographs, workers=1)
    before = torch.get_rng_state()
    one_pass(data, ResizedCrop())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.unit
def test_a_pass_inside_another_and_one_after_a_broken_off_one(photographs: Path) -> None:
    data = load(photographs, workers=1)
    alone = one_pass(data, ResizedCrop())
    inner = []
    drawn = torch.Generator().manual_seed(0)
    outer = []
    for batch in batches(data.train, batch_size=5, generator=drawn, augment=ResizedCrop(), device=CPU):
        outer.append(batch)
        inner.append(one_pass(data, ResizedCrop()))
    assert all(same(alone, found) for found in (outer, *inner))
    for _ in ordered_batches(data.test, batch_size=2, device=CPU):
        break
    assert same(one_pass(data, ResizedCrop()), alone)


@pytest.mark.unit
def test_selected_rows_moved_labels_and_pixels(photographs: Path) -> None:
    data = load(photographs)
    some = data.train.select(torch.tensor([1, 7, 8])).to("cpu")
    assert isinstance(some, StreamedSet)
    assert some.index_N.tolist() == [1, 7, 8]
    assert some.labels_N.tolist() == [0, 1, 1]
    whole = data.train.pixels(slice(None))
    assert torch.equal(some.pixels(slice(None)), whole[[1, 7, 8]])
    assert torch.equal(some.pixels(slice(1, 2)), whole[7:8])
    assert torch.equal(some.pixels(torch.tensor([2, 0])), whole[[8, 1]])
    with pytest.raises(AssertionError, match=r"pixels\(rows\)"):  # nobody decodes a whole set by accident
        _ = some.images_NCHW
    assert some.digests() == [data.train.digests()[row] for row in (1, 7, 8)]
    assert data.train.select(torch.arange(0)).pixels(slice(None)).shape == (0, 3, 224, 224)


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    root = write_photographs(tmp_path / "damaged", ["a", "b"], train=4, test=2)
    victim = root / "train" / "b" / "002.JPEG"
    victim.write_bytes(victim.read_bytes()[:-300])
    yield victim
    assert victim.is_file()


@pytest.mark.unit
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_and_the_others_are_not_touched(damaged: Path, workers: int) -> None:
    data = load(damaged.parents[2], workers=workers)
    with pytest.raises(UserError, match=r"train/b/002\.JPEG: does not decode") as raised:
        one_pass(data, ResizedCrop(), batch_size=2)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)
    others = data.train.select(torch.tensor([0, 1, 2, 3, 4, 5, 7]))
    drawn = torch.Generator()
    assert len(list(batches(others, batch_size=2, generator=drawn, augment=ResizedCrop(), device=CPU))) == 3


@pytest.mark.unit
def test_a_worker_that_dies_is_a_failure_in_a_line(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = os.getpid()

    def die(job: stream.Job) -> stream.Decoded:
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    data = load(photographs, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(stream, "decode_job", die)
        with pytest.raises(RunError, match=r"a process that decodes images died .*data\.workers=N") as raised:
            one_pass(data, ResizedCrop())
    assert "\n" not in str(raised.value)
    assert len(one_pass(data, ResizedCrop())) == 3  # with new workers


@pytest.mark.unit
def test_workers_leave_signals_to_the_main_process(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stream.decode_job

    def signalled(job: stream.Job) -> stream.Decoded:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(job)

    monkeypatch.setattr(stream, "decode_job", signalled)
    assert same(one_pass(load(photographs, workers=2), Crop()), one_pass(load(photographs, keep="memory"), Crop()))


@pytest.mark.unit
def test_auto_streams_what_is_too_large_to_keep(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(photographs, keep="auto")
    assert not isinstance(whole.train, StreamedSet)
    # Ten decoded photographs: the twelve training images are too many, the eight test images are not.
    monkeypatch.setattr("rnascl_cli.data.load.KEPT_BYTES", 10 * 3 * 224 * 224)
    split = load(photographs, keep="auto", holdout=0.2)
    assert isinstance(split.train, StreamedSet)
    assert isinstance(split.holdout, StreamedSet)
    assert not isinstance(split.test, StreamedSet)
    assert not isinstance(load(photographs, keep="auto", limit_train=10).train, StreamedSet)
    assert not isinstance(load(photographs, keep="memory").train, StreamedSet)


@pytest.mark.unit
def test_only_folders_are_streamed() -> None:
    with pytest.raises(UserError, match=r"data\.keep: 'stream' is for image folders; digits is small"):
        load_data(DataSettings(spec="digits", keep="stream"), seed=0)


@pytest.mark.unit
def test_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, wanted in ((1, 1), (2, 1), (16, 15), (64, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)), raising=False)
        assert default_workers() == wanted
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 15  # of 64 CPUs


@pytest.mark.unit
def test_fingerprint_is_of_the_files_bytes_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_photographs(tmp_path / "set", ["a", "b"], train=3, test=2)
    before = load(root)
    fingerprint, statistics = before.fingerprint, (before.mean, before.std)
    assert load(root, limit_train=4).fingerprint != fingerprint
    assert load(root, keep="memory").fingerprint != fingerprint
    assert (load(root, keep="memory").mean, load(root, keep="memory").std) == statistics

    def read_again(path: Path) -> bytes:
        raise AssertionError(f"{path} is read again")

    with monkeypatch.context() as patch:  # what was found is kept, for a subset too
        patch.setattr("rnascl_cli.data.files._digest", read_again)
        patch.setattr("rnascl_cli.data.stream.decode_now", read_again)
        again = load(root)
        assert (again.fingerprint, again.mean, again.std) == (fingerprint, *statistics)
        assert len(load(root, limit_train=2).fingerprint) == 64
    victim = root / "train" / "a" / "001.JPEG"
    write_photograph(victim, size=(90, 70), seed=99)
    changed = load(root).fingerprint
    assert changed != fingerprint
    victim.rename(root / "train" / "b" / "001a.JPEG")
    assert load(root).fingerprint not in (fingerprint, changed)


@pytest.mark.unit
def test_only_the_files_wanted_are_read(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "set", ["a", "b"], train=10, test=1)
    chosen = set(load(root, limit_train=4).train.index_N.tolist())
    for position in set(range(20)) - chosen - {0}:  # the first image tells the kind of the set
        (root / "train" / "ab"[position // 10] / f"{position % 10:03d}.JPEG").chmod(0)
        (root / "train" / "ab"[position // 10] / f"{position % 10:03d}.JPEG").write_bytes(b"broken")
    data = load(root, limit_train=4)
    assert len(data.fingerprint) == 64
    assert len(one_pass(data, ResizedCrop(), batch_size=2)) == 2
    assert data.mean[0] > 0


@pytest.mark.unit
def test_mean_and_std_of_a_large_set_are_those_of_an_even_sample(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnascl_cli.data.statistics.SAMPLE", 4)
    data = load(photographs)
    pixels = data.train.pixels(torch.tensor([0, 3, 6, 9])).double() / 255
    assert data.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=6e-5)
    assert data.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=6e-5)


@pytest.mark.unit
def test_damaged_or_unwritable_notes_cost_only_time(
    photographs: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(photographs)
    facts = (data.fingerprint, data.mean, data.std)
    kept = [path for folder in ("digests", "statistics") for path in (own_cache / folder).iterdir()]
    assert len(kept) == 3
    for path in kept:
        path.write_bytes(path.read_bytes()[:40])
    again = load(photographs)
    assert (again.fingerprint, again.mean, again.std) == facts
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNASCL_CACHE", str(tmp_path / "file" / "cache"))
    without = load(photographs)
    assert (without.fingerprint, without.mean, without.std) == facts


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@pytest.mark.unit
def test_no_process_is_started_before_a_batch_is_wanted_or_left_after(photographs: Path) -> None:
    before = children()
    data = load(photographs, workers=2)
    assert data.fingerprint
    assert not children() - before
    one_pass(data, ResizedCrop())
    list(ordered_batches(data.test, batch_size=2, device=CPU))
    assert len(children() - before) == 2
    del data
    assert not children() - before


@pytest.mark.unit
def test_no_process_is_left_where_a_pass_ends_in_an_error(damaged: Path) -> None:
    def fail() -> BaseException:
        data = load(damaged.parents[2], workers=2)
        try:
            one_pass(data, ResizedCrop())
        except UserError as error:
            return error  # its traceback holds frames that hold it: only the garbage collector ends that
        raise AssertionError

    before = children()
    error: BaseException | None = fail()
    assert isinstance(error, UserError)
    assert len(children() - before) == 2
    began = time.perf_counter()
    del error
    gc.collect()
    assert not children() - before
    assert time.perf_counter() - began < 4
