"""The loop: metrics, schedule, checkpoints, and going on as if nothing had happened."""

from __future__ import annotations

import json
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.data import Batch
from rnascl_cli.engine.fit import History, fit, read_checkpoint
from rnascl_cli.errors import RunError, UserError
from tests.engine.toy import ToyTask, image_set, toy_plan

pytestmark = pytest.mark.unit

TIMES = ("seconds", "images_per_second", "peak_memory_bytes")


class Stopped(Exception):  # noqa: N818 (not an error: the test's Ctrl-C)
    """Ends a run in the middle."""


def stop_at(step: int) -> Any:
    def before_step(now: int) -> None:
        if now == step:
            raise Stopped

    return before_step


def numbers(history: History) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in history]


def files(path: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def test_history_and_metrics_agree(tmp_path: Path) -> None:
    history = fit(ToyTask(), toy_plan(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3, 4]
    for entry in history:
        assert {"loss", "ce", "penalty", "holdout_accuracy", "lr", *TIMES} <= set(entry)
        assert entry["loss"] == pytest.approx(entry["ce"] + 0.1 * entry["penalty"], rel=1e-5)


def test_means_are_over_images_not_batches(tmp_path: Path) -> None:
    history = fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1))
    # Batches of 8, 8 and 5: (64 + 64 + 25) / 21.
    assert history[0]["images"] == pytest.approx(153 / 21)


def test_every_step_runs_at_its_scheduled_rate(tmp_path: Path) -> None:
    task = ToyTask()
    fit(task, toy_plan(tmp_path / "run", epochs=4))
    # Twelve steps; the rate falls at 75 % (step 9) and at 90 % (before step 10.8, so at step 11).
    assert task.rates == pytest.approx([0.05] * 9 + [0.005] * 2 + [0.0005])


def test_each_epoch_is_shuffled_anew_and_whole(tmp_path: Path) -> None:
    task = ToyTask()
    fit(task, toy_plan(tmp_path / "run", epochs=2))
    first, second = (list(chain(*task.labels[start : start + 3])) for start in (0, 3))
    assert sorted(first) == sorted(second) == sorted(image_set().labels_N.tolist())
    assert first != second


def test_each_epoch_has_its_own_noise(tmp_path: Path) -> None:
    task = ToyTask()
    fit(task, toy_plan(tmp_path / "run", epochs=3))
    assert len(set(task.draws)) == len(task.draws) == 9


@pytest.mark.parametrize("step", [4, 8, 13], ids=["epoch 2 begins", "in epoch 3", "epoch 5 begins"])
def test_resuming_gives_what_the_uninterrupted_run_gives(tmp_path: Path, step: int) -> None:
    whole = ToyTask()
    history = fit(whole, toy_plan(tmp_path / "whole"))
    with pytest.raises(Stopped):
        fit(ToyTask(stop_at(step)), toy_plan(tmp_path / "run"))
    again = ToyTask()
    resumed = fit(again, toy_plan(tmp_path / "run", resume=True))
    assert again.epochs[0] == (step - 1) // 3
    assert numbers(resumed) == numbers(history)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed


def test_resuming_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    history = fit(ToyTask(), toy_plan(tmp_path / "run"))
    # A stop between the last checkpoint and the metrics leaves a line too few.
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    again = ToyTask()
    assert fit(again, toy_plan(tmp_path / "run", resume=True)) == history
    assert again.steps == 0
    assert len(metrics.read_text().splitlines()) == 5


def test_a_stop_in_the_first_epoch_leaves_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(ToyTask(stop_at(2)), toy_plan(tmp_path / "run"))
    with pytest.raises(UserError, match=r"no checkpoint in .* start without --resume"):
        toy_plan(tmp_path / "run", resume=True)


@pytest.mark.parametrize("change", [{"identity": {"data": "e", "teacher": None}}, {"stage": "joy"}])
def test_resuming_another_run_is_refused_and_touches_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run"))
    before = files(tmp_path)
    task = ToyTask()
    with pytest.raises(UserError, match="belongs to another recipe, data set or teacher; give the same options"):
        fit(task, toy_plan(tmp_path / "run", resume=True, **change))
    assert files(tmp_path) == before
    assert task.steps == 0


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_a_damaged_checkpoint(tmp_path: Path, keep: int) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"checkpoint.pt: damaged checkpoint .* start again with --force"):
        fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1, resume=True))


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"))),
        lambda: torch.save(Bomb(tmp_path / "ran"), path),
    ):
        write()
        with pytest.raises(UserError, match="damaged checkpoint"):
            read_checkpoint(path, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_no_dictionary(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint of rnascl"):
        read_checkpoint(tmp_path / "checkpoint.pt", torch.device("cpu"))


def test_a_checkpoint_that_lacks_a_part(tmp_path: Path) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1))
    path = tmp_path / "run" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state"]["model"]["3.bias"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="does not fit this stage"):
        fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1, resume=True))


class Broken(ToyTask):
    """A term goes bad at one step, and takes the loss with it from there on."""

    def __init__(self, term: str, step: int, value: float) -> None:
        super().__init__()
        self.term, self.bad_step, self.value = term, step, value

    def step(self, batch: Batch) -> dict[str, torch.Tensor]:
        metrics = super().step(batch)
        if self.steps >= self.bad_step:
            metrics["loss"] = torch.tensor(float("nan"))
            metrics[self.term] = torch.tensor(self.value)
        if self.steps > self.bad_step:
            metrics["ce"] = torch.tensor(float("nan"))
        return metrics


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_bad_term_is_named_with_stage_epoch_and_step(tmp_path: Path, value: float) -> None:
    # Step 5 is the second step of the second epoch.
    with pytest.raises(RunError) as error:
        fit(Broken("penalty", 5, value), toy_plan(tmp_path / "run"))
    assert str(error.value).startswith(f"toy: 'penalty' is {value} at epoch 2, step 2;")
    assert "\n" not in str(error.value)
    # The first epoch is kept, the second leaves nothing.
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    resumed = fit(ToyTask(), toy_plan(tmp_path / "run", resume=True))
    assert len(resumed) == 5


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    one, two = (fit(ToyTask(), toy_plan(tmp_path / str(seed), seed=seed, epochs=1)) for seed in (1, 2))
    assert one[0]["loss"] != two[0]["loss"]


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    tasks = [ToyTask(), ToyTask()]
    histories = [fit(task, toy_plan(tmp_path / str(index), epochs=2)) for index, task in enumerate(tasks)]
    assert numbers(histories[0]) == numbers(histories[1])
    for name, tensor in tasks[0].model.state_dict().items():
        assert torch.equal(tasks[1].model.state_dict()[name], tensor)


def test_progress_goes_to_stderr_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run", epochs=2))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["toy epoch 1/2", "toy epoch 2/2"]
    assert "left" in lines[0]
