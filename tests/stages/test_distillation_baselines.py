"""``train --distill``: every baseline on the command line, interrupted and resumed, and its user errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, Baseline, TeacherReference, TrainDocument
from rnascl_cli.artifacts.store import document_json, read_document
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data, batches, load_data
from rnascl_cli.data.augment import Unchanged
from rnascl_cli.distill.baselines.crd import ContrastiveLoss
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.models.files import build_student
from rnascl_cli.recipes.baselines import BaselineSettings
from rnascl_cli.recipes.load import resolve
from rnascl_cli.recipes.settings import DataSettings, Recipe
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.stages.search.derive import derive
from rnascl_cli.stages.training import distillation_baselines as stage
from rnascl_cli.stages.training.distillation import distilling
from rnascl_cli.stages.training.distillation_baselines import COMPARES, baseline_loss, find_baseline_teacher
from rnascl_cli.stages.training.setup import TrainingRun, check_can_be_shared
from rnascl_cli.stages.training.step import StudentStep
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import Teacher, read_teacher, write_teacher
from tests.command import done, refused, rnascl
from tests.conftest import FAST
from tests.engine.toy import CPU
from tests.stages.interruptions import interrupted
from tests.stages.test_search_chain import numbers

BASELINES: tuple[Baseline, ...] = get_args(Baseline)
PUBLISHED = {"kd": 0.9, "at": 1000, "sp": 3000, "vid": 1, "rkd": 1, "crd": 0.8, "pkt": 30000}


@pytest.fixture(scope="module")
def baselines(tmp_path_factory: pytest.TempPathFactory, searched: dict[str, Path]) -> dict[str, Path]:
    """A training of two epochs under each baseline, of the network that was searched with tutors."""
    root = tmp_path_factory.mktemp("baselines")
    for name in BASELINES:
        done("train", searched["rnas-cl"], "--distill", name, "--epochs", 2, *FAST, "--out", root / name)
    return {name: root / name for name in BASELINES}


@pytest.fixture(scope="module")
def data() -> Data:
    """The digits of the searches."""
    return load_data(DataSettings(spec="digits", limit_train=40, limit_test=20), seed=3)


def recipe(name: str, **keys: Any) -> Recipe:
    return resolve([{"space": "S3", "train": {"distill": {"name": name, **keys}}, "teacher_cache": {"mode": "off"}}])


def settings(name: str, **keys: Any) -> BaselineSettings:
    found = recipe(name, **keys).train.distill
    assert found is not None
    return found


@pytest.mark.pipeline
@pytest.mark.parametrize("name", BASELINES)
def test_what_is_left(baselines: dict[str, Path], searched: dict[str, Path], name: Baseline) -> None:
    document = read_document(baselines[name] / "train.json", TrainDocument)
    assert (document.paradigm, document.distill) == ("standard", name)
    teacher, before = document.provenance.teacher, derive(searched["rnas-cl"]).provenance.teacher
    assert teacher is not None
    assert before is not None
    assert teacher.sha256 == before.sha256
    told = document.provenance.recipe["train"]["distill"]
    assert (told["name"], told["weight"]) == (name, PUBLISHED[name])
    assert len(document.history) == 2
    for entry in document.history:
        assert not {"kl", "attention"} & set(entry)
        ce = 0.1 if name == "kd" else 1.0
        assert entry["loss"] == pytest.approx(ce * entry["ce"] + PUBLISHED[name] * entry["distill"], rel=1e-5)
    losses = {entry["distill"] for entry in document.history}
    assert len(losses) == 2
    # A run under a baseline differs from the others by its baseline alone, and so do the students.
    assert len({read_document(run / "train.json", TrainDocument).student_sha256 for run in baselines.values()}) == 7


@pytest.mark.pipeline
def test_published_settings() -> None:
    crd, rkd, kd = settings("crd").model_dump(), settings("rkd").model_dump(), settings("kd").model_dump()
    assert crd == {"name": "crd", "weight": 0.8, "dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5}
    assert rkd == {"name": "rkd", "weight": 1.0, "distance": 25.0, "angle": 50.0}
    assert kd == {"name": "kd", "weight": 0.9, "ce_weight": 0.1, "temperature": 4.0}
    assert {name: settings(name).weight for name in BASELINES} == PUBLISHED


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["vid", "crd"])
def test_ctrl_c_and_resume(baselines: dict[str, Path], searched: dict[str, Path], name: str, tmp_path: Path) -> None:
    out, few = tmp_path / "run", ["--set", "distill.negatives=9"] if name == "crd" else []
    arguments: list[object] = ["train", searched["rnas-cl"], "--distill", name, *few, "--epochs", 2, *FAST, "--out"]
    whole = baselines[name]
    if few:  # with fewer negatives than there are, so that it matters which are drawn
        whole = tmp_path / "whole"
        done(*arguments, whole)
    with interrupted(StudentStep, before_call=3):  # in the middle of the second epoch
        assert rnascl(*arguments, out).code == 130
    state = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
    assert set(state) == {"student", "distill", "optimizer"}
    assert len(state["distill"]) == {"vid": 3 * 4, "crd": 4 + 2 + 2}[name]
    done(*arguments, out, "--resume")
    assert (out / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    first, again = (read_document(path / "train.json", TrainDocument) for path in (whole, out))
    assert numbers(first.history) == numbers(again.history)


@pytest.mark.pipeline
def test_stopping_between_two_steps_of_an_epoch_changes_nothing(searched: dict[str, Path], tmp_path: Path) -> None:
    """With a checkpoint after each step, the last of an epoch's middle is gone on from."""
    few = ["--set", "distill.negatives=9", "--distill", "crd", "--epochs", 2, "--batch-size", 8, *FAST[2:]]
    done("train", searched["rnas-cl"], *few, "--out", tmp_path / "whole")
    out = tmp_path / "run"
    arguments: list[object] = ["train", searched["rnas-cl"], *few, "--set", "checkpoint_minutes=1e-9", "--out", out]
    with interrupted(StudentStep, before_call=6):
        assert rnascl(*arguments).code == 130
    assert torch.load(out / "checkpoint.pt", weights_only=True)["epoch_state"] is not None
    done(*arguments, "--resume")
    one, two = ((path / "student.safetensors").read_bytes() for path in (tmp_path / "whole", out))
    assert one == two


