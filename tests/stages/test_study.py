"""The steps of a study: their order, resuming, failures, and the results.

Most tests put a shell script in the place of the interpreter, that leaves the file each step is to leave. One runs a
whole study on digits.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.recipes.study import Study
from rnascl_cli.reporting.data.study import read_searches
from rnascl_cli.stages.study.plan import StudyPlan, plan_study
from rnascl_cli.stages.study.results import tell_results
from rnascl_cli.stages.study.runner import STEPS, StudyRecord, run_study
from tests.command import done, refused, soon

SCRIPT = """#!/bin/sh
# -m rnascl_cli STAGE ...: writes the result of the stage, unless FAIL matches its folder
stage=$3
echo "$@" ${WORLD_SIZE:+"of $WORLD_SIZE"} ${TORCHELASTIC_RUN_ID:+"in $TORCHELASTIC_RUN_ID"} >> "$CALLS"
previous=
for word; do
  [ "$previous" = --out ] && out=$word
  previous=$word
done
case "$out" in *"${FAIL:-nothing}"*) echo "${WORDS-it broke}" >&2; exit 1;; esac
case $stage in
  derive) mkdir -p "$(dirname "$out")"; echo {} > "$out";;
  *) mkdir -p "$out"; echo {} > "$out/$stage.json";;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the arguments of every step, one line each; a script replaces the interpreter."""
    script = tmp_path / "python"
    script.write_text(SCRIPT, encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr("rnascl_cli.stages.study.runner.POLL_SECONDS", 0.01)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def study(**changes: object) -> Study:
    parts: dict[str, object] = {
        "title": "t",
        "spaces": ["S3", "S5"],
        "seeds": [4, 5],
        "reference": "standard",
        "settings": {"data": {"spec": "digits"}, "search": {"epochs": 1}},
        "arm": [
            {"name": "random", "network_of": "rnas-cl", "tutors": "random"},
            {"name": "standard", "search": {"paradigm": "standard"}},
            {"name": "rnas-cl", "finetune": []},
        ],
        "finetuning": [{"name": "trades", "settings": {"robust": {"beta": 3}}}],
        "measurement": [
            {"name": "pgd", "limit_test": 7},
            {"name": "aa", "of": ["trades"], "audit": True, "later": True},
        ],
    }
    return Study.model_validate({**parts, **changes})


@pytest.fixture
def plan() -> StudyPlan:
    return plan_study(study())


def commands(calls: Path) -> list[str]:
    return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


@pytest.mark.unit
def test_every_step_comes_after_those_it_needs(plan: StudyPlan) -> None:
    seen: set[str] = set()
    for step in plan.steps:
        assert seen.issuperset(step.needs), step.name
        seen.add(step.name)
    assert len(seen) == len(plan.steps)


@pytest.mark.unit
def test_what_is_planned(plan: StudyPlan) -> None:
    per_seed_and_space = {"search": 2, "derive": 3, "train": 3, "adv-finetune": 2, "attack": 5 + 2}
    for stage, count in per_seed_and_space.items():
        assert sum(step.stage == stage for step in plan.steps) == 4 * count, stage
    names = [step.name for step in plan.steps]
    assert [name for name in names if name.endswith("-aa")] == names[-8:], "what is for later comes last"
    first = names[: names.index("s3/seed5/standard/search")]
    assert {name.split("/")[1] for name in first} == {"seed4"}, "the first seed is whole before the next begins"
    assert {name.split("/")[0] for name in first} == {"s3", "s5"}


@pytest.mark.unit
def test_a_step_is_a_shell_command(plan: StudyPlan) -> None:
    typed = {step.name: step.typed(Path("out")) for step in plan.steps}
    assert typed["s3/seed5/random/derived.json"] == (
        "rnascl derive out/s3/seed5/rnas-cl/search --tutors random --out out/s3/seed5/random/derived.json --force"
    )
    assert typed["s3/seed5/standard/trades"] == (
        "rnascl adv-finetune out/s3/seed5/standard/train --set 'data.spec=\"digits\"' --set adv_finetune.robust.beta=3 "
        "--seed 5 --out out/s3/seed5/standard/trades"
    )
    assert "--seed 4" in typed["s3/seed5/standard/train-pgd"], "every seed's students face the same images"
    assert "--audit" in typed["s5/seed4/random/trades-aa"]
    assert "search.epochs=1" in typed["s3/seed4/standard/search"]


@pytest.mark.unit
def test_the_same_call_resumes(plan: StudyPlan, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    halt = run_study(plan, out, minutes=0)
    assert halt.minutes_up
    assert not commands(calls)
    first = run_study(plan, out, jobs=3)
    assert len(first.done) == len(plan.steps) == len(commands(calls))
    gone = out / "s3/seed4/standard/train-pgd/attack.json"
    gone.unlink()
    again = run_study(plan, out)
    assert len(again.done) == len(plan.steps)
    assert len(commands(calls)) == len(plan.steps) + 1
    assert "--resume" not in commands(calls)[-1]


@pytest.mark.unit
def test_steps_do_not_inherit_torchrun_variables(
    plan: StudyPlan, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job"}.items():
        monkeypatch.setenv(name, value)
    run_study(plan, tmp_path / "out")
    assert len(commands(calls)) == len(plan.steps)
    assert not [line for line in commands(calls) if line.endswith(("of 2", "in job"))]


@pytest.mark.unit
def test_steps_run_again_if_their_inputs_have_changed(
    plan: StudyPlan, calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_study(plan, out)
    shutil.rmtree(out / "s3/seed4/rnas-cl/search")
    before = len(commands(calls))
    run_study(plan, out)
    again = [line.split(" --out ")[1].removeprefix(f"{out}/") for line in commands(calls)[before:]]
    below = [step.name for step in plan.steps if step.name.startswith(("s3/seed4/rnas-cl", "s3/seed4/random"))]
    assert {line.split(" ")[0] for line in again} == set(below)
    assert all(line.endswith("--force") for line in again[1:])
    assert f"{len(below) - 1} steps run again because inputs have changed" in capsys.readouterr().err
    shutil.rmtree(out / "s3/seed4/rnas-cl/train")
    run_study(plan, out)
    said = "1 step runs again because inputs have changed, e.g. s3/seed4/rnas-cl/train-pgd"
    assert said in capsys.readouterr().err


@pytest.mark.unit
def test_a_changed_recipe_file_is_refused(calls: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("seed = 1", encoding="utf-8")
    planned = plan_study(study(recipe=str(recipe)))
    run_study(planned, tmp_path / "out")
    recipe.write_text("seed = 2", encoding="utf-8")
    with pytest.raises(UserError, match="made with other settings"):
        run_study(planned, tmp_path / "out")


@pytest.mark.unit
def test_an_arm_that_was_left_out_is_still_recorded(plan: StudyPlan, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(plan, out)
    fewer = [{"name": "standard", "search": {"paradigm": "standard"}}]
    run_study(plan_study(study(arm=fewer)), out)
    other = [*fewer, {"name": "rnas-cl", "search": {"epochs": 2}, "finetune": []}]
    with pytest.raises(UserError, match="rnas-cl/search was made with other settings"):
        run_study(plan_study(study(arm=other)), out)


@pytest.mark.unit
@pytest.mark.parametrize(
    "changes",
    [{"seeds": [1, 1]}, {"spaces": ["S3", "S3"]}, {"finetuning": [{"name": "search"}]}],
    ids=["seeds", "spaces", "stage"],
)
def test_duplicates_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        study(**changes)


@pytest.mark.unit
def test_steps_of_one_name_are_refused() -> None:
    measured = [{"name": "pgd"}]
    with pytest.raises(UserError, match="two steps are called"):
        plan_study(study(finetuning=[{"name": "train-pgd"}], measurement=measured))


@pytest.mark.unit
def test_only_includes_the_steps_needed(plan: StudyPlan, calls: Path, tmp_path: Path) -> None:
    progress = run_study(plan, tmp_path / "out", only=["s5/seed5/random/trades-aa"])
    assert progress.done == {
        "s5/seed5/rnas-cl/search",
        "s5/seed5/random/derived.json",
        "s5/seed5/random/train",
        "s5/seed5/random/trades",
        "s5/seed5/random/trades-aa",
    }
    with pytest.raises(UserError, match="--only s9"):
        run_study(plan, tmp_path / "out", only=["s9/*"])


@pytest.mark.unit
def test_an_interrupted_step_is_resumed(plan: StudyPlan, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(plan, out, minutes=0)
    record, steps = StudyRecord(out, plan), {step.name: step for step in plan.steps}
    for name, left in (("s3/seed4/standard/search", "checkpoint.pt"), ("s3/seed4/rnas-cl/search", "rubble")):
        record.add(steps[name])
        (out / name).mkdir(parents=True)
        (out / name / left).write_text("", encoding="utf-8")
    run_study(plan, out)
    of = {line.split(" --out ")[1].split(" ")[0]: line for line in commands(calls)}
    assert of[str(out / "s3/seed4/standard/search")].endswith(" --resume")
    assert of[str(out / "s3/seed4/rnas-cl/search")].endswith(" --force")


@pytest.mark.unit
def test_a_failure_stops_only_the_steps_that_need_it(
    plan: StudyPlan, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "s3/seed4/rnas-cl/search")
    progress = run_study(plan, tmp_path / "out", jobs=2)
    assert progress.failed["s3/seed4/rnas-cl/search"] == "it broke"
    assert set(progress.failed) == {"s3/seed4/rnas-cl/search"}
    lost = {step.name for step in plan.steps if step.name.startswith(("s3/seed4/rnas-cl", "s3/seed4/random"))}
    assert set(progress.not_begun) == lost - set(progress.failed), "what needs it through others, too"
    assert len(progress.done) == len(plan.steps) - len(lost)
    said = f"study: 1 step failed, and {len(lost) - 1} more could not start because of it; {min(progress.failed)}"
    with pytest.raises(RunError, match=f"{said}: it broke"):
        progress.raise_if_incomplete(steps=len(plan.steps))


@pytest.mark.unit
def test_failed_and_not_begun_steps_are_reported_separately(
    plan: StudyPlan, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "s3/seed4/standard/derived")
    out, only = tmp_path / "out", ["s3/seed4/standard/*"]
    progress = run_study(plan, out, only=only)
    document = tell_results(study(), plan, progress, out, source=calls)
    assert document.failed == {"s3/seed4/standard/derived.json": "it broke"}
    below = [step.name for step in plan.only(only)][2:]
    assert document.not_begun == below
    page = (out / "study.md").read_text(encoding="utf-8")
    assert "**failed**: `s3/seed4/standard/derived.json`: it broke" in page
    assert f"**not begun** because of that: {', '.join(f'`{name}`' for name in below)}" in page


@pytest.mark.unit
def test_several_failures_are_counted(
    plan: StudyPlan, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "-aa")
    progress = run_study(plan, tmp_path / "out")
    assert len(progress.failed) == 8
    with pytest.raises(RunError, match="study: 8 steps failed; s3/seed4/standard/trades-aa: it broke"):
        progress.raise_if_incomplete(steps=len(plan.steps))


@pytest.mark.unit
def test_a_step_without_output_does_not_report_earlier_output(
    plan: StudyPlan, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = "s3/seed4/standard/search"
    monkeypatch.setenv("FAIL", step)
    assert run_study(plan, tmp_path / "out", only=[step]).failed == {step: "it broke"}
    monkeypatch.setenv("WORDS", "")
    assert run_study(plan, tmp_path / "out", only=[step]).failed == {step: "no output"}


@pytest.mark.unit
def test_a_folder_with_the_keys_of_an_earlier_version_is_resumed(plan: StudyPlan, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(plan, out)
    steps = out / "steps.json"
    text = steps.read_text(encoding="utf-8")
    assert "adv_finetune.robust.beta=3" in text
    steps.write_text(text.replace("adv_finetune.robust.beta=3", "adv_finetune.beta=3"), encoding="utf-8")
    made = len(commands(calls))
    run_study(plan, out)
    assert len(commands(calls)) == made


@pytest.mark.unit
def test_other_settings_in_the_same_folder_are_refused(plan: StudyPlan, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(plan, out)
    other = plan_study(study(finetuning=[{"name": "trades", "settings": {"robust": {"beta": 4}}}]))
    with pytest.raises(UserError, match="trades was made with other settings"):
        run_study(other, out)
    more = plan_study(study(measurement=[{"name": "pgd", "limit_test": 7}, {"name": "fgsm"}]))
    assert len(run_study(more, out).done) == len(more.steps), "new steps are simply run"


@pytest.mark.unit
def test_a_folder_that_is_not_a_study_is_refused(plan: StudyPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="not a study folder"):
        run_study(plan, tmp_path / "out")


SMOKE = ("study", "smoke", "--teacher", "t.safetensors")


@pytest.mark.unit
def test_bad_usage(tmp_path: Path) -> None:
    assert "no study of that name" in refused("study", "nothing")
    page = tmp_path / "page.md"
    page.write_text("no marks", encoding="utf-8")
    assert "study smoke: begin" in refused(*SMOKE, "--into", page, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.unit
def test_plan_shows_the_steps_without_running_them(tmp_path: Path) -> None:
    outcome = done(*SMOKE, "--plan", "--out", tmp_path / "out")
    assert len(outcome.out.splitlines()) == len(plan_study(study_of("smoke")).steps)
    assert not (tmp_path / "out").exists()


def study_of(name: str) -> Study:
    from rnascl_cli.recipes.study import find_study, read_study

    return read_study(find_study(name))


@pytest.mark.pipeline
@pytest.mark.slow
def test_a_study_on_digits_is_stopped_resumed_and_tabulated(tiny_teacher: Path, tmp_path: Path) -> None:
    file, out, page = tmp_path / "tiny.toml", tmp_path / "out", tmp_path / "page.md"
    file.write_text(
        """
