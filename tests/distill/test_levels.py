"""Samples for levels of MACs: spread over the range, near their level, drawn from the search's own logits."""

from __future__ import annotations

import pytest
import torch

from rnascl_cli.distill.architecture_parameters import ArchitectureParameters
from rnascl_cli.distill.cost_conditioned_sampling import CostConditionedSampler
from rnascl_cli.distill.expected_cost import ExpectedCost
from rnascl_cli.spaces import SPACES, SearchSpace, network_cost
from tests.benchmarks.test_counts import NoWaiting

pytestmark = pytest.mark.unit

HARD = 1e-3  # a temperature at which a sample is one network


def levels(space: SearchSpace) -> tuple[CostConditionedSampler, ExpectedCost, int, int]:
    low, high = (network_cost(space, widths, num_classes=10).macs for widths in (space.smallest, space.largest))
    macs = ExpectedCost(space, num_classes=10, input_size=space.input_size)
    found = CostConditionedSampler(space, macs, low=low, high=high, num_classes=10, input_size=space.input_size)
    return found, macs, low, high


def choices(space: SearchSpace, scale: float) -> ArchitectureParameters:
    found = ArchitectureParameters(space.block_choices, student_layers=2, teacher_layers=3)
    torch.nn.init.normal_(found.width_logits, std=scale)
    return found


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_shift_moves_the_expected_macs_to_the_level(name: str, scale: float) -> None:
    found, macs, low, high = levels(SPACES[name])
    logits_DN = choices(SPACES[name], scale).masked_width_logits().detach()
    for share in (0.0, 0.05, 0.3, 0.5, 0.9, 1.0):
        level = torch.tensor(low + share * (high - low), dtype=torch.float64)
        expected = macs(torch.softmax(logits_DN + found.shift(logits_DN, level), dim=-1)).item()
        assert (expected - low) / (high - low) == pytest.approx(share, abs=0.02)


def test_among_equal_macs_the_search_decides() -> None:
    space = SPACES["S3"]
    found, _, low, high = levels(space)
    logits_DN = torch.zeros(9, 4).masked_fill(choices(space, 0.0).get_buffer("absent"), -torch.inf)
    logits_DN[3, 2], logits_DN[0, 1] = 9.0, 9.0  # two blocks that have made up their minds
    shift_DN = found.shift(logits_DN, torch.tensor(0.5 * (low + high), dtype=torch.float64))
    chosen = (logits_DN + shift_DN).argmax(dim=1)
    assert (chosen[3].item(), chosen[0].item()) == (2, 1)


def test_samples_reach_over_the_whole_range_and_keep_to_their_levels() -> None:
    space = SPACES["S5"]
    found, macs, low, high = levels(space)
    settled = choices(space, 0.0)
    with torch.no_grad():
        settled.width_logits[:, 1] = 4.0  # by themselves nearly always the same network
    stream = torch.Generator().manual_seed(3)
    samples = [found.sample(settled, found.draw(settled, generator=stream), temperature=HARD) for _ in range(200)]
    asked = torch.stack([sample.target_macs for sample in samples if sample.target_macs is not None])
    drawn = torch.stack([macs(sample.widths) for sample in samples]).detach()
    shares = (asked - low) / (high - low)
    assert (shares.min(), shares.max()) == pytest.approx((0.0, 1.0), abs=0.05)
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert torch.corrcoef(torch.stack([asked, drawn]))[0, 1] > 0.9
    assert ((drawn - asked) / (high - low)).mean().item() == pytest.approx(0.0, abs=0.03)


def test_what_the_logits_alone_would_give_is_told_beside_it() -> None:
    space = SPACES["S3"]
    found, *_ = levels(space)
    own = choices(space, 1.0)
    sample = found.sample(own, found.draw(own, generator=torch.Generator().manual_seed(1)), temperature=2.0)
    stream = torch.Generator().manual_seed(1)
    torch.rand((), generator=stream, dtype=torch.float64)  # the level
    plain = own.sample(own.draw_noise(generator=stream), temperature=2.0)
    assert sample.unconditioned_widths is not None
    assert sample.tutors is not None
    assert torch.equal(sample.unconditioned_widths, plain.widths)
    assert torch.equal(sample.tutors, plain.tutors)  # type: ignore[arg-type]
    assert not torch.equal(sample.widths, plain.widths)
    assert (plain.target_macs, plain.unconditioned_widths) == (None, None)


def test_the_logits_learn_through_the_sample_and_not_through_the_level() -> None:
    space = SPACES["S3"]
    found, macs, *_ = levels(space)
    own = choices(space, 1.0)
    sample = found.sample(own, found.draw(own, generator=torch.Generator().manual_seed(1)), temperature=2.0)
    assert sample.target_macs is not None
    assert sample.unconditioned_widths is not None
    assert not sample.target_macs.requires_grad
    assert not sample.unconditioned_widths.requires_grad
    macs(sample.widths).backward()
    assert own.width_logits.grad is not None
    assert own.width_logits.grad.any()
    assert not list(found.parameters())
    assert not found.state_dict()


def test_a_sample_waits_for_no_device() -> None:
    space = SPACES["S3"]
    found, *_ = levels(space)
    own, stream = choices(space, 1.0), torch.Generator().manual_seed(1)
    with NoWaiting():  # type: ignore[no-untyped-call]
        found.sample(own, found.draw(own, generator=stream), temperature=2.0)
