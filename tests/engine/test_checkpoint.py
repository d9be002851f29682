"""Checkpoints: damage is found, nothing in them is executed, and the previous one is kept."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.checkpoint import first_not_finite, read_checkpoint, read_newest, write_checkpoint
from rnascl_cli.engine.run_directory import CHECKPOINT, PREVIOUS
from rnascl_cli.engine.training_loop import fit
from tests.engine.toy import CPU, Stopped, ToyTask, numbers, stop_at, toy_plan

pytestmark = pytest.mark.unit

CONTENT = {"history": [{"loss": 0.5}], "state": {"w": torch.arange(100.0), "none": None, "by_number": {0: 1}}}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, CONTENT)
    return tmp_path / CHECKPOINT


def test_round_trip(written: Path) -> None:
    found = read_checkpoint(written, CPU.device)
    assert found["history"] == CONTENT["history"]
    assert torch.equal(found["state"]["w"], torch.arange(100.0))
    assert found["state"]["by_number"] == {0: 1}
    assert [item.name for item in written.parent.iterdir()] == [CHECKPOINT]


def test_a_flipped_bit_is_found_or_harmless(written: Path) -> None:
    """Nearly all are found; those that are not change a date or padding of the archive, never a value."""
    whole, stream, found = written.read_bytes(), random.Random(0), 0
    tensor = whole.index(torch.arange(100.0).numpy().tobytes())
    edges = [*range(64), *range(8 * len(whole) - 8 * 200, 8 * len(whole))]
    for place in [*edges, *range(8 * tensor, 8 * (tensor + 400), 7), *stream.sample(range(8 * len(whole)), 400)]:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        written.write_bytes(damaged)
        try:
            loaded = read_checkpoint(written, CPU.device)
        except UserError:
            found += 1
        else:
            assert not tensor <= place // 8 < tensor + 400
            assert torch.equal(loaded["state"]["w"], torch.arange(100.0))
            assert loaded["history"] == CONTENT["history"]
    assert found > 450  # all those in the tensor


@pytest.mark.parametrize("keep", [0, 1, 80, 1000, -1])
def test_a_truncated_file_is_found(written: Path, keep: int) -> None:
    written.write_bytes(written.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"checkpoint.pt: damaged checkpoint \(truncated"):
        read_checkpoint(written, CPU.device)


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path, ran = tmp_path / CHECKPOINT, tmp_path / "ran"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Bomb(ran))),
        lambda: torch.save(Bomb(ran), path),
    ):
        write()
        with pytest.raises(UserError, match="damaged checkpoint"):
            read_checkpoint(path, CPU.device)
    assert not ran.exists()


def test_a_checkpoint_that_is_not_a_dictionary(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="not a checkpoint of rnascl"):
        read_checkpoint(tmp_path / CHECKPOINT, CPU.device)


def test_the_previous_checkpoint_is_used_if_the_newest_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path, {"number": 1})
    write_checkpoint(tmp_path, {"number": 2})
    newest, before = tmp_path / CHECKPOINT, tmp_path / PREVIOUS
    assert read_newest(tmp_path, CPU.device) == (newest, {"number": 2})
    assert read_checkpoint(before, CPU.device) == {"number": 1}
    newest.write_bytes(newest.read_bytes()[:-1])
    assert read_newest(tmp_path, CPU.device) == (before, {"number": 1})
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoint.pt: damaged checkpoint" in said
    assert "resuming from the previous checkpoint" in said
    newest.unlink()  # stopped between the two renames
    assert read_newest(tmp_path, CPU.device) == (before, {"number": 1})
    assert capsys.readouterr().err == ""


def test_two_damaged_ones_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {})
    write_checkpoint(tmp_path, {})
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / name).write_bytes(b"x" * 200)
    with pytest.raises(UserError, match=r"checkpoint\.previous\.pt: damaged checkpoint"):
        read_newest(tmp_path, CPU.device)


def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(tmp_path: Path) -> None:
    whole = fit(ToyTask(), toy_plan(tmp_path / "whole"))
    assert not (tmp_path / "whole" / PREVIOUS).exists()  # the run has ended
    with pytest.raises(Stopped):
        fit(ToyTask(stop_at(8)), toy_plan(tmp_path / "run"))
    newest = tmp_path / "run" / CHECKPOINT
    newest.write_bytes(newest.read_bytes()[:-100])
    again = ToyTask()
    assert numbers(fit(again, toy_plan(tmp_path / "run", resume=True))) == numbers(whole)
    assert again.epochs[0] == 1  # epochs 1 and 2 were done


def test_first_not_finite() -> None:
    state: dict[str, Any] = {
        "model": {"a": torch.ones(2), "n": torch.tensor(3)},
        "optimiser": {"state": {0: {"m": None}}},
    }
    assert first_not_finite(state) is None
    state["optimiser"]["state"][0]["m"] = torch.tensor([1.0, float("inf")])
    assert first_not_finite(state) == "optimiser.state.0.m"
    state["model"]["a"][1] = float("nan")
    assert first_not_finite(state) == "model.a"
    assert first_not_finite({}) is None