title = "Tiny"
spaces = ["S3"]
reference = "standard"
[settings]
precision = "fp32"
device = "cpu"
data = { spec = "digits", limit_train = 40, limit_test = 20 }
search = { epochs = 1, batch_size = 16 }
train = { epochs = 1, batch_size = 16 }
[[arm]]
name = "standard"
search = { paradigm = "standard" }
[[arm]]
name = "same-network"
network_of = "standard"
[[measurement]]
name = "fgsm"
settings = { attacks = ["fgsm"], eps = ["8/255"] }
""",
        encoding="utf-8",
    )
    page.write_text("before\n<!-- study tiny: begin -->\nold\n<!-- study tiny: end -->\nafter\n", encoding="utf-8")
    command = ["-m", "rnascl_cli", "study", str(file), "--out", str(out)]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, env={**os.environ})
    soon((out / "s3/seed0/standard/search/search.json").is_file)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert b"the same command resumes it" in said
    assert (out / "study.md").is_file()

    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL, env={**os.environ})
    soon(lambda: bool(_children(process.pid)))
    (step,) = _children(process.pid)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert process.wait(timeout=60) == 143
    assert not Path(f"/proc/{step}").exists(), "a step is still running"

    done("study", file, "--out", out, "--into", page)
    document = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert document["steps"] == document["steps_done"] == len(json.loads((out / STEPS).read_text(encoding="utf-8")))
    rows = {(row["arm"], row["seed"]): row for row in document["rows"]}
    assert set(rows) == {("standard", 0), ("same-network", 0)}
    for (arm, seed), row in rows.items():
        trained = json.loads((out / f"s3/seed{seed}/{arm}/train/train.json").read_text(encoding="utf-8"))
        attacked = json.loads((out / f"s3/seed{seed}/{arm}/train-fgsm/attack.json").read_text(encoding="utf-8"))
        assert row["clean_accuracy"] == trained["clean_accuracy"]
        assert row["attacks"]["fgsm"]["results"][0]["accuracy"] == attacked["results"][0]["accuracy"]
    (searched,) = document["searches"]
    search = out / searched["run"] / "search.json"
    whole = search.read_bytes()
    rounded = json.loads(whole)
    rounded["history"][-1] |= {"width_entropy": 1.00000001, "tutor_entropy": 1.00000001}
    search.write_text(json.dumps(rounded), encoding="utf-8")
    (found,) = read_searches(out, [searched["run"]], done={searched["run"], "s3/seed0/standard/derived.json"})
    assert (found.width_entropy, found.tutor_entropy) == (1.0, 1.0), "as earlier versions recorded equal chances"
    search.write_bytes(whole)
    told = json.loads((out / searched["run"] / "search.json").read_text(encoding="utf-8"))["history"][-1]
    assert (searched["arm"], searched["run"]) == ("standard", "s3/seed0/standard/search")
    assert (searched["width_entropy"], searched["tutor_entropy"]) == (told["width_entropy"], None)
    assert searched["macs"] == rows["standard", 0]["macs"] >= searched["smallest_macs"] == 4_743_304
    # The same network, seed and settings: whatever the numbers are, the differences are none.
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- study tiny: begin -->\n\n**Tiny**")
    assert text.endswith("<!-- study tiny: end -->\nafter\n")
    assert "| `same-network` | ±0.0 | ±0.0 |" in text
    assert f"| `s3/seed0/standard/search` | 1 | {searched['seconds']:.0f} | {told['width_entropy']:.2f} | – |" in text
    assert "Standard-S3 (Table 2): clean 89.92, PGD-20 17.69" in text


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text(encoding="utf-8").split()] if found.exists() else []
