"""Model selection and weight averaging.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli import load
from rnascl_cli.artifacts.documents import AdvFinetuneDocument, TrainDocument
from rnascl_cli.artifacts.runs import student_document
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.data import ImageSet, load_data
from rnascl_cli.engine.training_loop import fit
from rnascl_cli.engine.weight_averaging import averaging
from rnascl_cli.recipes.settings import EMA, SWA, DataSettings, SelectSettings
from rnascl_cli.stages.training import model_selection
from rnascl_cli.stages.training.model_selection import BestCheckpoint, ModelSelection
from rnascl_cli.stages.training.step import StudentStep
from tests.command import done, refused
from tests.conftest import FAST
from tests.engine.toy import CPU, Stopped, ToyTask, image_set, stop_at, toy_plan

HELD_OUT = ("--set", "data.holdout=0.25")
# Robust and clean accuracy after each epoch: the most robust is epoch 2 of 5, the best clean one epoch 4.
SCRIPT = [(0.2, 0.5), (0.6, 0.6), (0.5, 0.8), (0.4, 0.9), (0.3, 0.7)]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, searched: dict[str, Path]) -> Path:
    """An epoch of training that leaves a quarter of the images out."""
    path = tmp_path_factory.mktemp("held-out") / "run"
    done("train", searched["standard"], "--epochs", 1, *FAST, *HELD_OUT, "--out", path)
    return path


def scripted(monkeypatch: pytest.MonkeyPatch, script: list[tuple[float, float]]) -> None:
    """Let the held-out accuracies be these, epoch by epoch."""
    robust, clean = iter([pair[0] for pair in script]), iter([pair[1] for pair in script])
    monkeypatch.setattr(model_selection, "robust_accuracy", lambda *_, **__: next(robust))
    monkeypatch.setattr(model_selection, "accuracy", lambda *_, **__: next(clean))


@pytest.mark.unit
def test_best_on_clean_accuracy() -> None:
    best, module = BestCheckpoint("clean"), nn.Linear(1, 1)
    for epoch, (robust, clean) in enumerate([(0.3, 0.9), (0.5, 0.6), (0.4, 0.9), (0.2, 0.9)]):
        nn.init.constant_(module.weight, epoch)
        best.update(module, epoch, robust=robust, clean=clean)
    assert (best.epoch, best.validation, best.weights["weight"].item()) == (2, {"robust": 0.4, "clean": 0.9}, 2)


@pytest.mark.unit
def test_patience_counts_epochs_without_a_higher_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    module, scores = nn.Linear(1, 1), [(0.2, 0.5), (0.4, 0.5), (0.4, 0.5), (0.3, 0.9), (0.4, 0.4), (0.9, 0.9)]
    scripted(monkeypatch, scores)
    common: dict[str, Any] = {"eps": 0.1, "compute": CPU, "seed": 0, "stage": "toy"}
    watch = ModelSelection(module, image_set(4), SelectSettings(patience=3), **common)
    ended = []
    for epoch in range(5):
        assert not watch.finished()
        watch.end_epoch(epoch)
        ended.append(watch.finished())
    # Epoch 2 equals the best and is kept for it, but is no progress; nor are 3 and 4.
    assert ended == [False, False, False, False, True]
    assert watch.best is not None
    assert (watch.best.epoch, watch.best.epochs_without_improvement) == (2, 3)
    resumed = ModelSelection(module, image_set(4), SelectSettings(patience=3), **common)
    assert resumed.best is not None
    resumed.best.load_state_dict(watch.best.state_dict())
    assert resumed.finished()
    assert not ModelSelection(module, image_set(4), SelectSettings(), **common).finished()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "best", "expected"),
    [
        (SWA(kind="swa", start=0.5), 1, None),  # of four epochs, 0 and 1 are not averaged
        (SWA(kind="swa", start=0.5), 3, "swa"),
        (EMA(), 0, "ema"),
        (SWA(kind="swa", start=0.5), None, "swa"),
        (None, 1, None),
    ],
    ids=str,
)
def test_average_is_recorded_only_if_the_saved_weights_are_one(
    monkeypatch: pytest.MonkeyPatch, settings: EMA | SWA | None, best: int | None, expected: str | None
) -> None:
    module = nn.Linear(1, 1)
    scripted(monkeypatch, [(0.9 if epoch == best else 0.1, 0.5) for epoch in range(4)])
    average = averaging(module, settings, epochs=4)
    select = None if best is None else SelectSettings()
    common: dict[str, Any] = {"eps": 0.1, "compute": CPU, "seed": 0, "stage": "toy", "average": average}
    watch = ModelSelection(module, image_set(4), select, **common)
    for epoch in range(4):
        nn.init.constant_(module.weight, epoch)
        if average is not None:
            average.after_step()
        watch.end_epoch(epoch)
    assert watch.restore_selected_weights() == expected
    if isinstance(settings, SWA):
        # Before the start the epoch's own weights, behind it the mean of epochs 2 and 3.
        assert module.weight.item() == (best if expected is None else 2.5)


class Tired(ToyTask):
    """A toy that has had enough after some epochs; how many it has had is in its state."""

    def __init__(self, after: int, **own: Any) -> None:
        super().__init__(**own)
        self.after = after
        self.had = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.state["had"] = nn.ParameterList([self.had])

    def end_epoch(self) -> dict[str, Any]:
        self.had.add_(1)
        return super().end_epoch()

    def finished(self) -> bool:
        return bool(self.had >= self.after)


@pytest.mark.unit
def test_the_loop_ends_when_the_task_is_finished(tmp_path: Path) -> None:
    task = Tired(3)
    assert [entry["epoch"] for entry in fit(task, toy_plan(tmp_path / "a"))] == [0, 1, 2]
    # An epoch stopped on the way is taken to its end; a finished run that is resumed is given no further one.
    with pytest.raises(Stopped):
        fit(Tired(3, before_step=stop_at(5)), toy_plan(tmp_path / "b"))
    assert len(fit(Tired(3), toy_plan(tmp_path / "b", resume=True))) == 3
    again = Tired(3)
    assert len(fit(again, toy_plan(tmp_path / "b", resume=True))) == 3
    assert again.steps == 0


def states_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, Tensor]]:
    """Collect the student's state whenever a method of its task returns."""
    seen: list[dict[str, Tensor]] = []
    method = getattr(StudentStep, name)

    def noted(self: StudentStep, *arguments: Any) -> Any:
        found = method(self, *arguments)
        student = self.model.student
        seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return found

    monkeypatch.setattr(StudentStep, name, noted)
    return seen


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("options", "epochs", "best"),
    [
        (["--select", "robust"], 5, 2),
        (["--select", "clean"], 5, 4),
        (["--select", "robust", "--patience", 2], 4, 2),
        (["--patience", 1], 3, 2),
        (["--select", "last", "--set", "select.patience=1"], 5, None),
    ],
    ids=str,
)
def test_epoch_is_selected_on_held_out_images(
    searched: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    epochs: int,
    best: int | None,
) -> None:
    with monkeypatch.context() as patch:
        scripted(patch, SCRIPT)
        states = states_of(patch, "end_epoch")
        done("train", searched["standard"], *FAST, *HELD_OUT, "--epochs", 5, *options, "--out", tmp_path / "run")
    document = read_document(tmp_path / "run" / "train.json", TrainDocument)
    assert (document.epochs, len(document.history), document.best_epoch) == (epochs, epochs, best)
    kept = load(tmp_path / "run").state_dict()
    expected = states[(best or epochs) - 1]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in kept.items())
    if best is None:
        assert document.validation is None
        return
    assert document.validation is not None
    assert (document.validation.robust, document.validation.clean) == SCRIPT[best - 1]
    for entry, (robust, clean) in zip(document.history, SCRIPT, strict=False):
        assert (entry["holdout_robust_accuracy"], entry["holdout_accuracy"]) == (robust, clean)


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", ["train", "adv-finetune"])
def test_test_set_is_used_once_after_model_selection(
    searched: dict[str, Path], held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    source = searched["standard"] if stage == "train" else held_out
    looked: list[int] = []
    pixels = ImageSet.pixels

    def noted(self: ImageSet, rows: Any) -> Tensor:
        looked.append(len(self))
        return pixels(self, rows)

    options = ["--method", "fast-at", "--select", "robust", "--average", "swa", "--epochs", 2, *HELD_OUT, *FAST]
    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "pixels", noted)
        done(stage, source, *options, "--out", tmp_path / "run")
    data = load_data(DataSettings(spec="digits", limit_train=40, limit_test=20, holdout=0.25), seed=3)
    assert {len(data.train), len(data.holdout), len(data.test)} == set(looked) == {30, 10, 20}
    assert looked.index(20) == len(looked) - 1  # one batch, the last thing of all
    document = student_document(tmp_path / "run")
    assert document is not None
    assert document.best_epoch in (1, 2)
    assert document.average == ("swa" if document.best_epoch == 2 else None)  # it begins with the second
    assert document.validation is not None
    # What is said of the student holds of the weights that were kept.
    model = load(tmp_path / "run")
    for images, said in ((data.test, document.clean_accuracy), (data.holdout, document.validation.clean)):
        right = model(images.images_NCHW.float() / 255).argmax(dim=1) == images.labels_N
        assert said == pytest.approx(right.double().mean().item())


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", ["train", "adv-finetune"])
def test_moving_average_is_saved(
    searched: dict[str, Path], trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    source = (searched if stage == "train" else trained)["standard"]
    options = ["--method", "fast-at", "--average", "ema", "--set", "average.decay=0.3", "--epochs", 2, *FAST]
    with monkeypatch.context() as patch:
        states = states_of(patch, "step")
        done(stage, source, *options, "--out", tmp_path / "run")
    assert len(states) == 4
    kept = load(tmp_path / "run").state_dict()
    for name, tensor in kept.items():
        mean = states[0][name].double()
        for state, decay in zip(states[1:], (1 / 10, 2 / 11, 3 / 12), strict=True):
            mean = decay * mean + (1 - decay) * state[name].double()
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, mean.float())
    assert not torch.equal(kept["classifier.weight"], states[-1]["classifier.weight"])
    document = "train.json" if stage == "train" else "adv-finetune.json"
    assert json.loads((tmp_path / "run" / document).read_text())["average"] == "ema"


