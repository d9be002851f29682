"""Each stage on two gloo processes: the weights, metrics and verdicts of one process.

The images are noise. On images with large even areas, such as the digits, torch's own BatchNorm of one CPU process
adds so many equal numbers up, one after the other, that it loses digits; there two ranks are the more exact ones, and
there is nothing to compare with.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rnascl_cli.artifacts.documents import AttackDocument, TrainDocument
from rnascl_cli.artifacts.store import read_document, read_weights
from rnascl_cli.core import distributed
from rnascl_cli.engine.run_directory import JOURNAL, PREVIOUS, has_checkpoint
from tests.command import done, soon
from tests.conftest import _teacher_file
from tests.distributed.jobs import Job, Torchrun, run_job
from tests.reliability.processes import PATIENCE, Command

pytestmark = pytest.mark.slow

LONG = 2  # epochs of a run that is stopped in its middle
CLASSES, TRAIN, TEST = ("ant", "bee", "cat"), 20, 12
FAST = ("--device", "cpu", "--precision", "fp32", "--seed", 5)
OFTEN = ("--set", "checkpoint_minutes=0.0001")
CLOCKS = ("seconds", "images_per_second", "peak_memory_bytes")
STAGES = ("search", "train", "adv-finetune", "teacher train", "robust search", "streamed search")
# As ImageNet is read, but for its crops, which are enlarged: noise that is enlarged has even areas.
STREAMED = ("--set", "data.keep=stream", "--set", "data.workers=1")


class World:
    """Images, a teacher, and what each stage makes of them in one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pixels = np.random.default_rng(0)
        for split, count in (("train", TRAIN), ("test", TEST)):
            for name in CLASSES:
                (folder / "noise" / split / name).mkdir(parents=True)
                for index in range(count):
                    image = Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                    image.save(folder / "noise" / split / name / f"{index}.png")
        self.images = ("--data", f"folder:{folder / 'noise'}")
        self.teacher = _teacher_file(folder / "t.safetensors", num_classes=len(CLASSES), seed=1)
        for stage in STAGES[:1]:
            done(*self.command(stage, self.out(stage, "one")))
        done("derive", self.out("search", "one"), "--out", folder / "derived.json")
        for stage in STAGES[1:]:
            # A teacher is compared with what one process makes of the same formula: torch's own is too coarse.
            with mock.patch.object(distributed, "share_batches", lambda stage=stage: stage == "teacher train"):
                done(*self.command(stage, self.out(stage, "one")))

    def out(self, stage: str, name: str) -> Path:
        """Return the run directory of a stage."""
        return self.folder / name / stage.replace(" ", "-")

    def command(self, stage: str, out: Path, *, epochs: int = 1) -> list[object]:
        """Return the arguments of a short run of a stage."""
        searching = ("search", "--space", "S3", "--teacher", self.teacher, *self.images)
        own: dict[str, tuple[object, ...]] = {
            "search": searching,
            "robust search": (*searching, "--robust", "fast-at"),
            "streamed search": (*searching, *STREAMED),
            "train": ("train", self.folder / "derived.json"),
            "adv-finetune": ("adv-finetune", self.out("train", "one"), "--method", "fast-at"),
            "teacher train": (
                *("teacher", "train", "--arch", "r8", "--method", "fgsm-rs", *self.images),
                *("--set", "data.holdout=0.1", "--set", "optimiser.lr=0.01"),
            ),
        }
        # 54 images in batches of 25, 25 and 4: 13 and 12 a rank. The two steps of a search take 20 and 5 of them, and
        # of the last batch 3 and 1, which is too few to be shared.
        batch = 27 if stage in ("adv-finetune", "teacher train") else 25
        return [*own[stage], *FAST, "--batch-size", batch, "--epochs", epochs, "--out", self.target(stage, out)]

    def target(self, stage: str, out: Path) -> Path:
        """Return what ``--out`` names: a teacher is a file, all else a folder."""
        return out / "t.safetensors" if stage == "teacher train" else out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What the stages start from, and what one process makes of it."""
    return World(tmp_path_factory.mktemp("world"))


def weights(out: Path) -> dict[str, Tensor]:
    """The numbers that a run ends with: a network, or of a search those of the checkpoint."""
    for name in ("student.safetensors", "t.safetensors"):
        if (out / name).is_file():
            return read_weights(out / name)[0]
    state = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
    return {**state["supernet"], **state["architecture"]}


def metrics(out: Path) -> list[dict[str, Any]]:
    """The metrics of every epoch, without what a clock says."""
    (path,) = out.rglob("metrics.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in CLOCKS} for entry in entries]


def assert_same_run(found: Path, expected: Path, *, atol: float) -> None:
    """Compare two runs: weights, statistics and metrics, all numbers of order 1, up to ``atol``."""
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close({name: ours[name]}, {name: tensor}, rtol=atol, atol=atol)
    for mine, other in zip(metrics(found), metrics(expected), strict=True):
        assert mine == pytest.approx(other, rel=atol, abs=atol)


# A teacher's and a robust search's images are looked for under statistics of the batch: one pixel whose gradient is 0
# up to rounding moves all of them.
TOLERANCE = {
    "search": 5e-5,
    "streamed search": 5e-5,
    "train": 5e-5,
    "adv-finetune": 5e-5,
    "teacher train": 2e-3,
    "robust search": 2e-3,
}


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_make_what_one_process_makes(world: World, stage: str, tmp_path: Path) -> None:
    out = world.out(stage, "two")
    job = run_job(2, world.command(stage, out), log=tmp_path / "log")
    assert_same_run(out, world.out(stage, "one"), atol=TOLERANCE[stage])
    assert job.ranks[1].said == ""  # the first one speaks for all
    assert job.ranks[0].said.splitlines()[-1] == str(world.target(stage, out))


def test_two_ranks_in_bf16_begin_as_one_process_does(world: World, tmp_path: Path) -> None:
    """After that its roundings, which are others, are amplified from step to step."""
    losses = []
    for ranks_, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        run_job(ranks_, [*world.command("train", out), "--precision", "bf16"], log=tmp_path / f"log{ranks_}")
        assert read_document(out / "train.json", TrainDocument).provenance.precision == "bf16"
        losses.append(metrics(out)[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Path:
    """A longer run of one process that nothing stopped."""
    done(*world.command("train", world.folder / "undisturbed", epochs=LONG))
    return world.folder / "undisturbed"


def test_a_killed_rank_ends_the_job_and_one_process_goes_on(world: World, undisturbed: Path, tmp_path: Path) -> None:
    """Under the real torchrun."""
    out = tmp_path / "run"
    command = [*world.command("train", out, epochs=LONG), *OFTEN]
    job = Torchrun(2, command, log=tmp_path / "log")
    wait_for(lambda: has_checkpoint(out), job)
    members = job.processes()
    assert sorted(members) == [0, 1]
    os.kill(members[1], signal.SIGKILL)
    killed = time.monotonic()
    assert job.end(patience=90) != 0
    assert time.monotonic() - killed < 60  # seconds where the machine is idle; a rank's own patience is ten minutes
    assert not any(Path(f"/proc/{number}").exists() for number in members.values())
    assert not (out / "train.json").exists()
    done(*command, "--resume")
    assert_same_run(out, undisturbed, atol=5e-3)


def test_ranks_stop_behind_the_same_step_and_go_on_from_one_process(
    world: World, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [*world.command("train", out, epochs=LONG), *OFTEN]
    alone = Command(command, log=tmp_path / "alone")
    alone.wait_for(lambda: has_checkpoint(out))
    alone.send(signal.SIGTERM)
    assert alone.end() == 143, alone.said
    before = (out / PREVIOUS).stat().st_mtime_ns if (out / PREVIOUS).exists() else 0
    job = Job(2, [*command, "--resume"], log=tmp_path / "log")
    job.ranks[0].wait_for(lambda: (out / PREVIOUS).exists() and (out / PREVIOUS).stat().st_mtime_ns != before)
    job.ranks[1].send(signal.SIGTERM)  # to one of them: the other stops with it
    assert job.end() == [143, 143], job.said
    assert job.said.count("resume with: torchrun --nproc-per-node=2 -m rnascl_cli train") == 1
    run_job(2, [*command, "--resume"], log=tmp_path / "log")
    assert_same_run(out, undisturbed, atol=5e-3)


def test_ranks_that_are_told_twice_stop_once(world: World, tmp_path: Path) -> None:
    """SLURM tells every process, and torchrun passes on what it was told itself."""
    out = tmp_path / "run"
    job = Job(2, [*world.command("train", out, epochs=200), *OFTEN], log=tmp_path / "log")
    job.ranks[0].wait_for(lambda: has_checkpoint(out))
    for _ in range(2):
        job.send(signal.SIGTERM)
        time.sleep(0.001)
    assert job.end() == [143, 143], job.said
    assert job.said.count("train: stopped at ") == 1


def _runs(number: int) -> bool:
    """Return whether a process has not ended; one whose parent is gone may wait to be reaped."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_stop_where_their_torchrun_is_killed(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = Torchrun(2, [*world.command("train", out, epochs=200), *OFTEN], log=tmp_path / "log")
    wait_for(lambda: has_checkpoint(out), job)
    members = job.processes()
    assert sorted(members) == [0, 1]
    job.process.kill()
    assert job.end() == -signal.SIGKILL
    assert soon(lambda: not any(map(_runs, members.values())))
    # Both ranks are signaled; the later one may find that the other has already ended.
    assert "train: stopped at " in job.said or "the last checkpoint, if there is one, is kept" in job.said


