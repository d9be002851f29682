"""One RNAS-CL search step in plain PyTorch, as a baseline for :mod:`rnascl_cli.stages.search.step`.

It is written as public codes of differentiable search and of attention transfer are: a block runs once for every
filter choice, and the masked outputs are added up with their Gumbel weights; forward hooks keep the full output of
every convolution of student and teacher; a Python loop over all pairs of layers brings both maps to the common side
and takes their distance; the teacher looks at each part of the batch afresh; everything is float32 in PyTorch's
default memory order, with PyTorch's default optimiser; images are decoded, cropped and flipped by PIL one by one.
Nothing is slowed down on purpose: cost tables are matrices, the teacher runs without gradient, maps are summed
over channels once a layer and not once a pair.

Under the same weights, noise and images its loss is that of the search step (tests/benchmarks/test_equality.py).
Only the teacher network and the tables of block costs are shared with the package.

Shape suffixes: B images, K classes, C channels, H height, W width, P pixels of the common map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from rnascl_cli.spaces import SearchSpace, block_costs, network_cost

STEM = 16
EXPANSION = 6
Noise = Callable[[], tuple[list[Tensor], Tensor]]
"""Gives the noise of one sample: a vector a block, and a matrix for the tutors."""


class PlainConvBN(nn.Module):
    """Convolution and BatchNorm."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalised convolution."""
        normalised: Tensor = self.bn(self.conv(x_BCHW))
        return normalised