@pytest.mark.pipeline
def test_resuming_an_early_stopped_run_changes_nothing(
    searched: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", searched["standard"], *FAST, *HELD_OUT, "--epochs", 5, "--patience", 1]
    with monkeypatch.context() as patch:
        scripted(patch, SCRIPT)
        done(*arguments, "--out", tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert "already finished; left unchanged" in done(*arguments, "--out", tmp_path / "run", "--resume").err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.pipeline
def test_invalid_selection_is_refused(searched: dict[str, Path], trained: dict[str, Path], tmp_path: Path) -> None:
    for command, source in (("train", searched["standard"]), ("adv-finetune", trained["standard"])):
        line = refused(
            command, source, *FAST, "--set", "data.holdout=0", "--select", "robust", "--out", tmp_path / "run"
        )
        expected = "data.holdout: --select robust selects the epoch on held-out training images; set it above 0"
        assert expected in line
        line = refused(command, source, *FAST, "--select", "last", "--patience", 3, "--out", tmp_path / "run")
        assert "--patience: needs a selection metric; use --select robust or --select clean" in line
        for option, words in (("--select", "last, robust, clean"), ("--average", "ema, swa")):
            line = refused(command, source, *FAST, option, "best", "--out", tmp_path / "run")
            assert f"{option} best: one of {words}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--seed", 4), "seed 4 (3 before)"),
        (("--set", "data.holdout=0.5"), "data.holdout 0.5 (0.25 before)"),
        (("--limit-train", 39), "data.limit_train 39 (40 before)"),
    ],
    ids=["seed", "holdout", "limit"],
)
def test_no_selection_on_images_of_the_training(
    held_out: Path, tmp_path: Path, options: tuple[object, ...], cause: str
) -> None:
    arguments = ["adv-finetune", held_out, "--method", "fast-at", "--epochs", 1, *FAST, *options]
    line = refused(*arguments, "--select", "robust", "--out", tmp_path / "run")
    assert f"--select robust: with {cause} other images are held out than when the student was trained" in line
    assert not (tmp_path / "run").exists()
    # Where nothing is chosen, that is no reason to refuse; what was done is known to the next one.
    said = done(*arguments, "--out", tmp_path / "run").err
    assert f"data.holdout: with {cause} other images are held out" in said
    assert "have changed" not in said
    assert read_document(tmp_path / "run" / "adv-finetune.json", AdvFinetuneDocument).holdout_seen
    again = ["adv-finetune", tmp_path / "run", "--method", "fast-at", "--epochs", 1, *FAST]
    line = refused(*again, "--select", "robust", "--out", tmp_path / "again")
    assert "--select robust: the fine-tuning before this one held out other images than the training" in line


@pytest.mark.pipeline
def test_same_images_under_another_path(tiny_folder: Path, tmp_path: Path) -> None:
    def folder(path: object) -> list[object]:
        return ["--data", f"folder:{path}", "--batch-size", 12, "--device", "cpu", "--precision", "fp32"]

    common = ("--paradigm", "standard", *folder(tiny_folder), "--epochs", 1)
    done("search", "--space", "S3", *common, "--out", tmp_path / "s")
    none = ("--set", "data.holdout=0")
    done("train", tmp_path / "s", *folder(tiny_folder), *none, "--epochs", 1, "--out", tmp_path / "t")
    (tmp_path / "link").symlink_to(tiny_folder)
    arguments = ["adv-finetune", tmp_path / "t", "--method", "fast-at", "--epochs", 1, *HELD_OUT, "--select", "robust"]
    line = refused(*arguments, *folder(tmp_path / "link"), "--out", tmp_path / "f")
    assert "data.holdout 0.25 (0.0 before)" in line
