"""Robust search: the adversarial images, eq. (2), and the stage through the command line.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import DerivedDocument, SearchDocument
from rnascl_cli.artifacts.store import parse_document, read_document
from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.data import Batch, Data, load_data
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.supernet import SupernetAtWidths
from rnascl_cli.recipes.settings import DataSettings, KLSettings, SearchSettings
from rnascl_cli.stages.search.step import SearchStep
from rnascl_cli.stages.training.adversarial import kl_from, own_stream
from tests.batches import as_batch, drawn_part
from tests.command import done, refused, rnascl
from tests.stages.test_adversarial_terms import robust_settings
from tests.stages.test_search_chain import numbers
from tests.stages.test_search_step import batch, step_for

METHODS = ("trades", "fast-at", "rslad")
OFTEN = ("--set", "checkpoint_minutes=0.00001")  # after every step
STEPS = ("--set", "robust.steps=2")
WEIGHTS = {"trades": {"ce": 1.0, "adversarial": 6.0}, "fast-at": {"adversarial": 1.0}}
WEIGHTS["rslad"] = {"adversarial": 5 / 6, "clean_kl": 1 / 6}


@pytest.fixture(scope="module")
def data() -> Data:
    """Forty digits to train on."""
    return load_data(DataSettings(spec="digits", limit_train=40, limit_test=10), seed=0)


def settings(method: Any, **own: Any) -> SearchSettings:
    return SearchSettings(robust=robust_settings(method, eps=0.1, step_size=0.04, steps=2), **own)


@pytest.mark.unit
@pytest.mark.parametrize("method", METHODS)
def test_equation_2_with_adversarial_images_by_hand(
    data: Data, tiny_teacher: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are perturbed under the very widths of the step, with batch statistics; the rest stays as it is."""
    x_BCHW, y_B = batch(data, 6)
    with step_for(settings(method, kl=KLSettings(weight=0.5)), data, tiny_teacher) as task:
        supernet = task.supernet.train()
        torch.nn.init.normal_(supernet.classifier.weight, std=0.3)
        assert task.teacher is not None
        teacher_output = task.teacher(as_batch(x_BCHW))
        # The Gumbel noise is drawn first, then the seed of the starting points' own stream.
        task.start_epoch(0, torch.Generator().manual_seed(5))
        part = drawn_part(task, x_BCHW, y_B, teacher_output)
        sample = task.sample(part)
        stream = torch.Generator().manual_seed(5)
        task.architecture.draw_noise(generator=stream)
        noise = own_stream(stream)
        model, ball = SupernetAtWidths(supernet, sample.widths.detach()), Linf(0.1)
        before = {name: tensor.clone() for name, tensor in supernet.named_buffers()}
        with fixed_statistics(supernet):
            if method == "fast-at":
                start, loss = ball.noise(x_BCHW, noise), cross_entropy(y_B)
            else:
                start = 0.001 * torch.randn(x_BCHW.shape, generator=noise)
                loss = kl_from(teacher_output.logits_BK if method == "rslad" else model(x_BCHW).detach())
            size, steps = (0.125, 1) if method == "fast-at" else (0.04, 2)
            adversarial = projected_gradient(
                model, x_BCHW, loss=loss, ball=ball, step_size=size, steps=steps, start_BCHW=x_BCHW + start
            )
            p, r = (model(x).detach().double().softmax(1) for x in (x_BCHW, adversarial))
            q = teacher_output.logits_BK.double().softmax(1)
            found = task.loss(part, sample)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.named_buffers())

    def kl(one: Tensor, two: Tensor) -> float:
        return float((one * (one / two).log()).sum(1).mean())

    rows = torch.arange(6)
    expected = {
        "trades": {"ce": float(-p[rows, y_B].log().mean()), "adversarial": kl(p, r)},
        "fast-at": {"adversarial": float(-r[rows, y_B].log().mean())},
        "rslad": {"adversarial": kl(q, r), "clean_kl": kl(q, p)},
    }[method]
    got = {name: term.item() for name, term in found.terms.items()}
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert set(got) == {*expected, "kl", "attention"}
    assert got["kl"] == pytest.approx(kl(p, q), rel=1e-3)  # on the clean images
    total = sum(WEIGHTS[method][name] * got[name] for name in expected) + 0.5 * got["kl"] + got["attention"]
    assert found.loss.item() == pytest.approx(total * found.n_f.item(), rel=1e-4)


@pytest.mark.unit
def test_the_maps_are_those_of_the_clean_images(data: Data, tiny_teacher: Path) -> None:
    x_BCHW, y_B = batch(data, 6)
    found = []
    for own in (SearchSettings(), settings("trades")):
        with step_for(own, data, tiny_teacher) as task:
            assert task.teacher is not None
            teacher_output = task.teacher(as_batch(x_BCHW))
            task.supernet.train()
            with fixed_statistics(task.supernet):
                part = drawn_part(task, x_BCHW, y_B, teacher_output)
                terms = task.loss(part, task.sample(part)).terms
            found.append((terms["attention"].item(), terms["kl"].item(), terms["ce"].item()))
    assert found[0] == found[1]