@pytest.mark.pipeline
def test_cached_logits_do_not_change_kd(baselines: dict[str, Path], searched: dict[str, Path], tmp_path: Path) -> None:
    command = ("train", searched["rnas-cl"], "--distill", "kd", "--epochs", 2, *FAST)
    cached = done(*command, "--out", tmp_path / "cached")
    reused = re.search(r"Teacher cache: (\d+) of (\d+) views reused", cached.err)
    assert reused is not None
    assert reused[1] == reused[2] != "0"
    uncached = done(*command, "--set", "teacher_cache.mode=off", "--out", tmp_path / "uncached")
    assert "Teacher cache" not in uncached.err
    students = {
        (run / "student.safetensors").read_bytes()
        for run in (baselines["kd"], tmp_path / "cached", tmp_path / "uncached")
    }
    assert len(students) == 1


@pytest.mark.pipeline
def test_fine_tuning_drops_the_baseline_and_records_it(baselines: dict[str, Path], tmp_path: Path) -> None:
    done("adv-finetune", baselines["sp"], "--epochs", 1, *FAST, "--out", tmp_path / "fine")
    document = read_document(tmp_path / "fine" / "adv-finetune.json", AdvFinetuneDocument)
    assert (document.paradigm, document.distill, document.provenance.teacher) == ("standard", "sp", None)
    assert "distill" not in document.history[0]
    reported = {model.trained: model for model in models(collect([tmp_path / "fine", baselines["sp"]]))}
    assert set(reported) == {"sp", "sp + trades"}
    for model in reported.values():
        assert model.teacher is not None
        assert model.teacher.architecture == "r8"
    done("adv-finetune", tmp_path / "fine", "--epochs", 1, *FAST, "--out", tmp_path / "again")
    assert read_document(tmp_path / "again" / "adv-finetune.json", AdvFinetuneDocument).distill == "sp"


