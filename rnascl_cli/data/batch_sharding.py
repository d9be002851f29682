"""Shard batches over the ranks.

Rank r of n takes every n-th image from r, so that each part of a split batch has images on every rank. Random numbers
are drawn for the whole batch on every rank: augmentation and noise of an image do not depend on the number of ranks.

Shape suffix: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rnascl_cli.core import distributed

Parts = Callable[[int], Sequence[int]]
"""Maps the size of a batch to the sizes of its parts; each part has an optimizer step of its own."""


def undivided(images: int) -> Sequence[int]:
    """Return the size of an undivided batch."""
    return (images,)


@dataclass(frozen=True)
class BatchShard:
    """Every ``step``-th image of a batch, starting at ``first``.

    Attributes:
        whole: Global batch size.
        first: Index of the first image, below ``step``.
        step: Number of ranks that the batch is sharded over; 1 if every rank has the whole batch.
    """

    whole: int
    first: int = 0
    step: int = 1

    @classmethod
    def of_batch(cls, images: int, parts: Parts = undivided) -> BatchShard:
        """Return this rank's shard of a batch; the whole batch if a part has fewer images than ranks."""
        if min(parts(images)) < distributed.size():
            return cls(images)
        return cls(images, distributed.rank(), distributed.size())

    @classmethod
    def alone(cls, images: int) -> BatchShard:
        """Return the whole batch, in a single process."""
        assert distributed.size() == 1, "with several ranks, pass the shard"
        return cls(images)

    def __len__(self) -> int:
        return self.before(self.whole)

    @property
    def replicated(self) -> bool:
        """Whether every rank has the whole batch."""
        return self.step == 1

    @property
    def counted(self) -> int:
        """How many images count as this rank's where all ranks' are added up: none twice."""
        return len(self) if not self.replicated or distributed.is_rank_zero() else 0

    def before(self, cut: int) -> int:
        """Return how many of the batch's first ``cut`` images are in this share."""
        return len(range(self.first, cut, self.step))

    def split(self, cut: int) -> tuple[BatchShard, BatchShard]:
        """Return the same rank's shares of the batch's first ``cut`` images and of the others."""
        behind = BatchShard(self.whole - cut, (self.first - cut) % self.step, self.step)
        return BatchShard(cut, self.first, self.step), behind

    def reweight(self, means: dict[str, Tensor], part: BatchShard) -> dict[str, Tensor]:
        """Turn means over a part's share into what, weighed by the whole share's images, adds up to the part's mean.

        The rank that has most images of the batch need not have most of the part.
        """
        factor = (len(part) * self.whole) / (part.whole * len(self))
        return means if factor == 1 else {name: value * factor for name, value in means.items()}

    def of(self, values_B: Tensor) -> Tensor:
        """Return the share of what is there for each image of the batch."""
        return values_B[self.first :: self.step]

    def drawn(self, like_B: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Draw for the whole batch, and return this share of it.

        Args:
            like_B: Of the share.
            draw: Returns a random tensor with the shape of the one that it is given.
        """
        return self.of(draw(like_B[:1].expand(self.whole, *like_B.shape[1:])))
