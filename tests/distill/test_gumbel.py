"""Gumbel-Softmax, its noise, its temperature, and the logits it works on."""

from __future__ import annotations

import math

import pytest
import torch

from rnascl_cli.distill.architecture_parameters import ArchitectureParameters
from rnascl_cli.distill.gumbel import Noise, gumbel_softmax, mean_entropy, mean_largest, sample_noise, temperature_at

pytestmark = pytest.mark.unit

EULER = 0.5772156649


def test_golden_softmax() -> None:
    # v + eps = (1, 2, 3), tau = 2: exp(.5), exp(1), exp(1.5) over their sum.
    found = gumbel_softmax(torch.tensor([0.5, 2.0, 3.5]), temperature=2.0, noise=torch.tensor([0.5, 0.0, -0.5]))
    total = math.exp(0.5) + math.exp(1.0) + math.exp(1.5)
    assert found.tolist() == pytest.approx([math.exp(0.5) / total, math.exp(1.0) / total, math.exp(1.5) / total])


def test_rows_each_sum_to_one() -> None:
    found = gumbel_softmax(torch.zeros(2, 3), temperature=5.0, noise=torch.tensor([[0.0, 1, 2], [9, 0, 0]]))
    assert found.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert found[1].argmax() == 0


def test_low_temperature_is_argmax_of_logit_plus_noise() -> None:
    found = gumbel_softmax(torch.tensor([3.0, 1.0]), temperature=0.01, noise=torch.tensor([0.0, 2.5]))
    assert found.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_gradient_against_finite_differences() -> None:
    noise = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    logits = torch.tensor([0.1, 0.2, -0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: gumbel_softmax(value, temperature=1.7, noise=noise), logits)


@pytest.mark.parametrize(("kind", "mean", "variance"), [("gumbel", EULER, math.pi**2 / 6), ("normal", 0.0, 1.0)])
def test_noise_has_the_right_mean_and_variance(
    kind: Noise, mean: float, variance: float, generator: torch.Generator
) -> None:
    drawn = sample_noise((400_000,), generator=generator, kind=kind).double()
    # Standard errors: 0.002 of the mean, below 0.006 of the variance.
    assert drawn.mean().item() == pytest.approx(mean, abs=0.01)
    assert drawn.var().item() == pytest.approx(variance, abs=0.03)
    assert drawn.isfinite().all()


def test_gumbel_noise_has_gumbels_quantiles(generator: torch.Generator) -> None:
    drawn = sample_noise((400_000,), generator=generator)
    # P(G < x) = exp(-exp(-x)): the median is -log(log 2).
    assert drawn.median().item() == pytest.approx(-math.log(math.log(2)), abs=0.01)
    assert (drawn < 2.0).double().mean().item() == pytest.approx(math.exp(-math.exp(-2.0)), abs=0.005)


def test_argmax_of_gumbel_samples_follows_the_softmax(generator: torch.Generator) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    noise = sample_noise((200_000, 3), generator=generator)
    picked = gumbel_softmax(logits.expand(200_000, 3), temperature=1.0, noise=noise).argmax(dim=1)
    shares = torch.bincount(picked, minlength=3) / 200_000
    torch.testing.assert_close(shares, torch.softmax(logits, dim=0), atol=0.006, rtol=0)


def test_extreme_uniforms_stay_finite(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.tensor([0.0, 1.0 - 2**-24, 1.0]))
    assert sample_noise((3,), generator=generator).isfinite().all()


def test_temperature_of_100_epochs_is_the_papers() -> None:
    for epoch in (0, 1, 50, 99):
        assert temperature_at(epoch, epochs=100) == pytest.approx(5.0 * math.exp(-0.045 * epoch), rel=1e-12)
    assert temperature_at(99, epochs=100) == pytest.approx(0.0581, abs=1e-4)


def test_shorter_searches_walk_the_same_curve() -> None:
    # Epoch 5 of 10 stands where epoch 50 of 100 does.
    assert temperature_at(5, epochs=10) == pytest.approx(temperature_at(50, epochs=100))
    assert temperature_at(0, epochs=10) == 5.0
    assert temperature_at(150, epochs=300) == pytest.approx(temperature_at(50, epochs=100))


def test_without_scaling_the_length_does_not_matter() -> None:
    assert temperature_at(5, epochs=10, decay_epochs=None) == pytest.approx(5.0 * math.exp(-0.045 * 5))
    assert temperature_at(3, epochs=7, start=2.0, decay=0.0) == 2.0


def test_entropy_is_1_undecided_and_0_decided() -> None:
    assert mean_entropy([torch.full((4,), 0.25), torch.full((2, 3), 1 / 3)]) == pytest.approx(1.0)
    assert mean_entropy([torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0, 0.0]])]) == 0.0
    assert mean_entropy([torch.tensor([1.0])]) == 0.0  # nothing to choose
    for count in range(2, 50):  # some of these sums are rounded to more than the whole
        assert mean_entropy([torch.zeros(count).softmax(dim=0)]) <= 1.0
    # One row decided, one not: half.
    assert mean_entropy([torch.tensor([[1.0, 0.0], [0.5, 0.5]])]) == pytest.approx(0.5)


def test_choices_start_undecided() -> None:
    choices = ArchitectureParameters([(16, 12), (32, 28, 24)], student_layers=2, teacher_layers=4)
    found = choices.expected(temperature=3.0)
    torch.testing.assert_close(found.widths, torch.tensor([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]))
    assert [len(row) for row in choices.rows(found.widths)] == [2, 3]
    assert found.tutors is not None
    torch.testing.assert_close(found.tutors, torch.full((2, 4), 0.25))


@pytest.mark.parametrize(("students", "teachers"), [(0, 4), (2, 0), (0, 0)])
def test_choices_without_tutors(students: int, teachers: int, generator: torch.Generator) -> None:
    choices = ArchitectureParameters([(16, 12)], student_layers=students, teacher_layers=teachers)
    assert choices.tutor_logits is None
    assert choices.sample(choices.draw_noise(generator=generator), temperature=1.0).tutors is None
    assert choices.expected().tutors is None


def test_samples_are_fresh_each_time_and_follow_the_generator() -> None:
    choices = ArchitectureParameters([(16, 12)], student_layers=2, teacher_layers=3)
    stream = torch.Generator().manual_seed(4)
    one, two = (choices.sample(choices.draw_noise(generator=stream), temperature=1.0) for _ in range(2))
    again = choices.sample(choices.draw_noise(generator=torch.Generator().manual_seed(4)), temperature=1.0)
    assert not torch.equal(one.widths[0], two.widths[0])
    assert torch.equal(one.widths[0], again.widths[0])
    assert one.tutors is not None
    assert again.tutors is not None
    assert torch.equal(one.tutors, again.tutors)
    assert one.tutors.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    # Each row has its own noise.
    assert not torch.equal(one.tutors[0], one.tutors[1])


def test_sampled_weights_carry_gradients_to_the_logits(generator: torch.Generator) -> None:
    choices = ArchitectureParameters([(16, 12), (20, 16)], student_layers=2, teacher_layers=3)
    sample = choices.sample(choices.draw_noise(generator=generator), temperature=1.0)
    assert sample.tutors is not None
    (sum(row[0] for row in sample.widths) + sample.tutors[:, 0].sum()).backward()
    for parameter in choices.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_mean_largest_by_hand() -> None:
    """Rows (1/2, 1/2), (1, 0, 0) and (0.2, 0.8): (0.5 + 1 + 0.8) / 3."""
    rows = [torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[0.2, 0.8]])]
    assert mean_largest(rows) == pytest.approx(2.3 / 3)