class PlainBlock(nn.Module):
    """An inverted residual at its widest, whose hidden channels are masked."""

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        hidden = EXPANSION * c_in
        self.expand = PlainConvBN(c_in, hidden)
        self.depthwise = PlainConvBN(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = PlainConvBN(hidden, c_out)

    def forward(self, x_BCHW: Tensor, hidden_mask_C: Tensor) -> Tensor:
        """Run the block without its skip connection."""
        hidden = F.hardswish(self.expand(x_BCHW))
        hidden = F.hardswish(self.depthwise(hidden))
        out: Tensor = self.project(hidden * hidden_mask_C[None, :, None, None])
        return out


class PlainSupernet(nn.Module):
    """The supernet with parameters named as in :class:`rnascl_cli.models.supernet.Supernet`."""

    def __init__(self, space: SearchSpace, *, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        assert space.head_channels is None, "the reference has no head"
        self.choices = space.block_choices
        self.strides = space.block_strides
        self.stem = PlainConvBN(3, STEM, kernel=3, stride=2)
        inputs = [STEM, *(max(choices) for choices in self.choices[:-1])]
        self.blocks = nn.ModuleList(
            PlainBlock(c_in, max(choices), stride=stride)
            for c_in, choices, stride in zip(inputs, self.choices, self.strides, strict=True)
        )
        self.classifier = nn.Linear(max(self.choices[-1]), num_classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.layer_masks: dict[str, Tensor] = {}

    def forward(self, x_BCHW: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return the logits of the mixture; ``layer_masks`` then has the channel mask of every convolution."""
        self.layer_masks = {}
        x = F.hardswish(self.stem((x_BCHW - self.get_buffer("mean")) / self.get_buffer("std")))
        before: tuple[int, ...] = (STEM,)
        g_before, mask_before = torch.ones(1), torch.ones(STEM)
        for index, (block, choices, g) in enumerate(zip(self.blocks, self.choices, weights, strict=True)):
            hidden_mask = mask_before.repeat_interleave(EXPANSION)
            out, mask = torch.zeros(()), torch.zeros(())
            for choice, weight in zip(choices, g, strict=True):
                kept = (torch.arange(max(choices)) < choice).float()
                out = out + weight * (block(x, hidden_mask) * kept[None, :, None, None])
                mask = mask + weight * kept
            if self.strides[index] == 1 and x.shape == out.shape:
                same = torch.tensor([[float(i == j) for j in choices] for i in before])
                out = out + (g_before @ same @ g) * x
            for layer, layer_mask in (("expand", hidden_mask), ("depthwise", hidden_mask), ("project", mask)):
                self.layer_masks[f"blocks.{index}.{layer}.conv"] = layer_mask
            x, before, g_before, mask_before = out, choices, g, mask
        logits_BK: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits_BK


def keep_features(model: nn.Module) -> dict[str, Tensor]:
    """Hook every convolution; return the dictionary in which its last output is kept."""
    features: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        features[name] = output

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(partial(keep, name))
    return features


def attention_map(feature_BCHW: Tensor) -> Tensor:
    """Return the sum of squares over channels, (B, H, W)."""
    return feature_BCHW.pow(2).sum(1)


def resized(map_BHW: Tensor, side: int) -> Tensor:
    """Return the map at the common side: area-averaged from above, bilinear from below."""
    if map_BHW.shape[-1] == side:
        return map_BHW
    if map_BHW.shape[-1] > side:
        return F.adaptive_avg_pool2d(map_BHW.unsqueeze(1), side).squeeze(1)
    return F.interpolate(map_BHW.unsqueeze(1), size=(side, side), mode="bilinear", align_corners=False).squeeze(1)


def unit(map_BHW: Tensor) -> Tensor:
    """Return the flattened map over its norm, (B, P)."""
    return F.normalize(map_BHW.flatten(1), dim=1)


class PlainSearch:
    """The search step.

    Args:
        space: The search space, one without a head.
        teacher: The teacher network, in eval mode.
        side: Of the common map.
        num_classes: Number of logits.
        mean: Channel means of the pixels.
        std: Channel standard deviations of the pixels.
        hoisted: Resize and normalise the maps once, before the loop over pairs.
        weight_share: Share of a batch for the weights.
        temperature: Of the Gumbel-Softmax.
    """

    def __init__(
        self,
        space: SearchSpace,
        teacher: nn.Module,
        *,
        side: int,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        hoisted: bool = False,
        weight_share: float = 0.8,
        temperature: float = 5.0,
    ) -> None:
        self.space, self.teacher, self.side, self.hoisted = space, teacher, side, hoisted
        self.weight_share, self.temperature = weight_share, temperature
        self.supernet = PlainSupernet(space, num_classes=num_classes, mean=mean, std=std)
        self.student_features = keep_features(self.supernet)
        self.teacher_features = keep_features(teacher)
        layers = [
            sum(isinstance(module, nn.Conv2d) for module in model.modules()) for model in (self.supernet, teacher)
        ]
        self.width_logits = nn.ParameterList(nn.Parameter(torch.zeros(len(choices))) for choices in space.block_choices)
        self.tutor_logits = nn.Parameter(torch.zeros(layers[0], layers[1]))
        self.tables = [
            torch.tensor([[float(cost.macs) for cost in row] for row in table], dtype=torch.float64)
            for table in block_costs(space, space.input_size)
        ]
        self.largest = network_cost(space, space.largest, num_classes=num_classes).macs
        blocks = float(sum(table[0, 0] for table in self.tables))  # choices are widest first
        widest = max(space.block_choices[-1])
        self.fixed = self.largest - blocks - widest * num_classes
        self.classifier_macs = torch.tensor(space.block_choices[-1], dtype=torch.float64) * num_classes
        arch = [*self.width_logits, self.tutor_logits]
        self.weight_optimiser = torch.optim.SGD(self.supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        self.arch_optimiser = torch.optim.SGD(arch, lr=0.1, momentum=0.9)
        self.noise: Noise = self._draw_noise

    def step(self, x_BCHW: Tensor, y_B: Tensor) -> tuple[float, float]:
        """Step the weights on one part of the batch and the choices on the other; return both losses."""
        cut = round(len(y_B) * self.weight_share)
        losses = []
        for optimiser, part in ((self.weight_optimiser, slice(None, cut)), (self.arch_optimiser, slice(cut, None))):
            loss = self.objective(x_BCHW[part], y_B[part])
            self.weight_optimiser.zero_grad()
            self.arch_optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        return losses[0], losses[1]

    def objective(self, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        """Return eq. (2): (CE + KL + attention) * n_f."""
        with torch.no_grad():
            teacher_BK = self.teacher(x_BCHW)
        width_noise, tutor_noise = self.noise()
        g = [
            F.softmax((logits + noise) / self.temperature, dim=0)
            for logits, noise in zip(self.width_logits, width_noise, strict=True)
        ]
        g_ST = F.softmax((self.tutor_logits + tutor_noise) / self.temperature, dim=1)
        logits_BK = self.supernet(x_BCHW, g)
        log_p, log_q = F.log_softmax(logits_BK, dim=1), F.log_softmax(teacher_BK, dim=1)
        ce = F.nll_loss(log_p, y_B)
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return (ce + kl + self.attention(g_ST)) * self.relative_cost(g)

    def attention(self, g_ST: Tensor) -> Tensor:
        """Return eq. (1), pair by pair."""
        masks = self.supernet.layer_masks
        student = [
            attention_map(feature if name not in masks else feature * masks[name][None, :, None, None])
            for name, feature in self.student_features.items()
        ]
        teacher = [attention_map(feature) for feature in self.teacher_features.values()]
        if self.hoisted:
            student, teacher = ([unit(resized(item, self.side)) for item in maps] for maps in (student, teacher))
        total = torch.zeros(())
        for s, student_map in enumerate(student):
            for t, teacher_map in enumerate(teacher):
                if self.hoisted:
                    difference_BP = student_map - teacher_map
                else:
                    difference_BP = unit(resized(student_map, self.side)) - unit(resized(teacher_map, self.side))
                total = total + g_ST[s, t] * difference_BP.norm(dim=1).mean()
        return total / g_ST.numel()

    def relative_cost(self, g: Sequence[Tensor]) -> Tensor:
        """Return n_f: expected MACs over those of the widest network."""
        macs = self.fixed + self.classifier_macs @ g[-1].double()
        before = torch.ones(1, dtype=torch.float64)
        for table, weights in zip(self.tables, g, strict=True):
            macs = macs + before @ table @ weights.double()
            before = weights.double()
        return (macs / self.largest).float()

    def _draw_noise(self) -> tuple[list[Tensor], Tensor]:
        def gumbel(shape: torch.Size) -> Tensor:
            return -torch.log(-torch.log(torch.rand(shape).clamp(min=1e-20, max=1 - 1e-7)))

        return [gumbel(logits.shape) for logits in self.width_logits], gumbel(self.tutor_logits.shape)


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images held as PIL images, augmented one at a time as torchvision's CIFAR-10 examples do."""

    def __init__(self, images_NCHW: Tensor, labels_N: Tensor) -> None:
        self.images = [to_pil_image(image) for image in images_NCHW]
        self.labels = labels_N.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def pil_loader(images_NCHW: Tensor, labels_N: Tensor, *, batch_size: int) -> DataLoader[tuple[Tensor, int]]:
    """Return a shuffling loader of full batches."""
    return DataLoader(PilImages(images_NCHW, labels_N), batch_size=batch_size, shuffle=True, drop_last=True)
