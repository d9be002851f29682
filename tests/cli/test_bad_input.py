"""Bad input: each gets one clear line and exit 2, and nothing on disk is touched (issue 2's list, and more)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.command import files, refused
from tests.conftest import FAST

pytestmark = pytest.mark.pipeline


@pytest.fixture
def world(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_teacher: Path,
    tiny_folder: Path,
    searched: dict[str, Path],
    trained: dict[str, Path],
) -> Path:
    """A working folder with a teacher, images, a search and a training: all of it good."""
    shutil.copy(tiny_teacher, tmp_path / "r8.safetensors")
    shutil.copytree(tiny_folder, tmp_path / "images")
    shutil.copytree(searched["standard"], tmp_path / "runs" / "search")
    shutil.copytree(trained["standard"], tmp_path / "runs" / "train")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def untouched(world: Path, *arguments: object, stdin: str | None = None) -> str:
    """The line of a refused command that leaves every file as it was."""
    before = files(world)
    line = refused(*arguments, stdin=stdin)
    assert files(world) == before
    assert not (world / "new").exists()
    return line


SEARCH = ("search", "--space", "S3", "--data", "digits", "--paradigm", "standard", *FAST, "--out", "new")
TAUGHT = ("search", "--space", "S3", "--teacher", "r8.safetensors", *FAST, "--out", "new")

PLAIN: dict[str, tuple[tuple[object, ...], str]] = {
    "unknown space": ((*SEARCH, "--space", "S9"), "--space: unknown search space 'S9'; did you mean 'S"),
    "space of another case": ((*SEARCH, "--space", "s5"), "unknown search space 's5'; did you mean 'S5'?"),
    "unknown teacher": ((*TAUGHT, "--data", "digits", "--teacher", "r81"), "no cached teacher 'r81'; did you mean"),
    "known teacher, not there": ((*TAUGHT, "--data", "digits", "--teacher", "r18"), "rnascl teacher fetch r18"),
    "teacher file": (
        (*TAUGHT, "--data", "digits", "--teacher", "no/r8.safetensors"),
        "no/r8.safetensors: no such file",
    ),
    "teacher folder": ((*TAUGHT, "--data", "digits", "--teacher", "runs/search"), "--teacher runs/search: is a folder"),
    "no teacher": (
        ("search", "--data", "digits", *FAST, "--out", "new"),
        "needs a teacher; name one or use --paradigm",
    ),
    "unknown key": ((*SEARCH, "--set", "epoch=3"), "unknown recipe key 'search.epoch'; did you mean 'epochs'?"),
    "unknown recipe": ((*SEARCH, "--recipe", "smoke/tinny"), "did you mean 'smoke/tiny'?"),
    "no equals": ((*SEARCH, "--set", "epochs"), "--set epochs: write KEY=VALUE"),
    "unknown data": ((*SEARCH, "--data", "digit"), "unknown data set 'digit'; did you mean 'digits'?"),
    "data without a folder": ((*SEARCH, "--data", "folder"), "a folder is needed; write --data folder:DIR"),
    "missing folder": ((*SEARCH, "--data", "folder:nowhere"), "no folder nowhere"),
    "folder without splits": ((*SEARCH, "--data", "folder:runs"), "has no test/ or val/ folder"),
    "classes": ((*TAUGHT, "--data", "folder:images"), "teacher r8.safetensors has 10 classes, the data has 3"),
    "existing run": ((*SEARCH, "--out", "runs/search"), "--out runs/search: already exists; use another name, --force"),
    "run is a file": ((*SEARCH, "--out", "r8.safetensors"), "--out r8.safetensors: is a file; name a folder"),
    "force and resume": ((*SEARCH, "--force", "--resume"), "--force and --resume exclude each other"),
    "nothing to resume": ((*SEARCH, "--resume"), "--resume: no checkpoint in new; start without --resume"),
    "paradigm": ((*SEARCH, "--paradigm", "rnas"), "--paradigm rnas: one of rnas-cl, icc, kl, standard"),
    "device": ((*SEARCH, "--device", "tpu"), "--device tpu: one of auto, cpu, cuda"),
    "no epochs": ((*SEARCH, "--epochs", 0), "--epochs"),
    "negative seed": ((*SEARCH, "--seed", -1), "--seed"),
    "seed too large": ((*SEARCH, "--seed", 2**32), "--seed 4294967296: should be less than 4294967296"),
    "unknown option": ((*SEARCH, "--epoch", 3), "--epoch"),
    "unknown command": (("serach",), "serach"),
    "train: nothing there": (("train", "nowhere", "--out", "new"), "nowhere: No such file or directory"),
    "train: no document": (("train", "images", "--out", "new"), "images: holds neither derived.json nor search.json"),
    "train: another kind": (("train", "runs/search/search.json", "--out", "new"), "it is a 'search' document"),
    "train: existing run": (("train", "runs/search", "--out", "runs/train"), "--out runs/train: already exists"),
    "train: no argument": (("train",), "DERIVED"),
    "train: weights": (("train", "r8.safetensors", "--out", "new"), "r8.safetensors: not a JSON document"),
    "derive: another kind": (("derive", "runs/train/train.json"), "it is a 'train' document"),
    "derive: existing file": (("derive", "runs/search", "--out", "r8.safetensors"), "r8.safetensors: already exists"),
    "adv-finetune: a search": (("adv-finetune", "runs/search", "--out", "new"), "has no student.safetensors"),
    "adv-finetune: existing run": (
        ("adv-finetune", "runs/train", "--out", "runs/search"),
        "--out runs/search: already exists",
    ),
    "adv-finetune: method": (
        ("adv-finetune", "runs/train", "--method", "trade", "--out", "new"),
        "--method trade: one of trades, mart, pgd-at, fast-at, ard, rslad",
    ),
    "attack: nothing there": (("attack", "nowhere", "--data", "digits"), "nowhere"),
    "attack: a search": (("attack", "runs/search"), "holds no student.safetensors"),
    "attack: no data": (("attack", "r8.safetensors"), "pass --data, e.g. --data cifar10"),
    "attack: name": (("attack", "runs/train", "--attack", "pdg20"), "pdg20"),
    "attack: eps": (("attack", "runs/train", "--eps", "8"), "did you mean 8/255?"),
    "attack: protocol": (
        ("attack", "runs/train", "--protocol", "normalised"),
        "--protocol normalised: one of pixel, paper-code",
    ),
    "attack: classes": (("attack", "r8.safetensors", "--data", "folder:images"), "classes"),
    "report: nothing there": (("report", "nowhere", "--out", "new"), "nowhere"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_one_error_line_and_no_file_changed(world: Path, case: str) -> None:
    arguments, message = PLAIN[case]
    assert message in untouched(world, *arguments)


def test_all_unknown_keys_of_a_recipe_file(world: Path) -> None:
    (world / "r.toml").write_text("sede = 1\n[search]\nepoch = 1\n[search.gumbel]\ntau = 5.0\n")
    line = untouched(world, *SEARCH, "--recipe", "r.toml")
    for key in ("'sede'; did you mean 'seed'?", "'search.epoch'; did you mean 'epochs'?", "'search.gumbel.tau'"):
        assert key in line


@pytest.mark.parametrize("empty", ["train", "test", "train/ant", "test/cat"])
def test_an_empty_folder(world: Path, empty: str) -> None:
    shutil.rmtree(world / "images" / empty)
    (world / "images" / empty).mkdir()
    assert f"images/{empty}: " in untouched(world, *SEARCH, "--data", "folder:images")


def test_missing_class_folder(world: Path) -> None:
    shutil.rmtree(world / "images" / "test" / "bee")
    line = untouched(world, *SEARCH, "--data", "folder:images")
    assert "test/ and train/ have different class folders (bee)" in line


@pytest.mark.parametrize("kind", ["cut short", "text", "empty"])
def test_undecodable_image_is_named(world: Path, kind: str) -> None:
    bad = world / "images" / "train" / "bee" / "3.png"
    data = bad.read_bytes()
    bad.write_bytes({"cut short": data[:-200], "text": b"no image", "empty": b""}[kind])
    line = untouched(world, *SEARCH, "--data", "folder:images")
    assert "images/train/bee/3.png: " in line
    assert "replace or remove it" in line


def test_image_of_another_size_is_named(world: Path) -> None:
    Image.new("RGB", (30, 30)).save(world / "images" / "train" / "bee" / "3.png")
    assert "bee/3.png: is 30x30" in untouched(world, *SEARCH, "--data", "folder:images")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_safetensors(world: Path, share: float) -> None:
    for path in (world / "r8.safetensors", world / "runs" / "train" / "student.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
    assert "r8.safetensors: damaged or not a safetensors file" in untouched(world, *TAUGHT, "--data", "digits")
    line = untouched(world, "attack", "runs/train", "--attack", "fgsm")
    assert "student.safetensors: damaged or not a safetensors file" in line
    # The fine-tuning notices the same by the hash.
    assert "student.safetensors: " in untouched(world, "adv-finetune", "runs/train", "--out", "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is '2', this rnascl reads 1"),
        ({"kind": "train"}, "a 'derived' document is needed; it is a 'train' document"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"paradigm": "rnas"}, "paradigm: "),
    ],
)
@pytest.mark.parametrize("piped", [False, True], ids=["file", "stdin"])
def test_document_of_another_kind(world: Path, change: dict[str, object], message: str, piped: bool) -> None:
    text = json.dumps(json.loads((world / "runs" / "train" / "derived.json").read_text()) | change)
    (world / "d.json").write_text(text)
    line = untouched(world, "train", "-" if piped else "d.json", "--out", "new", stdin=text)
    assert message in line
    assert line.startswith("rnascl: stdin: " if piped else "rnascl: d.json: ")


@pytest.mark.parametrize("piped", ["", " \n", "[", "rnascl: error", "\0"])
def test_stdin_without_a_document(world: Path, piped: str) -> None:
    assert "stdin" in untouched(world, "train", "-", "--out", "new", stdin=piped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "S9"}, "unknown search space 'S9'"),
        ({"widths": [16] * 8}, "architecture.widths has 8 numbers, space S3 has 9 blocks"),
        ({"widths": [17] + [16] * 8}, "architecture.widths[0] is 17; space S3 allows (16, 12)"),
        ({"params": 1}, "but its widths give"),
        ({"num_classes": 3}, "but its widths give"),
    ],
)
def test_architecture_that_cannot_be_built(world: Path, change: dict[str, object], message: str) -> None:
    raw = json.loads((world / "runs" / "train" / "derived.json").read_text())
    raw["architecture"] |= change
    (world / "d.json").write_text(json.dumps(raw))
    assert message in untouched(world, "train", "d.json", "--out", "new")


def test_damaged_search_json(world: Path) -> None:
    path = world / "runs" / "search" / "search.json"
    path.write_text(path.read_text()[:-100])
    for command in ("derive", "train"):
        assert "search.json: not a JSON document" in untouched(
            world, command, "runs/search", *(["--out", "new"] if command == "train" else [])
        )
