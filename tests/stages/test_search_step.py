"""One search step: which half of the batch moves which numbers, and what eq. (2) comes to.

Shape suffixes: B images, S student layers, T teacher layers, P pixels of a map.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.artifacts.documents import Paradigm
from rnascl_cli.data import Data, load_data
from rnascl_cli.engine.modes import fixed_statistics
from rnascl_cli.models.attention_maps import attention_layers
from rnascl_cli.models.batch_norm import BatchNorm2d
from rnascl_cli.recipes.paradigms import needs_teacher, uses_kl, uses_tutors
from rnascl_cli.recipes.settings import AttentionSettings, CostSettings, DataSettings, KLSettings, SearchSettings
from rnascl_cli.spaces import SPACES, network_cost
from rnascl_cli.stages.search.setup import search_step
from rnascl_cli.stages.search.step import SearchStep, split_batch
from rnascl_cli.teachers.load import read_teacher
from tests.batches import as_batch, drawn_part
from tests.engine.toy import CPU
from tests.stages.test_adversarial_terms import robust_settings

pytestmark = pytest.mark.unit

SPACE = SPACES["S3"]


@pytest.fixture(scope="module")
def data() -> Data:
    """Forty digits to train on."""
    return load_data(DataSettings(spec="digits", limit_train=40, limit_test=10), seed=0)


@contextlib.contextmanager
def step_for(settings: SearchSettings, data: Data, teacher_file: Path) -> Iterator[SearchStep]:
    """A search step at the start of its first epoch."""
    needed = settings.paradigm != "standard" or needs_teacher(settings.robust)
    teacher = read_teacher(str(teacher_file)) if needed else None
    torch.manual_seed(0)
    with search_step(settings, SPACE, data=data, teacher=teacher, compute=CPU) as step:
        step.start_epoch(0, torch.Generator().manual_seed(1))
        yield step


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
        robust = robust_settings(robust, steps=2)
    with step_for(SearchSettings(paradigm=paradigm, robust=robust), data, tiny_teacher) as step:
        x_BCHW, y_B = batch(data, 8)
        # Twice, so that momentum is there.
        for _ in range(2):
            supernet, choices = copied(step.supernet), copied(step.architecture)
            teacher_output = None if step.teacher is None else step.teacher(as_batch(x_BCHW))
            with noting_passes(step.supernet.stem.bn) as passes:
                step.weight_step(drawn_part(step, x_BCHW, y_B, teacher_output))
            assert moved(step.architecture, choices) == set()
            assert all(parameter.grad is None for parameter in step.architecture.parameters())
            weights = {name for name, _ in step.supernet.named_parameters()}
            statistics = {name for name in supernet if name.rpartition(".")[2].startswith("running")}
            assert moved(step.supernet, supernet) >= weights | statistics
            # The passes that look for perturbed images leave the statistics alone, however many there are.
            assert passes.count(True) == (1 if robust is None else 2)
            step.optimizers[0].optimizer.zero_grad()

            supernet, choices = copied(step.supernet), copied(step.architecture)
            step.architecture_step(drawn_part(step, x_BCHW, y_B, teacher_output))
            assert moved(step.supernet, supernet) == set()
            assert all(parameter.grad is None for parameter in step.supernet.parameters())
            assert moved(step.architecture, choices) == {name for name, _ in step.architecture.named_parameters()}
            step.optimizers[1].optimizer.zero_grad()
        assert all(parameter.requires_grad for parameter in step.supernet.parameters())
        assert all(parameter.requires_grad for parameter in step.architecture.parameters())


def test_weights_learn_in_train_mode_whatever_came_before(data: Data, tiny_teacher: Path) -> None:
    with step_for(SearchSettings(paradigm="standard"), data, tiny_teacher) as step:
        step.supernet.eval()
        before = copied(step.supernet)
        step.step(as_batch(*batch(data, 8)))
        assert step.supernet.training
        assert "stem.bn.running_mean" in moved(step.supernet, before)


@pytest.mark.parametrize(("size", "first"), [(128, 102), (256, 205), (10, 8), (3, 2), (2, 1)])
def test_split_of_80_and_20_per_cent(size: int, first: int) -> None:
    assert split_batch(size, 0.8) == first
    assert split_batch(size, 0.001) == 1
    assert split_batch(size, 0.999) == size - 1


def test_the_teacher_runs_once_and_its_output_is_split_with_the_batch(data: Data, tiny_teacher: Path) -> None:
    with step_for(SearchSettings(), data, tiny_teacher) as step:
        x_BCHW, y_B = batch(data, 10)
        assert step.teacher is not None
        whole = step.teacher(as_batch(x_BCHW, y_B))
        parts = step.split(as_batch(x_BCHW, y_B), whole)
        metrics = step.step(as_batch(x_BCHW, y_B))
    assert whole.maps_BTP is not None
    for part, rows in zip(parts, (slice(0, 8), slice(8, 10)), strict=True):
        assert torch.equal(part.x_bCHW, x_BCHW[rows])
        assert torch.equal(part.y_b, y_B[rows])
        assert part.teacher is not None
        assert part.teacher.maps_BTP is not None
        assert torch.equal(part.teacher.logits_BK, whole.logits_BK[rows])
        assert torch.equal(part.teacher.maps_BTP, whole.maps_BTP[rows])
    assert {"loss", "ce", "kl", "attention", "n_f", "expected_macs", "train_accuracy", "gumbel_loss"} == set(metrics)
    assert all(not value.requires_grad for value in metrics.values())


def test_the_two_parts_have_different_gumbel_samples(data: Data, tiny_teacher: Path) -> None:
    with step_for(SearchSettings(), data, tiny_teacher) as step:
        first, second = (step.sample(part) for part in step.split(as_batch(*batch(data, 10)), None))
    assert not torch.equal(first.widths, second.widths)
    assert first.tutors is not None
    assert second.tutors is not None
    assert not torch.equal(first.tutors, second.tutors)


def test_a_batch_of_one_image_moves_the_weights_only(data: Data, tiny_teacher: Path) -> None:
    with step_for(SearchSettings(), data, tiny_teacher) as step:
        before = copied(step.architecture)
        metrics = step.step(as_batch(*batch(data, 1)))
        assert moved(step.architecture, before) == set()
    assert "gumbel_loss" not in metrics


def test_equation_2_by_hand(data: Data, tiny_teacher: Path) -> None:
    settings = SearchSettings(
        attention=AttentionSettings(gamma=3.0, map_size=4), kl=KLSettings(weight=0.5), cost=CostSettings(exponent=2.0)
    )
    x_BCHW, y_B = batch(data, 6)
    with step_for(settings, data, tiny_teacher) as step:
        assert step.teacher is not None
        teacher_output = step.teacher(as_batch(x_BCHW))
        part = drawn_part(step, x_BCHW, y_B, teacher_output)
        sample = step.sample(part)
        step.supernet.train()
        with fixed_statistics(step.supernet):
            found = step.loss(part, sample)
        supernet = step.supernet
        with fixed_statistics(supernet), torch.no_grad():
            outputs: list[Tensor] = []
            handles = [
                module.register_forward_hook(
                    lambda _module, _inputs, masks, output: outputs.append(
                        output if masks.get("channel_mask") is None else output * masks["channel_mask"]
                    ),
                    with_kwargs=True,
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
    cost = step.metrics.expected_macs(sample.widths).item() / network_cost(SPACE, SPACE.largest, num_classes=10).macs
    assert found.terms["ce"].item() == pytest.approx(ce, rel=1e-4)
    assert found.terms["kl"].item() == pytest.approx(kl, rel=1e-3)
    assert found.terms["attention"].item() == pytest.approx(attention, rel=1e-3)
    assert found.n_f.item() == pytest.approx(cost**2, rel=1e-4)
    assert found.loss.item() == pytest.approx((ce + 0.5 * kl + 3.0 * attention) * cost**2, rel=1e-3)


def test_the_temperature_falls_with_the_epochs(data: Data, tiny_teacher: Path) -> None:
    with step_for(SearchSettings(epochs=10, paradigm="standard"), data, tiny_teacher) as step:
        found = []
        for epoch in range(3):
            step.start_epoch(epoch, torch.Generator())
            found.append(step.end_epoch()["temperature"])
    assert found == pytest.approx([5.0 * math.exp(-0.045 * 10 * epoch) for epoch in range(3)])


def test_the_epochs_entry(data: Data, tiny_teacher: Path) -> None:
    with step_for(SearchSettings(), data, tiny_teacher) as step:
        before = copied(step.supernet)
        entry = step.end_epoch()
        assert moved(step.supernet, before) == set()
        assert step.supernet.training
    # Undecided: every choice is as likely, and the entropies are 1.
    assert (entry["width_entropy"], entry["tutor_entropy"]) == pytest.approx((1.0, 1.0))
    # S3's blocks have 2, 4 and 4 choices.
    assert entry["width_top_weight"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    tutor_logits = step.architecture.tutor_logits
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
    with step_for(SearchSettings(), data, tiny_teacher) as step:
        part = step.split(as_batch(*batch(data, 10)), None)[0]
        sample = step.sample(part)
        macs = step.weight_step(part)["expected_macs"]
        assert macs.item() == pytest.approx(step.metrics.expected_macs(sample.widths).item())


def test_a_part_too_small_for_batch_norm_is_not_split_off(data: Data, tiny_teacher: Path) -> None:
    # Images of 8x8 pixels end in maps of one pixel, of which BatchNorm needs two images.
    with step_for(SearchSettings(paradigm="standard"), replace(data, input_size=8), tiny_teacher) as step:
        assert [step.parts(size) for size in (4, 10)] == [(4,), (8, 2)]  # not 3 and 1
        before = copied(step.architecture)
        step.step(as_batch(*batch(data, 4)))
        assert moved(step.architecture, before) == set()
