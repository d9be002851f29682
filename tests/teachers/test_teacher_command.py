"""``rnascl teacher`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rnascl_cli.cli.app import run
from rnascl_cli.teachers.load import read_teacher, write_teacher
from tests.teachers.conftest import images, random_teacher

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

Capture = pytest.CaptureFixture[str]


def public_file(folder: Path, name: str = "public.pt") -> Path:
    state = random_teacher("r8").state_dict()
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, folder / name)
    return folder / name


def failed(capsys: Capture, *arguments: str) -> str:
    """Run a command that must fail as bad input; return its one line."""
    assert run(["teacher", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_train_on_a_few_digits(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "r8.safetensors"
    arguments = [
        *("train", "--arch", "r8", "--data", "digits", "--limit-train", "60", "--limit-test", "20", "--epochs", "1"),
        *("--device", "cpu", "--eps", "16/255", "--set", "data.holdout=0.2", "--out", str(out)),
    ]
    assert run(["teacher", *arguments]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert read_teacher(str(out)).header["measured"]["eps"] == "16/255"
    assert (tmp_path / "r8.training" / "metrics.jsonl").is_file()
    assert "already exists" in failed(capsys, *arguments)
    assert run(["teacher", *arguments, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["n"] == 20


def test_training_goes_to_the_cache_by_default(own_cache: Path, capsys: Capture) -> None:
    arguments = ["train", "--arch", "r8", "--data", "digits", "--limit-train", "40", "--limit-test", "10"]
    assert run(["teacher", *arguments, "--epochs", "1", "--device", "cpu", "--set", "data.holdout=0.3"]) == 0
    assert capsys.readouterr().out.strip() == str(own_cache / "teachers" / "r8-digits.safetensors")
    assert read_teacher("r8", num_classes=10).architecture == "r8"


def test_import_takes_the_asked_normalisation(tmp_path: Path, own_cache: Path, capsys: Capture) -> None:
    source = public_file(tmp_path)
    constants = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]
    assert run(["teacher", "import", str(source), "--arch", "r8", *constants, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["path"] == str(own_cache / "teachers" / "public.safetensors")
    assert (len(report["renamed"]), report["dropped"], report["missed"]) == (74, {}, [])
    assert "74 tensors renamed, 0 dropped, 0 filled in" in captured.err
    teacher = read_teacher("public")
    expected = random_teacher("r8", mean=MEAN, std=STD)
    torch.testing.assert_close(teacher.module(images()), expected(images()), atol=1e-6, rtol=0)
    assert teacher.header["source_sha256"] == report["source_sha256"]
    assert "already exists" in failed(capsys, "import", str(source))


def test_import_warns_where_the_file_has_no_normalisation(tmp_path: Path, capsys: Capture) -> None:
    assert run(["teacher", "import", str(public_file(tmp_path)), "--out", str(tmp_path / "t.safetensors")]) == 0
    assert "holds no normalisation, and none is applied" in capsys.readouterr().err
    # What was decided at import is no question later.
    read_teacher(str(tmp_path / "t.safetensors"))
    assert "normalisation" not in capsys.readouterr().err


def test_import_of_a_public_teacher_knows_its_normalisation(tmp_path: Path, own_cache: Path, capsys: Capture) -> None:
    state = random_teacher("r50").state_dict()
    torch.save(state, tmp_path / "engstrom.pt")
    assert run(["teacher", "import", str(tmp_path / "engstrom.pt"), "--public", "r50", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mean"] == pytest.approx([0.4914, 0.4822, 0.4465])
    assert report["std"] == pytest.approx([0.2023, 0.1994, 0.2010])
    assert report["published"]["autoattack"] == 0.4925
    assert read_teacher("r50").reference.path == str(own_cache / "teachers" / "r50.safetensors")


def test_import_tests_itself_on_images(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--data", "digits", "--limit-test", "20", "--device", "cpu", "--json"]
    assert run(["teacher", "import", str(public_file(tmp_path)), *arguments]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["measured"]["n"] == 20
    assert 0 <= report["measured"]["pgd20"] <= report["measured"]["clean"] <= 1
    assert "self-test on 20 images" in captured.err


def test_import_far_from_the_published_accuracy_is_a_loud_warning(tmp_path: Path, capsys: Capture) -> None:
    torch.save(random_teacher("r18").state_dict(), tmp_path / "r18.pt")
    arguments = ["--public", "r18", "--data", "digits", "--limit-test", "10", "--device", "cpu"]
    assert run(["teacher", "import", str(tmp_path / "r18.pt"), *arguments]) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "warning: FAR APART: measured clean" in message
    assert "wrong normalisation is the most common cause" in message
    assert "(published: 0.8459)" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "r19"], "unknown teacher architecture 'r19'; did you mean 'r18'"),
        (["--arch", "r18"], "not a r18"),
        (["--public", "wrt43"], "no public teacher 'wrt43'; did you mean 'wrt34'"),
        (["--mean", "0.5,0.5,0.5"], "--mean and --std must be given together"),
        (["--mean", "0.5,0.5", "--std", "1,1,1"], "--mean 0.5,0.5: write three numbers"),
        (["--mean", "0,0,0", "--std", "0,1,1"], "--std 0,1,1: write three numbers"),
        (["--out", "t.pt"], "--out t.pt: a teacher file ends in .safetensors"),
        (["--data", "digitz"], "unknown data set 'digitz'"),
    ],
)
def test_import_refuses(tmp_path: Path, capsys: Capture, own_cache: Path, arguments: list[str], message: str) -> None:
    assert message in failed(capsys, "import", str(public_file(tmp_path)), *arguments)
    assert not own_cache.exists()


def test_import_refuses_data_with_other_classes(tmp_path: Path, capsys: Capture) -> None:
    save_file(dict(random_teacher("r8", num_classes=7).state_dict()), tmp_path / "t.safetensors")
    line = failed(capsys, "import", str(tmp_path / "t.safetensors"), "--data", "digits", "--device", "cpu")
    assert "has 10 classes, the teacher 7" in line


def test_list_and_show(own_cache: Path, capsys: Capture) -> None:
    path = own_cache / "teachers" / "mine.safetensors"
    about = {"source": "a test", "measured": {"clean": 0.5, "pgd20": 0.25}}
    write_teacher(path, random_teacher("r8", num_classes=3), architecture="r8", num_classes=3, about=about)
    (own_cache / "teachers" / "broken.safetensors").write_bytes(b"x")
    assert run(["teacher", "list"]) == 0
    captured = capsys.readouterr()
    assert "0.5000 / 0.2500" in captured.out
    assert "rnascl teacher fetch wrt34" in captured.out
    assert "broken.safetensors: damaged" in " ".join(captured.err.split())
    assert run(["teacher", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mine"]["num_classes"] == 3
    assert rows["r18"]["path"] is None
    assert run(["teacher", "show", "mine", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["params"], shown["made_from"]) == (308_826 - 7 * 129, "a test")
    assert shown["layers"][0] == {"layer": "conv1", "channels": 16, "side": 32}
    assert run(["teacher", "show", "mine"]) == 0
    assert "layer4.0.conv2" in capsys.readouterr().out
    assert "no cached teacher 'mime'" in failed(capsys, "show", "mime")


def test_a_trained_file_can_be_copied_by_import(tmp_path: Path, capsys: Capture) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    about = {"source": "a test", "measured": {"clean": 0.5, "pgd20": 0.25}}
    original = random_teacher("r8", mean=MEAN, std=STD)
    write_teacher(first, original, architecture="r8", num_classes=10, about=about)
    assert run(["teacher", "import", str(first), "--out", str(second)]) == 0
    again = read_teacher(str(second))
    assert again.header["measured"] == about["measured"]
    torch.testing.assert_close(again.module(images()), original(images()), atol=1e-6, rtol=0)
