"""One search step: which half of the batch moves which numbers, and what eq. (2) comes to.

Shape suffixes: B images, S student layers, T teacher layers, P pixels of a map.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.artifacts.documents import Paradigm
from rnascl_cli.data import Batch, Data, load_data
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters, GumbelSample
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.attention_maps import attention_layers, record_attention_maps
from rnascl_cli.models.batch_norm import BatchNorm2d
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes import (
    AttentionSettings,
    CostSettings,
    DataSettings,
    KLSettings,
    PerturbationSettings,
    SearchRobustSettings,
    SearchSettings,
)
from rnascl_cli.recipes.paradigms import needs_teacher, uses_kl, uses_tutors
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.search.adversarial import BatchPart
from rnascl_cli.stages.search.step import SearchStep, split_batch
from rnascl_cli.teachers.forward import TeacherOutput, frozen_teacher
from rnascl_cli.teachers.load import read_teacher
from tests.batches import as_batch, drawn_part
from tests.engine.toy import CPU

pytestmark = pytest.mark.unit

SPACE = SPACES["S3"]


@pytest.fixture(scope="module")
def data() -> Data:
    """Forty digits to train on."""
    return load_data(DataSettings(spec="digits", limit_train=40, limit_test=10), seed=0)


@contextlib.contextmanager
def task_for(settings: SearchSettings, data: Data, teacher_file: Path) -> Iterator[SearchStep]:
    """A search step ready to go, as the stage builds it."""
    needed = settings.paradigm != "standard" or needs_teacher(settings.robust)
    teacher = read_teacher(str(teacher_file)) if needed else None
    tutoring = uses_tutors(settings.paradigm)
    torch.manual_seed(0)
    supernet = Supernet(SPACE, num_classes=10, mean=data.mean, std=data.std)
    layers = list(attention_layers(teacher.module)) if teacher is not None and tutoring else []
    count = len(attention_layers(supernet)) if tutoring else 0
    choices = ArchitectureParameters(SPACE.block_choices, student_layers=count, teacher_layers=len(layers))
    with contextlib.ExitStack() as stack:
        duty = recorder = None
        if teacher is not None:
            duty = stack.enter_context(
                frozen_teacher(teacher, attention=settings.attention, compute=CPU, layers=layers)
            )
        if tutoring:
            recorder = stack.enter_context(record_attention_maps(supernet, side=settings.attention.map_size))
        task = SearchStep(settings, supernet, choices, data=data, teacher=duty, recorder=recorder, compute=CPU)
        task.start_epoch(0, torch.Generator().manual_seed(1))
        yield task


def batch(data: Data, count: int) -> tuple[Tensor, Tensor]:
    return data.train.images_NCHW[:count].float() / 255, data.train.labels_N[:count]


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those outside the state dict."""
    every = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in every.items()}


@contextlib.contextmanager
def noting_passes(norm: BatchNorm2d) -> Iterator[list[bool]]:
    """Note of each pass of a norm whether it moves the running statistics."""
    passes: list[bool] = []
    hook = norm.register_forward_hook(lambda *_: passes.append(norm.training and norm.track_running_stats))
    yield passes
    hook.remove()


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in copied(module).items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("robust", [None, "trades", "fast-at", "rslad"])
@pytest.mark.parametrize("paradigm", ["rnas-cl", "icc", "kl", "standard"])
def test_each_half_moves_its_own_numbers_only(data: Data, tiny_teacher: Path, paradigm: Paradigm, robust: Any) -> None:
    if robust is not None:
        robust = SearchRobustSettings(method=robust, perturbation=PerturbationSettings(steps=2))
    with task_for(SearchSettings(paradigm=paradigm, robust=robust), data, tiny_teacher) as task:
        x_BCHW, y_B = batch(data, 8)
        # Twice, so that momentum is there.
        for _ in range(2):
            supernet, choices = copied(task._supernet), copied(task._architecture)
            teacher_output = None if task._teacher is None else task._teacher.forward(as_batch(x_BCHW))
            with noting_passes(task._supernet.stem.bn) as passes:
                task._weight_step(task._objective, drawn_part(task, x_BCHW, y_B, teacher_output))
            assert moved(task._architecture, choices) == set()
            assert all(parameter.grad is None for parameter in task._architecture.parameters())
            weights = {name for name, _ in task._supernet.named_parameters()}
            statistics = {name for name in supernet if name.rpartition(".")[2].startswith("running")}
            assert moved(task._supernet, supernet) >= weights | statistics
            # The passes that look for perturbed images leave the statistics alone, however many there are.
            assert passes.count(True) == (1 if robust is None else 2)
            task.optimizers[0].optimizer.zero_grad()

            supernet, choices = copied(task._supernet), copied(task._architecture)
            task._gumbel_step(task._objective, drawn_part(task, x_BCHW, y_B, teacher_output))
            assert moved(task._supernet, supernet) == set()
            assert all(parameter.grad is None for parameter in task._supernet.parameters())
            assert moved(task._architecture, choices) == {name for name, _ in task._architecture.named_parameters()}
            task.optimizers[1].optimizer.zero_grad()
        assert all(parameter.requires_grad for parameter in task._supernet.parameters())
        assert all(parameter.requires_grad for parameter in task._architecture.parameters())


