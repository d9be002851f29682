"""CRD: by hand in numpy over several batches, beside torchdistill's, and which negatives are drawn.

Shape suffixes: B images, N images of a set, K negatives, J an image and its negatives, E numbers of an embedding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.distill.baselines.crd import ContrastiveLoss, draw_negatives, most_negatives
from tests.distill.beside import arrays, io, slopes

pytestmark = pytest.mark.unit

IMAGES, NEGATIVES = 16, 5  # of the set and of an image; torchdistill's sampler wants a power of two


def contrastive() -> ContrastiveLoss:
    return ContrastiveLoss(4, 7, images=IMAGES, dim=3, temperature=0.5, momentum=0.5)


def one_batch(shift: int) -> tuple[Tensor, Tensor]:
    """Which six images, and for each the five behind it."""
    rows_B = (torch.arange(6) + shift) % IMAGES
    return rows_B, (rows_B[:, None] + 1 + torch.arange(NEGATIVES)[None, :]) % IMAGES


class Remembered:
    """CRD by hand: the memories of student and teacher, and the constants of the first batch."""

    def __init__(self, module: ContrastiveLoss) -> None:
        self.memories = arrays(module.memory_of_student_ND, module.memory_of_teacher_ND)
        self.heads = [[*arrays(head.weight, head.bias)] for head in (module.student_head, module.teacher_head)]
        self.z: list[float] = []

    def loss(self, embeddings: tuple[Tensor, Tensor], rows: list[int], negatives: list[list[int]]) -> float:
        codes = []
        for embedding, (weight, bias) in zip(arrays(*embeddings), self.heads, strict=True):
            linear = embedding @ weight.T + bias
            codes.append(linear / np.linalg.norm(linear, axis=1, keepdims=True))
        total = 0.0
        for who, memory in ((0, self.memories[1]), (1, self.memories[0])):
            asked = [[row, *others] for row, others in zip(rows, negatives, strict=True)]
            scores = [
                [math.exp(float(code @ memory[index]) / 0.5) for index in found]
                for code, found in zip(codes[who], asked, strict=True)
            ]
            if len(self.z) <= who:
                self.z.append(float(np.mean(scores)) * IMAGES)
            for line in scores:
                ratios = [score / self.z[who] for score in line]
                total -= math.log(ratios[0] / (ratios[0] + NEGATIVES / IMAGES + 1e-7))
                total -= sum(math.log(NEGATIVES / IMAGES / (r + NEGATIVES / IMAGES + 1e-7)) for r in ratios[1:])
        for memory, code in zip(self.memories, codes, strict=True):
            for row, own in zip(rows, code, strict=True):
                mixed = 0.5 * memory[row] + 0.5 * own
                memory[row] = mixed / np.linalg.norm(mixed)
        return total / len(rows)


def test_contrastive_by_hand_over_three_batches(embeddings: tuple[Tensor, Tensor]) -> None:
    module = contrastive()
    by_hand = Remembered(module)
    for shift in (0, 4, 1):
        rows_B, negatives_BK = one_batch(shift)
        golden = by_hand.loss(embeddings, rows_B.tolist(), negatives_BK.tolist())
        ours = module(*embeddings, rows_B=rows_B, negatives_BK=negatives_BK)
        assert ours.item() == pytest.approx(golden, rel=1e-5)
    assert [module.student_z.item(), module.teacher_z.item()] == pytest.approx(by_hand.z, rel=1e-5)
    memories = (module.memory_of_student_ND, module.memory_of_teacher_ND)
    for memory, golden_ND in zip(memories, by_hand.memories, strict=True):
        np.testing.assert_allclose(memory.numpy(), golden_ND, rtol=1e-5, atol=1e-6)


def test_contrastive_as_torchdistill(theirs: Any, embeddings: tuple[Tensor, Tensor]) -> None:
    module = contrastive()
    # Their "number of outputs" is that of images.
    copy = theirs.CRDLoss("s", "rows", "t", 3, IMAGES, NEGATIVES, IMAGES, temperature=0.5, momentum=0.5)
    copy.memory_v1.copy_(module.memory_of_student_ND)
    copy.memory_v2.copy_(module.memory_of_teacher_ND)
    heads = [*module.student_head.parameters(), *module.teacher_head.parameters()]
    for shift in (0, 4, 1):
        rows_B, negatives_BK = one_batch(shift)
        codes = [
            nn.functional.normalize(head(embedding), dim=1)
            for head, embedding in zip((module.student_head, module.teacher_head), embeddings, strict=True)
        ]
        asked = {"pos_idx": rows_B, "contrast_idx": torch.cat([rows_B[:, None], negatives_BK], dim=1)}
        expected = copy(io(s=codes[0], rows=asked), io(t=codes[1])).squeeze()
        ours = module(*embeddings, rows_B=rows_B, negatives_BK=negatives_BK)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(slopes(ours, *heads), slopes(expected, *heads), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.memory_of_student_ND, copy.memory_v1)
    torch.testing.assert_close(module.memory_of_teacher_ND, copy.memory_v2)


def test_negatives_are_different_images_of_other_classes(generator: torch.Generator) -> None:
    labels_N = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    assert most_negatives(labels_N) == 5
    y_B = torch.tensor([0, 1, 2, 2])
    counts = torch.zeros(3, 10)
    for _ in range(600):
        drawn_BK = draw_negatives(y_B, labels_N, count=3, generator=generator)
        assert drawn_BK.shape == (4, 3)
        assert all(len(set(row)) == 3 for row in drawn_BK.tolist())
        assert not (labels_N[drawn_BK] == y_B[:, None]).any()
        for label, row in zip(y_B.tolist(), drawn_BK.tolist(), strict=True):
            counts[label, row] += 1
    for label, others, trials in ((0, 7, 600), (1, 8, 600), (2, 5, 1200)):
        expected = trials * 3 / others
        found = counts[label][labels_N != label]
        assert (found - expected).abs().max() < 5 * math.sqrt(expected)  # five standard deviations or more


def test_all_other_images_where_there_are_no_more(generator: torch.Generator) -> None:
    labels_N = torch.arange(8) % 2
    drawn_BK = draw_negatives(torch.tensor([0, 1]), labels_N, count=most_negatives(labels_N), generator=generator)
    assert [sorted(row) for row in drawn_BK.tolist()] == [[1, 3, 5, 7], [0, 2, 4, 6]]


def test_the_same_stream_draws_the_same_negatives() -> None:
    labels_N = torch.arange(100) % 10
    one, two, other = (
        draw_negatives(labels_N[:5], labels_N, count=20, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
