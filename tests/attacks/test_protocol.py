"""The two protocols: eps on pixels, and eps on normalised inputs.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.attacks.evaluate import Meter
from rnascl_cli.attacks.protocol import PIXEL, normalised_attack_space
from rnascl_cli.attacks.verdicts import allowed
from rnascl_cli.core.units import Epsilon
from rnascl_cli.models.normalise import Normalise
from tests.attacks import tiny

pytestmark = pytest.mark.unit
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
EPS = 8 / 255


def constants() -> tuple[Tensor, Tensor]:
    layer = Normalise(MEAN, STD)
    return layer.mean, layer.std


def perturbed(name: str, *, clamp: bool, x_BCHW: Tensor) -> Tensor:
    """Attack a model whose loss rises with every channel, and return the perturbed images as pixels."""
    space = normalised_attack_space(*constants(), clamp_to_unit=clamp)
    data = tiny.Images((x_BCHW * 255).round().to(torch.uint8), torch.zeros(len(x_BCHW)).long(), torch.arange(2))

    def bright(x: Tensor) -> Tensor:
        total_B = x.flatten(1).sum(dim=1)
        return torch.stack([-total_B, total_B], dim=1)

    evaluator = tiny.evaluator(bright, data, attack_space=space, num_classes=2)
    (attack,) = tiny.attacks(name)
    context = evaluator.attack_context(Epsilon("8/255", EPS), Meter())
    z_BCHW = attack.parts(context, print)[0].perturb(space.from_pixels(x_BCHW), data.labels_N, [0, 1])
    assert allowed(z_BCHW, space.from_pixels(x_BCHW), attack_space=space, norm="Linf", eps=EPS).all()
    return space.pixels(z_BCHW)


@pytest.mark.parametrize("name", ["fgsm", "pgd20"])
def test_eps_on_normalised_inputs_is_eps_times_std_on_pixels(name: str) -> None:
    x_BCHW = torch.full((2, 3, 4, 4), 0.6)
    moved_C = (perturbed(name, clamp=False, x_BCHW=x_BCHW) - x_BCHW).amax(dim=(0, 2, 3))
    assert torch.allclose(moved_C, EPS * torch.tensor(STD), atol=1e-6)


def test_the_valid_range_is_that_of_pixels() -> None:
    x_BCHW = torch.full((2, 3, 4, 4), 1.0)
    assert torch.allclose(perturbed("fgsm", clamp=False, x_BCHW=x_BCHW), x_BCHW, atol=1e-6)


def test_black_pixels_can_be_perturbed() -> None:
    x_BCHW = torch.zeros((2, 3, 4, 4))
    assert perturbed("fgsm", clamp=False, x_BCHW=x_BCHW).amin() > 0.003


def test_the_authors_clamp_cuts_off_what_is_below_the_mean() -> None:
    x_BCHW = torch.full((2, 3, 4, 4), 0.1)
    found = perturbed("fgsm", clamp=True, x_BCHW=x_BCHW)
    # z is below 0 in every channel and comes back as 0, which is the mean
    assert torch.allclose(found[0, :, 0, 0], torch.tensor(MEAN), atol=1e-6)


def test_to_pixels_inverts_from_pixels() -> None:
    x_BCHW = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    space = normalised_attack_space(*constants(), clamp_to_unit=False)
    assert torch.allclose(space.to_pixels(space.from_pixels(x_BCHW)), x_BCHW, atol=1e-6)
    assert PIXEL.from_pixels(x_BCHW) is x_BCHW
    assert torch.allclose(space.from_pixels(x_BCHW), Normalise(MEAN, STD)(x_BCHW))


def test_without_rescaling_the_protocols_coincide(robust: nn.Module) -> None:
    data = tiny.images(40, seed=3, noise=0.18)
    layer = Normalise()
    same = normalised_attack_space(layer.mean, layer.std, clamp_to_unit=False)
    first, second = (
        tiny.evaluator(robust, data, attack_space=space).run(
            tiny.attacks("pgd5")[0], Epsilon("8/255", EPS), torch.zeros(40).bool()
        )
        for space in (PIXEL, same)
    )
    assert torch.equal(first.broken_N, second.broken_N)
