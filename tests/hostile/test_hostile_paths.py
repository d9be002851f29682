"""Documents that point out of their folder, and links laid where rnascl writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import CIFAR10

from rnascl_cli.cli.options import new_run_directory
from tests.command import done, files, rnascl
from tests.conftest import FAST
from tests.hostile.conftest import Untouched

pytestmark = pytest.mark.pipeline

TRAIN = ("train", "search", "--paradigm", "standard", "--epochs", 1, *FAST)
PRECIOUS = "precious\n"


def edit(path: Path, *keys: str, value: Any) -> None:
    """Set a field of a JSON document."""
    raw = json.loads(path.read_text())
    inner = raw
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "stem", ["../../../etc/S3", "train-/etc/passwd", "..", ".hidden", "a\0b", "é" * 300, "search-S5"]
)
def test_a_new_run_directory_is_always_right_under_runs(stem: str) -> None:
    path = new_run_directory(stem)
    assert path.parent == Path("runs")
    assert path.name[0] != "."
    assert len(path.name) < 100
    assert path.name.isprintable()


def test_a_space_that_climbs(world: Path, untouched: Untouched, tmp_path: Path) -> None:
    for document in ("train/train.json", "train/derived.json"):
        edit(world / document, "architecture", "space", value="../../escaped")
    edit(world / "train" / "train.json", "provenance", "inputs", value={})
    before = files(tmp_path)
    line = untouched("adv-finetune", "train", "--method", "fast-at", "--epochs", 1, *FAST)
    assert "train.json and student.safetensors name different architectures" in line
    edit(world / "search" / "search.json", "space", value="../../escaped")
    assert "unknown search space" in untouched("train", "search", *FAST)
    assert "unknown search space" in untouched("train", "train/derived.json", *FAST)
    assert set(files(tmp_path)) == set(before)


def test_images_named_by_a_document_are_only_read(
    world: Path, untouched: Untouched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "download", lambda self: pytest.fail("a download into a folder nobody chose"))
    for spec, message in (
        ("folder:../../../../../../../../etc", "has no test/ or val/ folder"),
        ("folder:/proc/self", "has no test/ or val/ folder"),
        (f"cifar10:{world / 'elsewhere'}", "the input artifact names that folder, and it has no cifar10"),
        ("cifar100:~/elsewhere", "the input artifact names that folder, and it has no cifar100"),
    ):
        edit(world / "train" / "derived.json", "provenance", "data", "spec", value=spec)
        assert message in untouched("train", "train/derived.json", "--out", "new", *FAST)
    edit(world / "attack" / "attack.json", "provenance", "data", "spec", value="folder:/etc")
    done("report", "attack", "--out", "new")  # reads documents alone


def test_a_teacher_named_by_a_document_is_a_teacher_or_nothing(world: Path, untouched: Untouched) -> None:
    for path, message in (
        ("/etc/passwd", "not a checkpoint"),
        ("/dev/zero", "no such file"),
        ("../../../../../etc/shadow.pt", "no such file"),
        ("..", "no cached teacher '..'"),
        ("../world", "is a folder"),
    ):
        edit(world / "search" / "search.json", "provenance", "teacher", "path", value=path)
        assert message in untouched("train", "search", "--out", "new", *FAST)


@pytest.mark.parametrize(
    "name", ["train.json", "student.safetensors", "metrics.jsonl", "checkpoint.pt", "derived.json"]
)
@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_nothing_is_written_through_a_link(world: Path, tmp_path: Path, name: str, target: str) -> None:
    victim = tmp_path / "victim"
    if target == "file":
        victim.write_text(PRECIOUS)
    (world / "run").mkdir()
    (world / "run" / name).symlink_to(victim)
    done(*TRAIN, "--out", "run", "--force")
    assert not (world / "run" / name).is_symlink()
    assert victim.read_text() == PRECIOUS if target == "file" else not victim.exists()


@pytest.mark.parametrize("name", ["attack.json", "attack.partial.jsonl"])
@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_an_attack_writes_through_no_link(world: Path, tmp_path: Path, name: str, target: str) -> None:
    victim = tmp_path / "victim"
    if target == "file":
        victim.write_text(PRECIOUS)
    (world / "train" / name).symlink_to(victim)
    done("attack", "train", "--attack", "fgsm", "--device", "cpu", "--force")
    assert victim.read_text() == PRECIOUS if target == "file" else not victim.exists()
    assert not (world / "train" / "attack.json").is_symlink()


def test_an_attack_is_not_resumed_from_a_link(world: Path, tmp_path: Path, untouched: Untouched) -> None:
    (tmp_path / "victim").write_text(PRECIOUS)
    (world / "train" / "attack.partial.jsonl").symlink_to(tmp_path / "victim")
    line = untouched("attack", "train", "--attack", "fgsm", "--device", "cpu", "--resume")
    assert "attack.partial.jsonl: is a link" in line
    assert (tmp_path / "victim").read_text() == PRECIOUS


def test_files_of_teacher_and_derive_replace_a_link(world: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text(PRECIOUS)
    for name, command in (
        ("t.safetensors", ("teacher", "import", "r8.safetensors", "--out", "t.safetensors", "--force")),
        ("d.json", ("derive", "search", "--out", "d.json", "--force")),
    ):
        (world / name).symlink_to(tmp_path / "victim")
        done(*command)
        assert not (world / name).is_symlink()
    assert (tmp_path / "victim").read_text() == PRECIOUS


def test_figures_are_not_written_through_a_link(world: Path, tmp_path: Path, untouched: Untouched) -> None:
    (tmp_path / "elsewhere").mkdir()
    (world / "page").mkdir()
    (world / "page" / "figures").symlink_to(tmp_path / "elsewhere")
    line = untouched("report", "search", "--out", "page", "--force")
    assert "--out page: its figures is a link" in line
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_to_a_run_directory_is_that_directory(world: Path, tmp_path: Path) -> None:
    """Whoever lays runs/ on another disk means it: folders that the user names are followed, to read and to write."""
    (tmp_path / "disk").mkdir()
    (world / "runs").symlink_to(tmp_path / "disk")
    done(*TRAIN, "--out", "runs/one")
    assert (tmp_path / "disk" / "one" / "train.json").is_file()
    (world / "linked").symlink_to(tmp_path / "disk" / "one")
    done("attack", "linked", "--attack", "fgsm", "--device", "cpu")
    assert (tmp_path / "disk" / "one" / "attack.json").is_file()
    done("report", "linked", "--out", "page")
    assert "already exists" in rnascl(*TRAIN, "--out", "linked").err


def test_a_link_to_nowhere_is_no_run_directory(world: Path, tmp_path: Path) -> None:
    (world / "run").symlink_to(tmp_path / "nowhere")
    outcome = rnascl(*TRAIN, "--out", "run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert not (tmp_path / "nowhere").exists()


def test_a_report_follows_no_link_below_what_it_is_given(world: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (world / "search").rename(tmp_path / "outside" / "search")
    (world / "train" / "more").symlink_to(tmp_path / "outside")
    report = json.loads(done("report", "train", "--out", "new", "--json").out)
    assert [model["name"] for model in report["models"]] == ["train"]
    assert "search (" not in report["models"][0]["origin"].replace("search (unknown origin)", "")


def test_an_artifact_that_is_a_link_elsewhere_is_read_as_what_it_is(world: Path, untouched: Untouched) -> None:
    (world / "secret").write_text("root:x:0:0:a secret line\n")
    for name in ("derived.json", "train.json", "student.safetensors"):
        (world / "train" / name).unlink()
        (world / "train" / name).symlink_to(world / "secret")
    for command in (("attack", "train"), ("adv-finetune", "train"), ("report", "train"), ("train", "train")):
        line = untouched(*command, "--out", "new")
        assert "secret" not in line
        assert "0:0" not in line


def test_pipes_in_a_run_directory_are_not_waited_for(world: Path, untouched: Untouched) -> None:
    for run, name in (("train", "derived.json"), ("search", "search.json")):
        (world / run / name).unlink()
        os.mkfifo(world / run / name)
    os.mkfifo(world / "pipe.safetensors")
    os.mkfifo(world / "pipe.toml")
    for command in (
        ("derive", "search"),
        ("derive", "search/search.json"),
        ("train", "search", "--out", "new"),
        ("adv-finetune", "train", "--out", "new"),
        ("report", "search", "--out", "new"),
        ("report", "train", "--image", "pipe.safetensors", "--out", "new"),
        ("teacher", "show", "pipe.safetensors"),
        ("attack", "pipe.safetensors", "--data", "digits", "--out", "new"),
        ("search", "--recipe", "pipe.toml", "--out", "new"),
    ):
        untouched(*command)


def test_a_name_that_is_no_text(world: Path, untouched: Untouched) -> None:
    name = os.fsdecode(b"run-\xff")
    for command in (("derive", name), (*TRAIN, "--out", name), ("attack", "train", "--data", f"folder:{name}")):
        assert "run-\\udcff: is not UTF-8" in untouched(*command)
    (world / "train").rename(world / "runs")
    (world / "runs" / name).mkdir()
    (world / "search" / "search.json").rename(world / "runs" / name / "search.json")
    done("report", "runs", "--out", "new")
    assert "run-\\\\udcff" in (world / "new" / "report.md").read_text()
