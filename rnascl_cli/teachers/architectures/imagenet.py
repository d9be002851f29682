"""torchvision's ImageNet networks behind a normalisation layer.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rnascl_cli.models.normalise import Normalise

TorchvisionName = Literal["resnet18", "resnet50", "wide_resnet50_2"]


class Normalised(nn.Module):
    """A classifier behind a normalisation layer; its tensors keep their public names under ``network``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images in [0, 1] to logits (B, K)."""
        logits_BK: Tensor = self.network(self.normalise(x_BCHW))
        return logits_BK


def torchvision_resnet(name: TorchvisionName, *, num_classes: int) -> Normalised:
    """Build one of torchvision's ResNets with fresh weights."""
    from torchvision.models import resnet  # imported here because torchvision takes a second to load

    network: nn.Module = getattr(resnet, name)(weights=None, num_classes=num_classes)
    for module in network.modules():
        if isinstance(module, resnet.BasicBlock | resnet.Bottleneck):
            module.is_block = True
    return Normalised(network)