@pytest.mark.pipeline
def test_settings_reach_the_loss_whatever_their_order(searched: dict[str, Path], tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text('space = "S3"\n[train]\ndistill = { name = "kd", temperature = 2.0, weight = 0.5 }\n')
    run = ("train", searched["rnas-cl"], "--epochs", 1, *FAST, "--recipe", recipe_file)
    for number, (given, told) in enumerate(
        [
            ((), {"name": "kd", "weight": 0.5, "ce_weight": 0.1, "temperature": 2.0}),
            (("--distill", "at", "--set", "distill.weight=7"), {"name": "at", "weight": 7.0}),
            (("--distill", "kd"), {"name": "kd", "weight": 0.5, "ce_weight": 0.1, "temperature": 2.0}),
            (("--set", "distill.name=sp", "--distill", "at"), {"name": "at", "weight": 1000.0}),
            (("--set", "distill=null"), None),
        ]
    ):
        # The flags are thin layers over the recipe: what the run directory says is what was used.
        done(*run, *given, "--out", tmp_path / str(number))
        document = read_document(tmp_path / str(number) / "train.json", TrainDocument)
        assert document.provenance.recipe["train"]["distill"] == told
        assert document.distill == (told["name"] if told else None)


@pytest.mark.pipeline
def test_what_is_refused(searched: dict[str, Path], tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    source = searched["rnas-cl"]
    line = refused("train", source, "--distill", "sp", "--paradigm", "kl", "--out", out)
    assert "--distill sp: replaces the paradigm's teacher terms" in line
    assert "--paradigm kl" in line
    line = refused("train", source, "--distill", "sp", "--method", "trades", "--out", out)
    assert "--distill sp: trains on clean images" in line
    line = refused("train", searched["standard"], "--distill", "sp", "--out", out)
    assert "--distill sp: needs a teacher, and the derived document names none; give --teacher" in line
    line = refused("train", source, "--distill", "spp", "--out", out)
    assert "--distill spp: one of kd, at, sp, vid, rkd, crd, pkt" in line
    line = refused("train", source, "--distill", "sp", "--set", "distill.temperature=3", "--out", out)
    assert "unknown recipe key 'train.distill.temperature' (known: name, weight)" in line
    line = refused("train", source, "--set", "distill.weight=3", "--out", out)
    assert "recipe key 'train.distill.name': must be set with the other keys of 'train.distill'" in line
    assert not out.exists()
    # Standard beside it says the same twice; a teacher may be named where the search had none.
    run = ("--distill", "sp", "--paradigm", "standard", "--teacher", tiny_teacher)
    done("train", searched["standard"], *run, "--epochs", 1, *FAST, "--out", out)


@pytest.mark.pipeline
def test_a_teacher_that_is_no_longer_what_it_was(searched: dict[str, Path], tiny_teacher: Path, tmp_path: Path) -> None:
    raw = json.loads(document_json(derive(searched["kl"])))
    raw["provenance"]["teacher"]["sha256"] = "0" * 64
    (tmp_path / "d.json").write_text(json.dumps(raw))
    line = refused("train", tmp_path / "d.json", "--distill", "at", *FAST, "--out", tmp_path / "run")
    assert str(tiny_teacher) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_classes_matter_to_kd_alone(searched: dict[str, Path], data: Data, tmp_path: Path) -> None:
    path, derived = tmp_path / "three.safetensors", derive(searched["rnas-cl"])
    write_teacher(path, build_teacher("r8", num_classes=3), architecture="r8", num_classes=3, about={})
    with pytest.raises(UserError, match=r"--distill kd: compares class by class, and .* has 3 classes, the data 10"):
        find_baseline_teacher(str(path), settings("kd"), derived, data=data)
    for name in BASELINES[1:]:
        assert find_baseline_teacher(str(path), settings(name), derived, data=data).teacher.num_classes == 3


@pytest.mark.unit
@pytest.mark.parametrize("stages", [True, False])
def test_a_teacher_without_the_features_is_refused_with_what_is_possible(
    searched: dict[str, Path], data: Data, stages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flattened pixels and a linear layer, with or without a stage that ends in no map."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    if stages:
        module.feature_info = [{"module": "0", "num_chs": 3072}]  # type: ignore[assignment]
    reference = TeacherReference(source="flat", path="/flat", architecture="flat", sha256="0" * 64)
    monkeypatch.setattr(stage, "read_teacher", lambda source: Teacher(module.eval(), reference, 10, "flat"))
    possible = ["kd", *(["sp"] if stages else []), "rkd", "crd", "pkt"]
    for name in BASELINES:
        if name in possible:
            find_baseline_teacher("flat", settings(name), derive(searched["rnas-cl"]), data=data)
            continue
        with pytest.raises(UserError, match=f"--distill {name}: compares {COMPARES[name]}") as raised:
            find_baseline_teacher("flat", settings(name), derive(searched["rnas-cl"]), data=data)
        assert f"possible with this teacher: {', '.join(possible)}" in str(raised.value)


@pytest.mark.unit
def test_crd_needs_two_classes(searched: dict[str, Path], data: Data, tiny_teacher: Path) -> None:
    lone = Data(**{**vars(data), "train": data.train.select(torch.nonzero(data.train.labels_N == 4).flatten())})
    with pytest.raises(UserError, match="--distill crd: needs training images of two classes or more"):
        find_baseline_teacher(str(tiny_teacher), settings("crd"), derive(searched["rnas-cl"]), data=lone)


@pytest.mark.pipeline
def test_a_constant_teacher_is_found(searched: dict[str, Path], tmp_path: Path) -> None:
    silent = build_teacher("r8", num_classes=10)
    for parameter in silent.parameters():
        nn.init.zeros_(parameter)
    path = tmp_path / "silent.safetensors"
    write_teacher(path, silent, architecture="r8", num_classes=10, about={})
    for name in ("kd", "at", "pkt"):
        outcome = rnascl(
            *("train", searched["standard"], "--distill", name, "--teacher", path, *FAST),
            *("--epochs", 1, "--out", tmp_path / name),
        )
        assert outcome.code == 1
        assert "the teacher's output is the same for every image of the batch" in outcome.err


@pytest.mark.unit
@pytest.mark.parametrize("name", BASELINES)
def test_a_step_moves_the_student_and_what_the_baseline_learns(
    searched: dict[str, Path], data: Data, tiny_teacher: Path, name: Baseline
) -> None:
    given, derived = recipe(name), derive(searched["rnas-cl"])
    training = TrainingRun(given, CPU, data, RunDirectory(Path("unused")))
    distill = given.train.distill
    assert distill is not None
    student = build_student(derived.architecture, mean=data.mean, std=data.std)
    found = find_baseline_teacher(str(tiny_teacher), distill, derived, data=data)
    frozen = {key: value.clone() for key, value in found.teacher.module.state_dict().items()}
    (batch, *_) = batches(
        data.train,
        batch_size=16,
        generator=torch.Generator().manual_seed(0),
        augment=Unchanged(),
        device=CPU.device,
    )
    with (
        baseline_loss(student, found, derived, training) as baseline,
        distilling(
            student,
            None,
            derived,
            paradigm="standard",
            attention=given.train.attention,
            kl=given.train.kl,
            compute=CPU,
            baseline=baseline,
        ) as distillation,
    ):
        step = StudentStep("train", given.train, distillation, holdout=data.holdout, compute=CPU, seed=given.seed)
        before = [parameter.detach().clone() for parameter in baseline.module.parameters()]
        assert len(before) == {"vid": 3 * 4, "crd": 4}.get(name, 0)
        memory = {key: value.clone() for key, value in baseline.module.named_buffers()}
        step.start_epoch(0, torch.Generator().manual_seed(0))
        step.step(batch)
        # Cross-entropy reaches every weight; so does what the baseline learns itself.
        assert all(parameter.grad is not None for parameter in student.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, baseline.module.parameters(), strict=True))
        for key, value in baseline.module.named_buffers():
            assert not torch.equal(memory[key], value)
        if isinstance(baseline.module, ContrastiveLoss):
            changed_N = (memory["memory_of_student_ND"] - baseline.module.memory_of_student_ND).abs().sum(dim=1)
            assert torch.nonzero(changed_N).flatten().tolist() == sorted(batch.rows_B.tolist())
    assert all(torch.equal(frozen[key], value) for key, value in found.teacher.module.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())
    assert read_teacher(str(tiny_teacher)).reference.sha256 == found.teacher.reference.sha256


@pytest.mark.unit
@pytest.mark.parametrize("name", ["sp", "rkd", "crd", "pkt"])
def test_a_loss_that_relates_images_is_refused_to_several_ranks(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    check_can_be_shared(16, attention=None, baseline=name)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(UserError, match=f"--distill {name}: compares the images of a whole batch"):
        check_can_be_shared(16, attention=None, baseline=name)
    check_can_be_shared(16, attention=None, baseline="at")