@pytest.mark.unit
def test_how_much_noise_is_used_does_not_depend_on_the_images() -> None:
    """Processes with unlike shares of a batch must go on to the same choices."""
    streams = [torch.Generator().manual_seed(3) for _ in range(2)]
    for stream, images in zip(streams, (1, 5), strict=True):
        torch.randn(images, 3, 8, 8, generator=own_stream(stream))
    assert torch.equal(torch.rand(4, generator=streams[0]), torch.rand(4, generator=streams[1]))
    own = [torch.rand(4, generator=own_stream(torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)]
    assert torch.equal(own[0], own[1])
    assert not torch.equal(own[0], own[2])


def arguments(method: str, teacher: Path | None, small: list[object], out: Path) -> list[object]:
    taught = [] if teacher is None else ["--teacher", teacher]
    common = ["search", "--space", "S3", "--data", "digits", *taught, "--epochs", 2, "--seed", 3, *small]
    return [*common, "--robust", method, *(STEPS if method in ("trades", "rslad") else ()), "--out", out]


@pytest.mark.pipeline
@pytest.mark.parametrize("method", METHODS)
def test_the_stage(tmp_path: Path, tiny_teacher: Path, small: list[object], method: str) -> None:
    done(*arguments(method, tiny_teacher, small, tmp_path / "run"))
    found = read_document(tmp_path / "run" / "search.json", SearchDocument)
    assert (found.robust, found.paradigm) == (method, "rnas-cl")
    for entry in found.history:
        assert {"adversarial", "kl", "attention", "train_robust_accuracy", "train_accuracy"} <= set(entry)
        assert ("ce" in entry) == (method == "trades")
    robust = found.provenance.recipe["search"]["robust"]
    assert (robust["method"], robust.get("steps")) == (method, None if method == "fast-at" else 2)


@pytest.mark.pipeline
def test_resumed_search_gives_the_same_logits(
    tmp_path: Path, tiny_teacher: Path, small: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    done(*arguments("trades", tiny_teacher, small, tmp_path / "whole"), *OFTEN)
    step, steps = SearchStep.step, iter(range(1000))

    def interrupted(self: SearchStep, batch: Batch) -> Any:
        if next(steps) == 3:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStep, "step", interrupted)
        assert rnascl(*arguments("trades", tiny_teacher, small, tmp_path / "run"), *OFTEN).code == 130
    done(*arguments("trades", tiny_teacher, small, tmp_path / "run"), *OFTEN, "--resume")
    whole, resumed = (read_document(tmp_path / name / "search.json", SearchDocument) for name in ("whole", "run"))
    assert resumed.width_logits == whole.width_logits
    assert resumed.tutor_logits == whole.tutor_logits
    assert numbers(resumed.history) == numbers(whole.history)


@pytest.mark.pipeline
def test_rslad_under_the_standard_paradigm(
    tmp_path: Path, tiny_teacher: Path, tiny_folder: Path, small: list[object]
) -> None:
    plain = ["--paradigm", "standard", "--epochs", 1]
    done(*arguments("rslad", tiny_teacher, small, tmp_path / "run"), *plain)
    found = read_document(tmp_path / "run" / "search.json", SearchDocument)
    assert (found.teacher_layers, found.tutor_logits) == ([], [])
    assert {"adversarial", "clean_kl"} <= set(found.history[0])
    assert not {"ce", "kl", "attention"} & set(found.history[0])
    # The network knows under whom it was searched, so that a later training may be taught by the same teacher.
    derived = parse_document(done("derive", tmp_path / "run").out.encode(), DerivedDocument, where="derive")
    assert derived.tutors is None
    assert derived.provenance.teacher is not None
    line = refused(*arguments("rslad", None, small, tmp_path / "none"), *plain)
    assert "--teacher: method 'rslad' learns from a teacher's logits; name one or use another method" in line
    images = ["--data", f"folder:{tiny_folder}"]
    line = refused(*arguments("rslad", tiny_teacher, small, tmp_path / "none"), *plain, *images)
    assert "has 10 classes, the data has 3" in line
    assert "or use another method than rslad" in line
    assert not (tmp_path / "none").exists()


@pytest.mark.pipeline
def test_refusals_and_warnings(tmp_path: Path, tiny_teacher: Path, small: list[object]) -> None:
    line = refused(*arguments("mart", tiny_teacher, small, tmp_path / "run"))
    assert "--robust mart: one of trades, fast-at, rslad" in line
    assert not (tmp_path / "run").exists()
    common = ["search", "--space", "S3", "--data", "digits", "--paradigm", "standard", *small, "--epochs", 1]
    line = refused(*common, *STEPS, "--out", tmp_path / "run")
    assert "recipe key 'search.robust.method': must be set with the other keys of 'search.robust'" in line
    eps = ["--robust", "fast-at", "--set", "robust.eps=0"]
    outcome = done(*common, *eps, "--out", tmp_path / "run")
    assert "warning: search: robust.eps is 0" in " ".join(outcome.err.split())
    assert json.loads((tmp_path / "run" / "search.json").read_text())["robust"] == "fast-at"