def test_an_attack_finds_the_same_verdicts(world: World, tmp_path: Path) -> None:
    student = world.out("train", "one")
    attacks = ("--attack", "pgd5,cw,apgd-ce", "--eps", "2/255", "--restarts", 2, "--set", "cw_steps=3")
    command = ["attack", student, *attacks, "--batch-size", 2, "--limit-test", 24, "--device", "cpu", "--seed", 5]
    alone, together = tmp_path / "alone", tmp_path / "together"
    done(*command, "--out", alone)
    job = run_job(2, [*command, "--out", together, "--json"], log=tmp_path / "log")
    expected, found = (read_document(path / "attack.json", AttackDocument) for path in (alone, together))
    assert found.verdicts == expected.verdicts
    assert any(verdicts.broken for verdicts in found.verdicts)
    assert (found.clean_accuracy, found.warnings) == (expected.clean_accuracy, expected.warnings)
    assert not (together / JOURNAL).exists()
    assert job.ranks[1].said == ""


def test_an_attack_goes_on_with_another_number_of_ranks(world: World, tmp_path: Path) -> None:
    student = world.out("train", "one")
    command = ["attack", student, "--attack", "pgd40", "--eps", "8/255", "--batch-size", 2, "--device", "cpu"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    done(*command, "--out", whole)
    job = Job(2, [*command, "--out", out], log=tmp_path / "log")
    journal = out / JOURNAL
    job.ranks[0].wait_for(lambda: journal.is_file() and len(journal.read_text().splitlines()) > 2)
    job.send(signal.SIGTERM)
    assert job.end() == [143, 143], job.said
    kept = len(journal.read_text().splitlines()) - 1
    assert f"resuming after {kept} finished batches" in done(*command, "--out", out, "--resume").err
    expected, found = (read_document(path / "attack.json", AttackDocument) for path in (whole, out))
    assert found.verdicts == expected.verdicts


@pytest.mark.parametrize(
    ("changed", "mend"),
    [
        (["--batch-size", 4], "a batch of 4 images, of which one step uses 1, cannot be shared by 2 processes"),
        (["--set", "attention.norm=batch"], "use 'image'"),
        (["--paradigm", "rnas"], "--paradigm"),
    ],
    ids=["batch", "norm", "usage"],
)
def test_what_every_rank_refuses_is_said_once(world: World, tmp_path: Path, changed: list[object], mend: str) -> None:
    out = tmp_path / "run"
    job = Job(2, [*world.command("search", out), *changed], log=tmp_path / "log")
    assert job.end() == [2, 2], job.said
    assert len(job.said.splitlines()) == 1
    assert mend in job.said or changed[0] == "--paradigm"
    assert not out.exists()


def test_what_one_rank_meets_ends_the_others(world: World, tmp_path: Path) -> None:
    command = world.command("search", tmp_path / "run")
    job = Job(2, command, log=tmp_path / "log", others=[*command, "--teacher", tmp_path / "none.safetensors"])
    assert job.end() == [1, 2], job.said
    assert job.ranks[0].said == ""
    assert "none.safetensors" in job.ranks[1].said


def test_other_commands_run_once(world: World, tmp_path: Path) -> None:
    job = run_job(2, ["derive", world.out("search", "one")], log=tmp_path / "log")
    assert '"kind": "derived"' in job.ranks[0].said
    assert job.ranks[1].said == ""


def wait_for(happened: Callable[[], bool], job: Torchrun) -> None:
    """Wait until something has happened; fail if the job ends before."""
    began = time.monotonic()
    while not happened():
        assert job.process.poll() is None, job.said
        assert time.monotonic() - began < PATIENCE, job.said
        time.sleep(0.01)
