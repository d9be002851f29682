"""The loop: metrics, schedule, checkpoints, and going on as if nothing had happened."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.core.errors import Interrupted, RunError, UserError
from rnascl_cli.data import Batch
from rnascl_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from rnascl_cli.engine.training_loop import fit
from tests.engine.toy import CPU, TIMES, Stopped, ToyTask, image_set, numbers, stop_at, toy_plan

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Hear Ctrl-C even where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def test_after_a_failure_in_the_first_epoch_resuming_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped):
        fit(ToyTask(stop_at(2)), toy_plan(tmp_path / "run"))
    plan = toy_plan(tmp_path / "run", resume=True)
    assert "was stopped before its first checkpoint; starting from the beginning" in capsys.readouterr().err
    assert not plan.run.resume


@pytest.mark.parametrize("change", [{"identity": {"data": "e", "teacher": None}}, {"stage": "joy"}])
def test_resuming_another_run_is_refused_and_touches_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run"))
    before = files(tmp_path)
    task = ToyTask()
    with pytest.raises(UserError, match="belongs to another recipe, data set or teacher; give the same options"):
        fit(task, toy_plan(tmp_path / "run", resume=True, **change))
    assert files(tmp_path) == before
    assert task.steps == 0


def test_going_on_in_another_precision_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1))
    half = toy_plan(tmp_path / "run", epochs=1, resume=True, compute=replace(CPU, student="bf16"))
    fit(ToyTask(), half)
    assert "was trained in fp32 and resumes in bf16; use --precision fp32 to keep it" in capsys.readouterr().err
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU.device)
    del checkpoint["precision"]  # as older versions wrote it
    write_checkpoint(tmp_path / "run", checkpoint)
    fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1, resume=True))
    assert "resumes in" not in capsys.readouterr().err


def test_a_checkpoint_that_lacks_a_part(tmp_path: Path) -> None:
    fit(ToyTask(), toy_plan(tmp_path / "run", epochs=1))
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU.device)
    del checkpoint["state"]["model"]["3.bias"]
    write_checkpoint(tmp_path / "run", checkpoint)
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


def signalling_at(*steps: int, signum: signal.Signals = signal.SIGTERM) -> Callable[[int], None]:
    """Send this process a signal in the middle of the given steps."""

    def before_step(now: int) -> None:
        for step in steps:
            if now == step:
                signal.raise_signal(signum)

    return before_step


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8, 15], ids=lambda step: f"step {step}")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_finishes_the_step_and_loses_nothing(tmp_path: Path, step: int, signum: signal.Signals) -> None:
    whole = ToyTask()
    history = fit(whole, toy_plan(tmp_path / "whole"))
    first = ToyTask(signalling_at(step, signum=signum))
    with pytest.raises(Interrupted) as stop:
        fit(first, toy_plan(tmp_path / "run"))
    assert stop.value.exit_code == 128 + signum
    assert first.steps == step
    epoch, inside = divmod(step - 1, 3)
    where = f"toy: stopped at epoch {epoch + 1}, step {inside + 1} of 3; resume with: "
    assert str(stop.value).startswith(where)
    assert "--resume" in str(stop.value)
    again = ToyTask()
    assert numbers(fit(again, toy_plan(tmp_path / "run", resume=True))) == numbers(history)
    assert again.steps == 15 - step  # no step is taken twice
    assert (first.draws + again.draws, first.labels + again.labels) == (whole.draws, whole.labels)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_a_second_signal_ends_at_once_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def twice(now: int) -> None:
        if now == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    task = ToyTask(twice)
    with pytest.raises(Interrupted):
        fit(task, toy_plan(tmp_path / "run"))
    assert len(task.draws) == 4
    assert len(fit(ToyTask(), toy_plan(tmp_path / "run", resume=True))) == 5


def test_a_signal_between_epochs_is_obeyed_before_the_next(tmp_path: Path) -> None:
    class AtTheEnd(ToyTask):
        def end_epoch(self) -> dict[str, Any]:
            signal.raise_signal(signal.SIGTERM)
            return super().end_epoch()

    task = AtTheEnd()
    with pytest.raises(Interrupted, match="stopped at the end of epoch 1;"):
        fit(task, toy_plan(tmp_path / "run"))
    assert task.steps == 3
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_checkpoints_inside_an_epoch(tmp_path: Path) -> None:
    whole = fit(ToyTask(), toy_plan(tmp_path / "whole"))
    with pytest.raises(Stopped):
        fit(ToyTask(stop_at(6)), toy_plan(tmp_path / "run", checkpoint_seconds=0.0))
    again = ToyTask()
    assert numbers(fit(again, toy_plan(tmp_path / "run", resume=True))) == numbers(whole)
    assert again.steps == 10


def test_no_checkpoint_inside_an_epoch_before_its_time(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(ToyTask(stop_at(6)), toy_plan(tmp_path / "run", checkpoint_seconds=3600.0))
    again = ToyTask()
    fit(again, toy_plan(tmp_path / "run", resume=True))
    assert again.steps == 12


def test_a_bad_term_is_found_before_a_checkpoint_inside_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="toy: 'penalty' is nan at epoch 2, step 2;"):
        fit(Broken("penalty", 5, float("nan")), toy_plan(tmp_path / "run", checkpoint_seconds=0.0))
    again = ToyTask()
    fit(again, toy_plan(tmp_path / "run", resume=True))
    assert again.steps == 11  # step 4, the last good one, was kept


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    class Spoilt(ToyTask):
        """The loss is fine, the weights behind it are not."""

        def step(self, batch: Batch) -> dict[str, torch.Tensor]:
            metrics = super().step(batch)
            if self.steps == 6:
                with torch.no_grad():
                    self.last.bias[1] = float("inf")
            return metrics

    with pytest.raises(
        RunError, match=r"toy: 'model\.3\.bias' has NaN or infinite values after epoch 2, step 3; lower"
    ):
        fit(Spoilt(), toy_plan(tmp_path / "run"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    task = ToyTask()
    fit(task, toy_plan(tmp_path / "run", resume=True))
    assert task.steps == 12


def test_a_checkpoint_of_another_epoch_under_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(ToyTask(signalling_at(5)), toy_plan(tmp_path / "run"))
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU.device)
    checkpoint["epoch_state"]["metrics"]["epoch"] = 3
    write_checkpoint(tmp_path / "run", checkpoint)
    with pytest.raises(UserError, match="does not fit this stage"):
        fit(ToyTask(), toy_plan(tmp_path / "run", resume=True))


def test_batch_statistics_of_a_lonely_pixel(tmp_path: Path) -> None:
    class Lonely(ToyTask):
        def step(self, batch: Batch) -> dict[str, torch.Tensor]:
            torch.nn.BatchNorm2d(3)(batch.x_BCHW[:1, :, :1, :1])
            return {}

    with pytest.raises(
        RunError, match=r"toy: 'batch statistics' at epoch 1, step 1: the last feature maps .* --batch-size"
    ):
        fit(Lonely(), toy_plan(tmp_path / "run"))
