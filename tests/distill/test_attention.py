"""Eq. (1) against a plain double loop, by hand, and its gradient against finite differences.

Shape suffixes: B images, S student layers, T teacher layers, P pixels of a map.
"""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from rnascl_cli.distill import attention
from rnascl_cli.distill.attention import (
    attention_loss,
    tutor_distances,
    tutored_attention_loss,
    unit_maps,
)

pytestmark = pytest.mark.unit


def equation_1(student: list[Tensor], teacher: list[Tensor], g: list[list[float]]) -> float:
    """Eq. (1) as it is printed: sums over i and j of g_ij || s_i / ||s_i|| - t_j / ||t_j|| ||, the mean over images.

    Args:
        student: A map a layer, (B, P), as plain numbers in plain loops.
        teacher: Likewise.
        g: n_s rows of n_t.
    """
    images = len(student[0])
    total = 0.0
    for i, s_BP in enumerate(student):
        for j, t_BP in enumerate(teacher):
            for b in range(images):
                s, t = s_BP[b].tolist(), t_BP[b].tolist()
                s_norm = math.sqrt(sum(value * value for value in s))
                t_norm = math.sqrt(sum(value * value for value in t))
                gap = [x / s_norm - y / t_norm for x, y in zip(s, t, strict=True)]
                total += g[i][j] * math.sqrt(sum(value * value for value in gap)) / images
    return total / (len(student) * len(teacher))


def pairwise_distances(
    student_BSP: Tensor, teacher_BTP: Tensor, *, over: Literal["image", "batch"] = "image"
) -> Tensor:
    """Distances from the inner products of whole maps; for smaller ones see tests/models/test_maps.py."""
    products_BST = student_BSP @ teacher_BTP.transpose(1, 2)
    return attention.pairwise_distances(products_BST, student_BSP.square().sum(dim=2), teacher_BTP, over=over)


