"""CRD: is this the same image, seen by student and by teacher? (Tian, Krishnan and Isola 2020).

Shape suffixes: B images of a batch, N images of the training set, E numbers of an embedding, D numbers of a code,
K negatives of an image, J = K + 1 with the image itself first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-7


class ContrastiveLoss(nn.Module):
    """Tells an image's own code in the other network's memory from those of other images.

    Heads of one linear layer bring both embeddings to unit codes; they are trained with the student. The memories hold
    the codes of all training images, as moving averages. With r = exp(<code, other's code> / tau) / Z, the chance that
    it is the same image is h = r / (r + K / N); the loss is -log h(itself) less the sum of log(1 - h) over K negatives.

    Args:
        student: Numbers of the student's embedding.
        teacher: Numbers of the teacher's embedding.
        images: N.
        dim: D.
        temperature: tau.
        momentum: Share of a code in memory that stays when its image comes by.
    """

    memory_of_student_ND: Tensor
    memory_of_teacher_ND: Tensor
    student_z: Tensor
    teacher_z: Tensor

    def __init__(
        self,
        student: int,
        teacher: int,
        *,
        images: int,
        dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.student_head, self.teacher_head = nn.Linear(student, dim), nn.Linear(teacher, dim)
        self._temperature, self._momentum = temperature, momentum
        most = math.sqrt(3 / dim)  # uniform numbers up to this make codes of norm 1 on the average
        for name in ("memory_of_student_ND", "memory_of_teacher_ND"):
            self.register_buffer(name, torch.empty(images, dim).uniform_(-most, most))
        for name in ("student_z", "teacher_z"):  # of the first batch; 0: not yet known
            self.register_buffer(name, torch.zeros(()))

    def forward(self, student_BE: Tensor, teacher_BE: Tensor, *, rows_B: Tensor, negatives_BK: Tensor) -> Tensor:
        """Return the loss of a batch, and let the memories take its codes in.

        Args:
            student_BE: The student's embeddings.
            teacher_BE: The teacher's embeddings.
            rows_B: Which images of the set these are; each once.
            negatives_BK: Indices of the negative images of each image.
        """
        student_BD = F.normalize(self.student_head(student_BE), dim=1)
        teacher_BD = F.normalize(self.teacher_head(teacher_BE), dim=1)
        asked_BJ = torch.cat([rows_B[:, None], negatives_BK], dim=1)
        student_loss, self.student_z = self._told_apart(
            student_BD, self.memory_of_teacher_ND, asked_BJ, z=self.student_z
        )
        teacher_loss, self.teacher_z = self._told_apart(
            teacher_BD, self.memory_of_student_ND, asked_BJ, z=self.teacher_z
        )
        # Made anew and not written over, as the slopes of the loss are still to be taken with the old ones.
        self.memory_of_student_ND = self._remember(self.memory_of_student_ND, rows_B, student_BD)
        self.memory_of_teacher_ND = self._remember(self.memory_of_teacher_ND, rows_B, teacher_BD)
        return student_loss + teacher_loss

    def _told_apart(self, code_BD: Tensor, memory_ND: Tensor, asked_BJ: Tensor, *, z: Tensor) -> tuple[Tensor, Tensor]:
        # All N products and then a choice take less time and memory than K copied codes for each image.
        score_BJ = ((code_BD @ memory_ND.T).gather(1, asked_BJ) / self._temperature).exp()
        z = torch.where(z > 0, z, score_BJ.detach().mean() * len(memory_ND))
        ratio_BJ = score_BJ / z
        noise = (asked_BJ.shape[1] - 1) / len(memory_ND)  # K times the chance 1/N to draw an image
        positive_B = (ratio_BJ[:, 0] / (ratio_BJ[:, 0] + noise + TINY)).log()
        negative_BK = (noise / (ratio_BJ[:, 1:] + noise + TINY)).log()
        return -(positive_B + negative_BK.sum(dim=1)).mean(), z

    @torch.no_grad()
    def _remember(self, memory_ND: Tensor, rows_B: Tensor, code_BD: Tensor) -> Tensor:
        mixed_BD = self._momentum * memory_ND[rows_B] + (1 - self._momentum) * code_BD
        return memory_ND.index_copy(0, rows_B, F.normalize(mixed_BD, dim=1))


def most_negatives(labels_N: Tensor) -> int:
    """Return how many images of other classes every image of a set has at least."""
    return len(labels_N) - int(labels_N.bincount().max())


def draw_negatives(y_B: Tensor, labels_N: Tensor, *, count: int, generator: torch.Generator) -> Tensor:
    """Draw different images of other classes for each image, any of them equally likely.

    Args:
        y_B: Classes of the images.
        labels_N: Classes of the set's images, on the same device.
        count: K, at most :func:`most_negatives`.
        generator: Of that device.

    Returns:
        Indices into the set, (B, K).
    """
    lots_BN = torch.rand(len(y_B), len(labels_N), generator=generator, device=labels_N.device)
    lots_BN.masked_fill_(y_B[:, None] == labels_N[None, :], math.inf)
    return lots_BN.topk(count, dim=1, largest=False, sorted=False).indices
