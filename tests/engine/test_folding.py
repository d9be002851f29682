"""BatchNorm folded into the convolution before it: the same function, and only where it is one.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.models.batchnorm_folding import folded
from rnascl_cli.models.conv import Conv2d
from rnascl_cli.models.student import Student
from rnascl_cli.spaces import space_named

pytestmark = pytest.mark.unit


class Active(nn.BatchNorm2d):
    """A norm with an activation inside."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(input))


def settled(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and affine parameters of its own."""
    drawn = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            for tensor in (norm.running_mean, norm.bias.data):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=drawn))
            for tensor in (norm.running_var, norm.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=drawn))
    return model.eval().requires_grad_(False)


@pytest.fixture
def x_BCHW() -> Tensor:  # noqa: N802
    return torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def stack(*between: nn.Module) -> nn.Module:
    return settled(nn.Sequential(nn.Conv2d(3, 6, 3), *between, nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 5)))


def test_a_student_keeps_its_function_and_its_gradient_and_stays_as_it_was() -> None:
    space = space_named("S3")
    student = settled(Student(space, space.smallest, num_classes=10, mean=(0.4,) * 3, std=(0.2,) * 3))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    x_BCHW = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    twin = folded(student, x_BCHW)
    assert twin is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    gradients, logits = [], []
    for model in (student, twin):
        z_BCHW = x_BCHW.clone().requires_grad_(True)
        logits.append(model(z_BCHW))
        gradients.append(torch.autograd.grad(logits[-1].square().sum(), z_BCHW)[0])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_one_pair_by_hand() -> None:
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
    conv.weight.data.fill_(3.0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(2.0), norm.running_var.fill_(4.0), norm.weight.data.fill_(5.0), norm.bias.data.fill_(1.0)
    twin = folded(nn.Sequential(conv, norm).eval(), torch.ones((1, 1, 2, 2)))
    assert twin is not None
    fused = twin.get_submodule("0")
    # 5 (3 x - 2) / sqrt(4) + 1 = 7.5 x - 4
    assert isinstance(fused, nn.Conv2d)
    assert fused.weight.item() == pytest.approx(7.5)
    assert fused.bias is not None
    assert fused.bias.item() == pytest.approx(-4.0)


def test_a_norm_is_folded_only_into_what_it_follows(x_BCHW: Tensor) -> None:
    assert folded(stack(), x_BCHW) is not None
    assert folded(stack(nn.ReLU()), x_BCHW) is None  # not the convolution's own output
    assert folded(settled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten())), x_BCHW) is None


def test_what_would_change_the_function_is_left_alone(x_BCHW: Tensor) -> None:
    class Twice(nn.Module):
        """The convolution's output is used beside the norm, too."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            total: Tensor = (self.norm(made) + made).flatten(1)
            return total

    class Again(nn.Module):
        """One convolution, two norms."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.other = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = (self.one(self.conv(x)) + self.other(self.conv(2 * x))).flatten(1)
            return total

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x)
            return logits + torch.randn_like(logits)

    assert folded(settled(Twice()), x_BCHW) is None
    assert folded(settled(Again()), x_BCHW) is None
    assert folded(settled(Noisy()), x_BCHW) is None
    assert folded(settled(nn.Sequential(nn.Conv2d(3, 6, 3), Active(6))), x_BCHW) is None
    no_statistics = nn.BatchNorm2d(6, track_running_stats=False)
    assert folded(settled(nn.Sequential(nn.Conv2d(3, 6, 3), no_statistics)), x_BCHW) is None
    training = settled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    training[1].train()  # type: ignore[index]
    assert folded(training, x_BCHW) is None


def test_a_norm_that_is_more_than_one_leaves_the_others_to_be_folded(x_BCHW: Tensor) -> None:
    class Derived(nn.BatchNorm2d):
        """Only another name."""

    inner = [nn.Conv2d(3, 6, 3), Active(6), nn.Conv2d(6, 6, 1), Derived(6)]
    twin = folded(settled(nn.Sequential(*inner)), x_BCHW)
    assert twin is not None
    assert [type(module) for module in twin.children()] == [nn.Conv2d, Active, nn.Conv2d, nn.Identity]


@pytest.mark.parametrize("kind", ["parametrised", "hooked"])
def test_a_convolution_that_makes_its_weight_at_each_pass_leaves_the_others_to_be_folded(
    kind: str, x_BCHW: Tensor
) -> None:
    made: nn.Module = nn.Conv2d(3, 6, 3)
    if kind == "parametrised":
        made = nn.utils.parametrizations.weight_norm(made)
    else:
        with pytest.warns(FutureWarning, match="weight_norm"):
            made = nn.utils.weight_norm(made)
    model = settled(nn.Sequential(made, nn.BatchNorm2d(6), nn.ReLU(), Conv2d(6, 4, 1), nn.BatchNorm2d(4)))
    twin = folded(model, x_BCHW)
    assert twin is not None
    assert [isinstance(module, nn.BatchNorm2d) for module in twin.children()] == [False, True, False, False, False]
    assert torch.allclose(twin(x_BCHW), model(x_BCHW), atol=1e-5)


def test_no_hook_is_left_behind(x_BCHW: Tensor) -> None:
    model = stack()
    folded(model, x_BCHW)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