@pytest.fixture
def maps(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Energy maps (not negative) of 3 student and 5 teacher layers for 4 images, 6 pixels."""
    return torch.rand(4, 3, 6, generator=generator), torch.rand(4, 5, 6, generator=generator)


def test_batched_equals_the_double_loop(maps: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    student_BSP, teacher_BTP = maps
    g_ST = torch.softmax(torch.randn(3, 5, generator=generator), dim=1)
    distances_ST = pairwise_distances(unit_maps(student_BSP), unit_maps(teacher_BTP))
    expected = equation_1(list(student_BSP.unbind(1)), list(teacher_BTP.unbind(1)), g_ST.tolist())
    assert attention_loss(g_ST, distances_ST).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_the_students_norm_is_divided_out(
    maps: tuple[Tensor, Tensor], over: Literal["image", "batch"], generator: torch.Generator
) -> None:
    student_BSP, units_BTP = maps[0] * 300, unit_maps(maps[1], over=over)
    g_ST = torch.softmax(torch.randn(3, 5, generator=generator), dim=1)
    raw, leaf = student_BSP.clone().requires_grad_(True), student_BSP.clone().requires_grad_(True)
    found = attention_loss(g_ST, pairwise_distances(raw, units_BTP, over=over))
    units_BSP = leaf / leaf.norm(dim=2 if over == "image" else (0, 2), keepdim=True)
    expected = attention_loss(g_ST, (units_BSP[:, :, None] - units_BTP[:, None]).norm(dim=3).mean(dim=0))
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found, raw)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, leaf)[0], rtol=1e-4, atol=1e-9)


def test_golden_distances() -> None:
    # One image. Student maps (3, 4) and (1, 0); teacher maps (4, 3), (0, 2) and (5, 0).
    student_BSP = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    teacher_BTP = torch.tensor([[[4.0, 3.0], [0.0, 2.0], [5.0, 0.0]]])
    # Units: (.6, .8), (1, 0); (.8, .6), (0, 1), (1, 0). Distances as differences by hand:
    # (-.2, .2), (.6, -.2), (-.4, .8); (.2, -.6), (1, -1), (0, 0).
    expected = [[math.sqrt(0.08), math.sqrt(0.4), math.sqrt(0.8)], [math.sqrt(0.4), math.sqrt(2), 0.0]]
    found = pairwise_distances(unit_maps(student_BSP), unit_maps(teacher_BTP))
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=1e-6)
    g_ST = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    by_hand = (0.5 * math.sqrt(0.08) + 0.25 * math.sqrt(0.4) + 0.25 * math.sqrt(0.8) + math.sqrt(2)) / 6
    assert attention_loss(g_ST, found).item() == pytest.approx(by_hand, rel=1e-6)


def test_distances_are_averaged_over_images_after_the_root() -> None:
    # Image 1 agrees (distance 0), image 2 is orthogonal (distance sqrt 2): the mean is sqrt(2) / 2.
    student_BSP = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    teacher_BTP = torch.tensor([[[7.0, 0.0]], [[0.0, 3.0]]])
    found = pairwise_distances(unit_maps(student_BSP), unit_maps(teacher_BTP))
    assert found.item() == pytest.approx(math.sqrt(2) / 2, abs=2e-6)


def test_one_hot_weights_give_the_tutored_loss(maps: tuple[Tensor, Tensor]) -> None:
    student_BSP, teacher_BTP = (unit_maps(part) for part in maps)
    tutor = [4, 0, 4]
    g_ST = torch.zeros(3, 5)
    g_ST[range(3), tutor] = 1.0
    pairs_ST = pairwise_distances(student_BSP, teacher_BTP)
    beside_S = tutor_distances(student_BSP, teacher_BTP[:, tutor])
    torch.testing.assert_close(beside_S, pairs_ST[range(3), tutor])
    torch.testing.assert_close(tutored_attention_loss(beside_S, teacher_layers=5), attention_loss(g_ST, pairs_ST))


def test_the_tutored_loss_divides_by_student_and_teacher_layers() -> None:
    assert tutored_attention_loss(torch.tensor([1.0, 2.0]), teacher_layers=3).item() == pytest.approx(3 / 6)


def test_unit_maps_per_image_and_over_the_batch() -> None:
    maps_BLP = torch.tensor([[[3.0, 4.0]], [[0.0, 12.0]]])
    torch.testing.assert_close(unit_maps(maps_BLP), torch.tensor([[[0.6, 0.8]], [[0.0, 1.0]]]))
    # Over the batch: sqrt(9 + 16 + 144) = 13.
    torch.testing.assert_close(unit_maps(maps_BLP, over="batch"), maps_BLP / 13)


def test_each_layer_has_its_own_norm_over_the_batch() -> None:
    maps_BLP = torch.tensor([[[2.0], [10.0]], [[0.0], [0.0]]])
    torch.testing.assert_close(unit_maps(maps_BLP, over="batch"), torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]]))


def test_unit_maps_do_not_depend_on_the_scale(maps: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(unit_maps(maps[0] * 1e6), unit_maps(maps[0]))
    torch.testing.assert_close(unit_maps(maps[0] * 1e-9), unit_maps(maps[0]))


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_zero_maps_give_finite_values_and_gradients(over: Literal["image", "batch"], dead: str) -> None:
    student_BSP = torch.zeros(2, 2, 4) if dead != "teacher" else torch.rand(2, 2, 4)
    teacher_BTP = torch.zeros(2, 3, 4) if dead != "student" else torch.rand(2, 3, 4)
    student_BSP.requires_grad_(True)
    g_ST = torch.full((2, 3), 1 / 3, requires_grad=True)
    unit_BSP, unit_BTP = unit_maps(student_BSP, over=over), unit_maps(teacher_BTP, over=over)
    loss = attention_loss(g_ST, pairwise_distances(unit_BSP, unit_BTP))
    loss = loss + tutored_attention_loss(tutor_distances(unit_BSP, unit_BTP[:, :2]), teacher_layers=3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert student_BSP.grad is not None
    assert student_BSP.grad.isfinite().all()
    assert g_ST.grad is not None
    assert g_ST.grad.isfinite().all()


def test_equal_maps_give_finite_gradients() -> None:
    maps_BSP = torch.rand(2, 2, 4)
    student_BSP = maps_BSP.clone().requires_grad_(True)
    units_BSP = unit_maps(student_BSP)
    (tutor_distances(units_BSP, unit_maps(maps_BSP)).sum() + pairwise_distances(units_BSP, units_BSP).sum()).backward()  # type: ignore[no-untyped-call]
    assert student_BSP.grad is not None
    assert student_BSP.grad.isfinite().all()


def test_gradient_against_finite_differences(maps: tuple[Tensor, Tensor]) -> None:
    student_BSP = maps[0].double()
    teacher_BTP = maps[1].double()
    teacher_BTP = teacher_BTP / teacher_BTP.norm(dim=2, keepdim=True)
    g_ST = torch.softmax(torch.arange(15.0, dtype=torch.float64).view(3, 5) / 10, dim=1)

    def loss(student_BSP: Tensor) -> float:
        units_BSP = student_BSP / student_BSP.norm(dim=2, keepdim=True)
        return attention_loss(g_ST, pairwise_distances(units_BSP, teacher_BTP)).item()

    # unit_maps computes in float32, so the derivative is taken of it in float32 and compared to 64-bit differences.
    leaf = student_BSP.float().requires_grad_(True)
    attention_loss(g_ST.float(), pairwise_distances(unit_maps(leaf), teacher_BTP.float())).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    step = 1e-6
    for place in [(0, 0, 0), (1, 2, 3), (3, 1, 5), (2, 0, 4)]:
        nudge = torch.zeros_like(student_BSP)
        nudge[place] = step
        slope = (loss(student_BSP + nudge) - loss(student_BSP - nudge)) / (2 * step)
        assert leaf.grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_gradient_in_g_is_the_distance_over_the_count(maps: tuple[Tensor, Tensor]) -> None:
    distances_ST = pairwise_distances(*(unit_maps(part) for part in maps))
    g_ST = torch.full((3, 5), 0.2, requires_grad=True)
    attention_loss(g_ST, distances_ST).backward()  # type: ignore[no-untyped-call]
    assert g_ST.grad is not None
    torch.testing.assert_close(g_ST.grad, distances_ST / 15)


def test_distances_lie_between_0_and_2() -> None:
    units_BSP = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    found = pairwise_distances(units_BSP, units_BSP)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0], [2.0, 0.0]]), atol=2e-6, rtol=0)
