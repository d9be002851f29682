"""The projected-gradient loop and its losses, compared with values computed by hand.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnascl_cli.attacks.checks import Norm
from rnascl_cli.attacks.gradient import L2, Ball, Linf, cross_entropy, margin, projected_gradient
from rnascl_cli.attacks.protocol import PIXEL
from rnascl_cli.attacks.verdicts import allowed
from tests.attacks import tiny

pytestmark = pytest.mark.unit

# Two pixels, two classes: z_0 = x_1 + x_2, z_1 = 3 x_1 - x_2. Class 1 gains on class 0 by (2, -2) a unit.
WEIGHT_KD = torch.tensor([[1.0, 1.0], [3.0, -1.0]])
X_BCHW = torch.tensor([[[[0.5, 0.5]]]])
Y_B = torch.tensor([0])


def linear(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.flatten(1) @ WEIGHT_KD.T


def test_fgsm_on_a_linear_model_reaches_the_best_corner() -> None:
    found = projected_gradient(
        linear, X_BCHW, loss=cross_entropy(Y_B), ball=Linf(0.1), step_size=0.1, steps=1, start_BCHW=X_BCHW
    )
    assert torch.allclose(found.flatten(), torch.tensor([0.6, 0.4]))


def test_pgd_on_a_linear_model_reaches_the_same_corner_from_any_start() -> None:
    for start in ([0.45, 0.55], [0.6, 0.6], [0.4, 0.6]):
        found = projected_gradient(
            linear,
            X_BCHW,
            loss=cross_entropy(Y_B),
            ball=Linf(0.1),
            step_size=0.05,
            steps=4,
            start_BCHW=torch.tensor(start).view(1, 1, 1, 2),
        )
        assert torch.allclose(found.flatten(), torch.tensor([0.6, 0.4]))


def test_pixels_stay_in_the_valid_range() -> None:
    x_BCHW = torch.tensor([[[[0.98, 0.03]]]])
    found = projected_gradient(
        linear, x_BCHW, loss=cross_entropy(Y_B), ball=Linf(0.1), step_size=0.1, steps=3, start_BCHW=x_BCHW
    )
    assert torch.equal(found.flatten(), torch.tensor([1.0, 0.0]))


def test_l2_pgd_on_a_linear_model_follows_the_weights() -> None:
    found = projected_gradient(
        linear, X_BCHW, loss=cross_entropy(Y_B), ball=L2(0.2), step_size=0.05, steps=8, start_BCHW=X_BCHW
    )
    # (2, -2) over its norm, times 0.2
    assert torch.allclose(found.flatten(), torch.tensor([0.5 + 0.141421, 0.5 - 0.141421]), atol=1e-5)


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [
        # Gradients by hand: at (0.5, 0.5) it is (2, 1), mean |.| 1.5; after the step (0.6, 0.6) it is (2, -0.5),
        # mean |.| 1.25. v_2 = mu (1.333, 0.667) + (1.6, -0.4).
        (1.0, (0.7, 0.7)),  # (2.933, 0.267): momentum carries the second pixel on
        (0.5, (0.7, 0.5)),  # (2.267, -0.067): too little
        (None, (0.7, 0.5)),
    ],
)
def test_mi_fgsm_by_hand_for_two_steps(momentum: float | None, expected: tuple[float, float]) -> None:
    def hill(x_BD: Tensor) -> Tensor:
        return 2 * x_BD[:, 0] + (x_BD[:, 1] - 0.5) - 7.5 * (x_BD[:, 1] - 0.5) ** 2

    found = projected_gradient(
        lambda x_BCHW: x_BCHW.flatten(1),
        X_BCHW,
        loss=hill,
        ball=Linf(0.25),
        step_size=0.1,
        steps=2,
        start_BCHW=X_BCHW,
        momentum=momentum,
    )
    assert torch.allclose(found.flatten(), torch.tensor(expected))


def test_cw_margin_by_hand() -> None:
    logits_BK = torch.tensor([[2.0, 5.0, 1.0], [0.0, 0.5, 4.0], [3.0, 1.0, 3.0]])
    y_B = torch.tensor([0, 2, 0])
    # image by image: 5 - 2 = 3; 0.5 - 4 = -3.5; 3 - 3 = 0
    assert torch.equal(margin(y_B, kappa=10.0)(logits_BK), torch.tensor([3.0, -3.5, 0.0]))
    assert torch.equal(margin(y_B)(logits_BK), torch.tensor([0.0, -3.5, 0.0]))


def test_cw_margin_has_no_gradient_beyond_kappa() -> None:
    logits_BK = torch.tensor([[2.0, 5.0, 1.0], [0.0, 0.5, 4.0]], requires_grad=True)
    (gradient_BK,) = torch.autograd.grad(margin(torch.tensor([0, 2]), kappa=1.0)(logits_BK).sum(), logits_BK)
    assert torch.equal(gradient_BK, torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, -1.0]]))


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0.0, 0.6),
    step=st.floats(0.001, 1.0),
    steps=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    norm=st.sampled_from(["Linf", "L2"]),
    momentum=st.sampled_from([None, 0.9]),
)
def test_every_perturbed_image_lies_in_the_ball_and_the_range(
    eps: float, step: float, steps: int, seed: int, norm: Norm, momentum: float | None
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    x_BCHW = torch.rand((4, 3, tiny.SIDE, tiny.SIDE), generator=drawn).round(decimals=1)
    ball: Ball = Linf(eps) if norm == "Linf" else L2(eps)
    found = projected_gradient(
        tiny.network(),
        x_BCHW,
        loss=cross_entropy(torch.arange(4)),
        ball=ball,
        step_size=step,
        steps=steps,
        start_BCHW=x_BCHW + ball.noise(x_BCHW, drawn),
        momentum=momentum,
    )
    assert found.min() >= 0
    assert found.max() <= 1
    assert allowed(found, x_BCHW, attack_space=PIXEL, norm=norm, eps=eps).all()
    delta_BD = (found - x_BCHW).flatten(1)
    size_B = delta_BD.abs().amax(dim=1) if norm == "Linf" else delta_BD.norm(dim=1)
    assert float(size_B.max()) <= eps + 1e-6 + 1e-5 * eps


def test_a_zero_gradient_changes_nothing_and_gives_no_nan() -> None:
    balls: list[Ball] = [Linf(0.1), L2(0.1)]
    for ball, momentum in itertools.product(balls, (None, 1.0)):
        found = projected_gradient(
            lambda x_BCHW: 0 * x_BCHW.flatten(1),
            X_BCHW,
            loss=cross_entropy(Y_B),
            ball=ball,
            step_size=0.1,
            steps=2,
            start_BCHW=X_BCHW,
            momentum=momentum,
        )
        assert torch.equal(found, X_BCHW)
