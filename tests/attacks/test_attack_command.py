"""``rnascl attack`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.artifacts.documents import TrainDocument
from rnascl_cli.artifacts.store import read_document, sha256_file, write_document
from rnascl_cli.attacks.evaluate import Evaluator
from rnascl_cli.cli.app import run
from tests.attacks.commands import QUICK, attacked, refused

pytestmark = pytest.mark.unit


def test_a_file_with_data(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["attack", str(student), "--data", "digits", *QUICK, "--eps", "8/255,0", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out)
    assert "protocol pixel" in captured.err
    document = attacked(out)
    assert [(row.attack, row.eps) for row in document.results] == [
        ("fgsm", "0"),
        ("fgsm", "8/255"),
        ("pgd2", "0"),
        ("pgd2", "8/255"),
    ]
    assert document.n == len(document.images) == 12
    assert document.results[0].accuracy == document.clean_accuracy > 0.3
    assert document.results[1].accuracy < document.clean_accuracy
    assert document.provenance.inputs == {"student.safetensors": sha256_file(student)}
    for row, verdict in zip(document.results, document.verdicts, strict=True):
        assert (row.attack, row.eps) == (verdict.attack, verdict.eps)
        assert row.accuracy == pytest.approx(1 - len(verdict.broken) / 12)
        assert set(verdict.broken) <= set(document.images)
        assert verdict.broken == sorted(verdict.broken)
        assert row.confidence_interval is not None  # twelve of 360 test images
        assert row.confidence_interval[0] <= row.accuracy <= row.confidence_interval[1]
    broken = set(document.verdicts[1].broken) | set(document.verdicts[3].broken)
    assert document.worst_case_accuracy == pytest.approx(1 - len(broken) / 12)
    assert sorted(path.name for path in out.iterdir()) == ["attack.json"]


def test_json_on_stdout_is_the_artifact(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["attack", str(student), "--data", "digits", *QUICK, "--out", str(out), "--json"]) == 0
    assert capsys.readouterr().out == (out / "attack.json").read_text()


def test_the_same_command_gives_the_same_verdicts(student: Path, tmp_path: Path) -> None:
    arguments = ["attack", str(student), "--data", "digits", "--attack", "pgd3,cw", "--limit-test", "12", "--out"]
    assert run([*arguments, str(tmp_path / "a")]) == run([*arguments, str(tmp_path / "b")]) == 0
    assert attacked(tmp_path / "a").verdicts == attacked(tmp_path / "b").verdicts


def test_a_run_directory_provides_its_data_and_keeps_its_artifacts(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in trained_run.iterdir()}
    assert run(["attack", str(trained_run), "--attack", "clean,fgsm"]) == 0
    document = attacked(trained_run)
    assert document.n == 20  # the provenance's limit_test
    assert document.provenance.seed == 3
    assert document.provenance.data is not None
    assert document.provenance.data.spec == "digits"
    assert set(document.provenance.inputs) == {"student.safetensors", "train.json"}
    assert [(row.attack, row.eps, row.steps) for row in document.results] == [("clean", "0", 0), ("fgsm", "8/255", 1)]
    assert {path.name: path.read_bytes() for path in trained_run.iterdir() if path.name != "attack.json"} == before

    capsys.readouterr()
    first = (trained_run / "attack.json").read_bytes()
    assert "--force" in refused([str(trained_run), "--attack", "fgsm"], capsys)
    assert (trained_run / "attack.json").read_bytes() == first
    assert run(["attack", str(trained_run), "--attack", "pgd1", "--force"]) == 0
    assert [row.attack for row in attacked(trained_run).results] == ["pgd1"]
    assert {path.name: path.read_bytes() for path in trained_run.iterdir() if path.name != "attack.json"} == before


def test_a_changed_student_is_refused(
    trained_run: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = read_document(trained_run / "train.json", TrainDocument)
    write_document(trained_run / "train.json", document.model_copy(update={"student_sha256": "0" * 64}))
    assert "other sha256" in refused([str(trained_run)], capsys)


def test_paper_code_labels_its_numbers_and_leaves_more_accuracy(student: Path, tmp_path: Path) -> None:
    arguments = ["attack", str(student), "--data", "digits", "--limit-test", "60", "--attack", "pgd5", "--out"]
    assert run([*arguments, str(tmp_path / "pixel")]) == 0
    assert run([*arguments, str(tmp_path / "paper"), "--protocol", "paper-code"]) == 0
    pixel, paper = attacked(tmp_path / "pixel"), attacked(tmp_path / "paper")
    assert (pixel.protocol, paper.protocol) == ("pixel", "paper-code")
    assert paper.clean_accuracy == pixel.clean_accuracy
    assert paper.results[0].accuracy > pixel.results[0].accuracy


def test_paper_code_without_rescaling_warns_that_protocols_coincide(tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        run(["attack", str(tiny_teacher), "--data", "digits", *QUICK, "--protocol", "paper-code", "--out", str(out)])
        == 0
    )
    assert any("coincide" in warning for warning in attacked(out).warnings)


def test_implausible_step_sizes_give_a_warning(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--attack", "pgd2,cw", "--limit-test", "4", "--eps", "1/255,8/255", "--step-size", "2/255"]
    assert run(["attack", str(student), "--data", "digits", *arguments, "--out", str(out)]) == 0
    warnings = attacked(out).warnings
    assert any(warning.startswith("pgd2 at eps 1/255: a step of") for warning in warnings)
    assert any(warning.startswith("pgd2 at eps 8/255: 2 steps of") for warning in warnings)
    assert not any(warning.startswith("cw at eps 8/255") for warning in warnings)


def test_audit_adds_its_checks(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rnascl_cli.attacks import audit
    from rnascl_cli.attacks.autoattack import AutoAttack

    monkeypatch.setattr(audit, "AutoAttack", lambda name, **_: AutoAttack(name, iterations=3, queries=5))
    out = tmp_path / "out"
    arguments = ["--attack", "fgsm", "--limit-test", "40", "--audit", "--set", "audit_images=3"]
    assert run(["attack", str(student), "--data", "digits", *arguments, "--out", str(out)]) == 0
    card = attacked(out).audit
    assert card is not None
    assert len(card) == 8
    assert f"{'pass' if card[0].passed else 'FAIL'}  {card[0].name}" in capsys.readouterr().err


def test_an_interrupted_attack_is_resumed(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["attack", str(student), "--data", "digits", "--limit-test", "12", "--attack", "pgd2,cw"]
    assert run([*arguments, "--out", str(tmp_path / "whole")]) == 0
    attack_batch = Evaluator.attack_batch
    calls: list[int] = []

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return attack_batch(*given)

    monkeypatch.setattr(Evaluator, "attack_batch", interrupted)
    assert run([*arguments, "--out", str(out)]) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (out / "attack.json").exists()
    assert "--resume" in refused([*arguments[1:], "--out", str(out)], capsys)
    assert "seed; start without --resume" in refused(
        [*arguments[1:], "--out", str(out), "--seed", "5", "--resume"], capsys
    )
    assert run([*arguments, "--out", str(out), "--resume"]) == 0
    assert len(calls) == 3  # pgd2 was not run again
    assert attacked(out).verdicts == attacked(tmp_path / "whole").verdicts
    assert sorted(path.name for path in out.iterdir()) == ["attack.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attack", "pdg20"], "unknown attack 'pdg20'; did you mean 'pgd20'?"),
        (["--attack", "pgd"], "pgdN takes any number of steps"),
        (["--attack", "pgd0"], "unknown attack 'pgd0'"),
        (["--attack", "autoattack"], "unknown attack 'autoattack'"),
        (["--attack", "fgsm,fgsm"], "fgsm is given twice"),
        (["--attack", ","], "name at least one"),
        (["--eps", "8"], "did you mean 8/255?"),
        (["--eps=-1/255"], "is negative"),
        (["--eps", "eight"], "is not a number"),
        (["--eps", "8/255,16/510"], "are the same"),
        (["--eps", ","], "name at least one"),
        (["--protocol", "pixels"], "--protocol pixels: one of pixel, paper-code"),
        (["--protocol", "paper-code", "--attack", "aa"], "use --protocol pixel, or leave aa out"),
        (["--norm", "L2", "--attack", "cw"], "exists for --norm Linf only"),
        (["--audit", "--eps", "0"], "needs an --eps above 0"),
        (["--audit", "--protocol", "paper-code", "--attack", "fgsm"], "works on pixels"),
        (["--set", "mi_stepz=3"], "did you mean 'mi_steps'?"),
        (["--force", "--resume"], "exclude each other"),
        (["--resume"], "start without --resume"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(
    student: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = refused([str(student), "--data", "digits", "--limit-test", "4", "--out", str(out), *arguments], capsys)
    assert words in line
    assert not out.exists()


def test_bad_models_data_and_folders_are_refused(
    student: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--data" in refused([str(student)], capsys)
    assert "10 classes and --data folder:" in refused([str(student), "--data", f"folder:{tiny_folder}"], capsys)
    assert "nowhere" in refused(["nowhere", "--data", "digits"], capsys)
    (tmp_path / "empty").mkdir()
    assert "student.safetensors" in refused(["empty"], capsys)
    (tmp_path / "broken.safetensors").write_bytes(student.read_bytes()[:200])
    assert "broken.safetensors" in refused(["broken.safetensors", "--data", "digits"], capsys)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "student.safetensors").write_text("somebody's")
    assert "already exists" in refused([str(student), "--data", "digits", "--out", "taken"], capsys)
    assert (tmp_path / "taken" / "student.safetensors").read_text() == "somebody's"
    (tmp_path / "file").write_text("a file")
    assert "is a file" in refused([str(student), "--data", "digits", "--out", "file"], capsys)
    assert not (tmp_path / "runs").exists()


def test_data_from_a_recipe_or_a_setting(student: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[data]\nspec = "digits"\nlimit_test = 4\n[attack]\nattacks = ["fgsm"]\n')
    assert run(["attack", str(student), "--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "a")]) == 0
    settings = ["--set", "data.spec=digits", "--set", "data.limit_test=4", "--set", "attack.attacks=fgsm,pgd1"]
    assert run(["attack", str(student), *settings, "--out", str(tmp_path / "b")]) == 0
    assert [row.attack for row in attacked(tmp_path / "b").results] == ["fgsm", "pgd1"]


def test_the_document_records_eps_and_images(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["attack", str(student), "--data", "digits", *QUICK, "--eps", "0.03", "--out", str(out)]) == 0
    raw = json.loads((out / "attack.json").read_text())
    assert (raw["results"][0]["eps"], raw["results"][0]["eps_value"]) == ("0.03", 0.03)
    assert raw["results"][1]["step_size"] == pytest.approx(0.0075)


def test_l2_eps_above_one(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--attack", "pgd2", "--norm", "L2", "--eps", "0.5,8", "--limit-test", "6", "--out", str(out)]
    assert run(["attack", str(student), "--data", "digits", *arguments]) == 0
    document = attacked(out)
    assert [row.eps_value for row in document.results] == [0.5, 8.0]
    assert any("8/255 was meant" in warning for warning in document.warnings)


def test_a_subset_of_the_test_set_has_confidence_intervals(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["attack", str(student), "--data", "digits", *QUICK, "--out", str(out)]) == 0
    document = attacked(out)
    for share, interval in (
        (document.clean_accuracy, document.clean_confidence_interval),
        (document.worst_case_accuracy, document.worst_case_confidence_interval),
    ):
        assert share is not None
        assert interval is not None
        assert interval[0] <= share <= interval[1]
