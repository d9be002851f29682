"""Small runs of each stage, and what must be the same of two of them whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnascl_cli import load
from rnascl_cli.core.file_lock import LOCK
from rnascl_cli.data import load_data
from rnascl_cli.engine.run_directory import JOURNAL, has_checkpoint
from rnascl_cli.recipes.settings import DataSettings
from tests.reliability.processes import run_command

STAGES = ("search", "train", "adv-finetune", "attack", "teacher train")
FAST = ("--batch-size", 16, "--device", "cpu", "--precision", "fp32")
IMAGES = ("--data", "digits", "--limit-train", 60, "--limit-test", 30)
# A checkpoint behind nearly every step, so that most kills fall into the middle of an epoch.
OFTEN = ("--set", "checkpoint_minutes=0.0005")
CLOCKS = {"seconds", "images_per_second", "peak_memory_bytes"}
CIRCUMSTANCES = {"created", "command", "commit"}  # of a provenance


@dataclass(frozen=True)
class Inputs:
    """What the stages start from: a teacher's file, a derived document, and a run of ``train``."""

    teacher: Path
    derived: Path
    train: Path


def make_inputs(folder: Path) -> Inputs:
    """Make what the stages start from, in a new folder."""
    inputs = Inputs(folder / "teacher" / "t.safetensors", folder / "derived.json", folder / "train")
    folder.mkdir()
    search = ("search", "--space", "S3", "--teacher", inputs.teacher, *IMAGES, *FAST, "--epochs", 1)
    for number, arguments in enumerate(
        (
            command_for("teacher train", inputs, folder / "teacher", epochs=1),
            [*search, "--out", folder / "search"],
            ["derive", folder / "search", "--out", inputs.derived],
            ["train", inputs.derived, *FAST, "--epochs", 1, "--out", inputs.train],
        )
    ):
        run_command(arguments, log=folder / f"{number}.log")
    return inputs


def command_for(stage: str, inputs: Inputs, out: Path, *, epochs: int = 3) -> list[object]:
    """Return the arguments of a small run of a stage."""
    common = (*FAST, *OFTEN, "--seed", 5)
    start: dict[str, Sequence[object]] = {
        "search": ("search", "--space", "S3", "--teacher", inputs.teacher, *IMAGES, *common),
        "train": ("train", inputs.derived, *common, "--precision", "bf16"),  # as by default on many CPUs
        "adv-finetune": ("adv-finetune", inputs.train, "--set", "robust.steps=2", *common),
        "attack": ("attack", inputs.train, "--attack", "pgd5,cw,mi-fgsm", "--eps", "4/255,16/255", *FAST[2:]),
        "teacher train": (
            "teacher",
            "train",
            "--arch",
            "r8",
            *IMAGES,
            "--set",
            "data.holdout=0.2",
            *common,
        ),
    }
    own = ("--batch-size", 6, "--set", "cw_steps=5") if stage == "attack" else ("--epochs", epochs)
    return [*start[stage], *own, "--out", target(stage, out)]


def target(stage: str, out: Path) -> Path:
    """Return what ``--out`` names: a teacher is a file, all else a folder."""
    return out / "t.safetensors" if stage == "teacher train" else out


def folder_of(stage: str, out: Path) -> Path:
    """Return the run directory."""
    return out / "t.training" if stage == "teacher train" else out


def resumable(stage: str, out: Path) -> bool:
    """Return whether a killed run has left something to go on from; before that the same command is given again."""
    return (out / JOURNAL).is_file() if stage == "attack" else has_checkpoint(folder_of(stage, out))


def begun(stage: str, out: Path) -> bool:
    """Return whether a killed run wants ``--resume``: its folder is there, if only with the lock it held."""
    return resumable(stage, out) or (stage != "attack" and (folder_of(stage, out) / LOCK).is_file())


def essence(stage: str, out: Path) -> dict[str, Any]:
    """Return what two runs of the same command must agree in: weights, logits, metrics, document."""
    found: dict[str, Any] = {}
    weights = [path for path in (out / "student.safetensors", out / "t.safetensors") if path.is_file()]
    for path in weights:
        found["weights"] = hashlib.sha256(path.read_bytes()).hexdigest()
        found["logits"] = _logits(path)
    metrics = folder_of(stage, out) / "metrics.jsonl"
    if metrics.is_file():
        found["metrics"] = [_timeless(json.loads(line)) for line in metrics.read_text().splitlines()]
    for path in sorted(out.glob("*.json")):
        found[path.name] = _timeless(json.loads(path.read_text()))
    return found


def _logits(path: Path) -> str:
    data = load_data(DataSettings(spec="digits", limit_test=30), seed=5, training=False)
    with torch.no_grad():
        logits_BK = load(path)(data.test.images_NCHW.float() / 255)
    return hashlib.sha256(logits_BK.numpy().tobytes()).hexdigest()


def _timeless(value: Any) -> Any:
    """Drop what clocks, the path and the hour say."""
    if isinstance(value, dict):
        dropped = CLOCKS | (CIRCUMSTANCES if "tool_version" in value else set())
        return {key: _timeless(item) for key, item in value.items() if key not in dropped}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