def test_weights_learn_in_train_mode_whatever_came_before(data: Data, tiny_teacher: Path) -> None:
    with task_for(SearchSettings(paradigm="standard"), data, tiny_teacher) as task:
        task._supernet.eval()
        before = copied(task._supernet)
        task.step(as_batch(*batch(data, 8)))
        assert task._supernet.training
        assert "stem.bn.running_mean" in moved(task._supernet, before)


@pytest.mark.parametrize(("size", "first"), [(128, 102), (256, 205), (10, 8), (3, 2), (2, 1)])
def test_split_of_80_and_20_per_cent(size: int, first: int) -> None:
    assert split_batch(size, 0.8) == first
    assert split_batch(size, 0.001) == 1
    assert split_batch(size, 0.999) == size - 1


def test_the_batch_is_split_and_the_teacher_looks_once(
    data: Data, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with task_for(SearchSettings(), data, tiny_teacher) as task:
        seen: list[Tensor] = []
        looked: list[int] = []
        parts: list[TeacherOutput | None] = []
        assert task._teacher is not None
        look = task._teacher.forward
        lessons: list[TeacherOutput] = []

        def noted_look(seen: Batch) -> TeacherOutput:
            looked.append(len(seen))
            lessons.append(look(seen))
            return lessons[-1]

        def noted(step: Any) -> Any:
            def noted_step(objective: Any, part: BatchPart) -> Any:
                seen.append(part.x_bCHW)
                parts.append(part.teacher)
                return step(objective, part)

            return noted_step

        monkeypatch.setattr(task._teacher, "forward", noted_look)
        for step in ("_weight_step", "_gumbel_step"):
            monkeypatch.setattr(task, step, noted(getattr(task, step)))
        x_BCHW, y_B = batch(data, 10)
        metrics = task.step(as_batch(x_BCHW, y_B))
    assert looked == [10]
    assert torch.equal(seen[0], x_BCHW[:8])
    assert torch.equal(seen[1], x_BCHW[8:])
    assert parts[0] is not None
    assert parts[1] is not None
    for part, rows in ((parts[0], slice(0, 8)), (parts[1], slice(8, 10))):
        assert torch.equal(part.logits_BK, lessons[0].logits_BK[rows])
        assert part.maps_BTP is not None
        assert lessons[0].maps_BTP is not None
        assert torch.equal(part.maps_BTP, lessons[0].maps_BTP[rows])
    assert {"loss", "ce", "kl", "attention", "n_f", "expected_macs", "train_accuracy", "gumbel_loss"} == set(metrics)
    assert all(not value.requires_grad for value in metrics.values())


def test_the_second_half_draws_afresh(data: Data, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with task_for(SearchSettings(), data, tiny_teacher) as task:
        samples: list[GumbelSample] = []
        sample = task._sample

        def noted(part: BatchPart) -> GumbelSample:
            samples.append(sample(part))
            return samples[-1]

        monkeypatch.setattr(task, "_sample", noted)
        task._sanity_check.pending = False  # which looks at a sample of its own
        task.step(as_batch(*batch(data, 10)))
    assert len(samples) == 2
    for one, two in zip(samples[0].widths, samples[1].widths, strict=True):
        assert not torch.equal(one, two)
    tutors = [drawn.tutors for drawn in samples]
    assert tutors[0] is not None
    assert tutors[1] is not None
    assert not torch.equal(tutors[0], tutors[1])


def test_a_batch_of_one_image_moves_the_weights_only(data: Data, tiny_teacher: Path) -> None:
    with task_for(SearchSettings(), data, tiny_teacher) as task:
        before = copied(task._architecture)
        metrics = task.step(as_batch(*batch(data, 1)))
        assert moved(task._architecture, before) == set()
    assert "gumbel_loss" not in metrics


def test_equation_2_by_hand(data: Data, tiny_teacher: Path) -> None:
    settings = SearchSettings(
        attention=AttentionSettings(gamma=3.0, map_size=4), kl=KLSettings(weight=0.5), cost=CostSettings(exponent=2.0)
    )
    x_BCHW, y_B = batch(data, 6)
    with task_for(settings, data, tiny_teacher) as task:
        assert task._teacher is not None
        teacher_output = task._teacher.forward(as_batch(x_BCHW))
        part = drawn_part(task, x_BCHW, y_B, teacher_output)
        sample = task._sample(part)
        task._supernet.train()
        with fixed_statistics(task._supernet):
            found = task._objective(part, sample)
        supernet = task._supernet
        with fixed_statistics(supernet), torch.no_grad():
            outputs: list[Tensor] = []
            handles = [
                module.register_forward_hook(
                    lambda module, _i, output: outputs.append(
                        output if getattr(module, "channel_mask", None) is None else output * module.channel_mask
                    )
                )
                for module in attention_layers(supernet).values()
            ]
            logits = supernet(x_BCHW, sample.widths)
            for handle in handles:
                handle.remove()
    assert teacher_output.maps_BTP is not None
    assert sample.tutors is not None
    p, q = logits.softmax(1), teacher_output.logits_BK.softmax(1)
    ce = sum(-math.log(p[b, y_B[b]].item()) for b in range(6)) / 6
    kl = sum((p[b] * (p[b] / q[b]).log()).sum().item() for b in range(6)) / 6
    attention = 0.0
    for i, output in enumerate(outputs):
        energy_B1HW = output.square().sum(dim=1, keepdim=True)
        if energy_B1HW.shape[-1] > 4:
            energy_B1HW = nn.functional.avg_pool2d(energy_B1HW, energy_B1HW.shape[-1] // 4)
        s_BP = nn.functional.normalize(energy_B1HW.flatten(1))
        for j in range(teacher_output.maps_BTP.shape[1]):
            distance = (s_BP - teacher_output.maps_BTP[:, j]).norm(dim=1).mean().item()
            attention += sample.tutors[i, j].item() * distance
    attention /= sample.tutors.numel()
    cost = task._macs(sample.widths).item() / network_cost(SPACE, SPACE.largest, num_classes=10).macs
    assert found.terms["ce"].item() == pytest.approx(ce, rel=1e-4)
    assert found.terms["kl"].item() == pytest.approx(kl, rel=1e-3)
    assert found.terms["attention"].item() == pytest.approx(attention, rel=1e-3)
    assert found.n_f.item() == pytest.approx(cost**2, rel=1e-4)
    assert found.loss.item() == pytest.approx((ce + 0.5 * kl + 3.0 * attention) * cost**2, rel=1e-3)


def test_the_temperature_falls_with_the_epochs(data: Data, tiny_teacher: Path) -> None:
    with task_for(SearchSettings(epochs=10, paradigm="standard"), data, tiny_teacher) as task:
        found = []
        for epoch in range(3):
            task.start_epoch(epoch, torch.Generator())
            found.append(task.end_epoch()["temperature"])
    assert found == pytest.approx([5.0 * math.exp(-0.045 * 10 * epoch) for epoch in range(3)])


def test_the_epochs_entry(data: Data, tiny_teacher: Path) -> None:
    with task_for(SearchSettings(), data, tiny_teacher) as task:
        before = copied(task._supernet)
        entry = task.end_epoch()
        assert moved(task._supernet, before) == set()
        assert task._supernet.training
    # Undecided: every choice is as likely, and the entropies are 1.
    assert (entry["width_entropy"], entry["tutor_entropy"]) == pytest.approx((1.0, 1.0))
    # S3's blocks have 2, 4 and 4 choices.
    assert entry["width_top_weight"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    tutor_logits = task._architecture.tutor_logits
    assert tutor_logits is not None
    assert entry["tutor_top_weight"] == pytest.approx(1 / tutor_logits.shape[1])
    right = entry["holdout_accuracy"] * len(data.holdout)
    assert right == pytest.approx(round(right))


@pytest.mark.parametrize("paradigm", ["rnas-cl", "icc", "kl", "standard"])
def test_which_terms_a_paradigm_has(paradigm: Paradigm) -> None:
    expected = {"rnas-cl": (True, True), "icc": (False, True), "kl": (True, False), "standard": (False, False)}
    assert (uses_kl(paradigm, KLSettings()), uses_tutors(paradigm)) == expected[paradigm]
    assert not uses_kl(paradigm, KLSettings(weight=0.0))


def test_expected_macs_are_those_of_the_sampled_weights(data: Data, tiny_teacher: Path) -> None:
    with task_for(SearchSettings(), data, tiny_teacher) as task:
        samples = []
        drawn = task._sample
        task._sample = lambda part: samples.append(drawn(part)) or samples[-1]  # type: ignore[func-returns-value, method-assign]
        task._sanity_check.pending = False  # which looks at a sample of its own
        metrics = task.step(as_batch(*batch(data, 10)))
    assert len(samples) == 2  # fresh for either part of the batch
    assert metrics["expected_macs"].item() == pytest.approx(task._macs(samples[0].widths).item())


def test_a_part_too_small_for_batch_norm_is_not_split_off(data: Data, tiny_teacher: Path) -> None:
    with task_for(SearchSettings(), data, tiny_teacher) as task:
        task._smallest_part = 2
        before = copied(task._architecture)
        task.step(as_batch(*batch(data, 4)))  # 3 and 1
        assert moved(task._architecture, before) == set()
        task.step(as_batch(*batch(data, 10)))  # 8 and 2
        assert moved(task._architecture, before) != set()
