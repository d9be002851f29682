"""Inner products of small maps are those of the maps enlarged, in value and in slope.

Shape suffixes: B images, L layers, T layers of the other network, H height, W width, P pixels of the common map.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnascl_cli.models.attention_maps import LayerMaps, to_common_side

pytestmark = pytest.mark.unit

SIDE = 8


@pytest.fixture(params=[[(4, 4), (4, 4)], [(16, 16), (8, 8), (2, 2)], [(8, 8)], [(3, 5), (16, 4), (1, 1)]])
def groups(request: pytest.FixtureRequest, generator: torch.Generator) -> list[Tensor]:
    """Maps of 3 images: each group is 2 layers of one size, larger, smaller and of the common side."""
    return [torch.rand(3, 2, *size, generator=generator) for size in request.param]


def enlarged(groups: list[Tensor]) -> Tensor:
    return torch.cat([to_common_side(group_BLHW, SIDE).flatten(2) for group_BLHW in groups], dim=1)


def test_maps_at_the_common_side(groups: list[Tensor]) -> None:
    torch.testing.assert_close(LayerMaps(groups, SIDE).resized(), enlarged(groups))


def test_inner_products_are_those_of_the_enlarged_maps(groups: list[Tensor], generator: torch.Generator) -> None:
    other_BTP = torch.rand(3, 5, SIDE**2, generator=generator)
    found = LayerMaps(groups, SIDE).inner_products(other_BTP)
    maps_BLP = enlarged(groups)
    torch.testing.assert_close(found.products_BLT, maps_BLP @ other_BTP.transpose(1, 2))
    torch.testing.assert_close(found.squares_BL, maps_BLP.square().sum(dim=2))


def test_their_slopes_are_those_of_the_enlarged_maps(groups: list[Tensor], generator: torch.Generator) -> None:
    other_BTP = torch.rand(3, 5, SIDE**2, generator=generator)
    layers = 2 * len(groups)
    weight_BLT = torch.rand(3, layers, 5, generator=generator)
    weight_BL = torch.rand(3, layers, generator=generator)

    def slopes(of: list[Tensor], products_BLT: Tensor, squares_BL: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((products_BLT * weight_BLT).sum() + (squares_BL * weight_BL).sum(), of)

    leaves, plain = ([group.clone().requires_grad_(True) for group in groups] for _ in range(2))
    maps_BLP = enlarged(plain)
    expected = slopes(plain, maps_BLP @ other_BTP.transpose(1, 2), maps_BLP.square().sum(dim=2))
    for found, wanted in zip(slopes(leaves, *LayerMaps(leaves, SIDE).inner_products(other_BTP)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_small_maps_are_never_enlarged() -> None:
    small_BLHW = torch.rand(2, 3, 2, 2, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        LayerMaps([small_BLHW], 32).inner_products(torch.rand(2, 5, 32**2))
    assert [tensor.shape for tensor in kept] == [(2, 3, 2, 2), (2, 5, 4)]
