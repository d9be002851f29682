"""Which images of a batch each of several processes has.

The images of a batch are dealt out like cards, so that any cut through the batch, as between the two steps of a
search, leaves every rank its share on either side. Random numbers are drawn for the whole batch on every rank: an
image's view and noise do not depend on how many ranks there are.

Shape suffix: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rnascl_cli.core import distributed

Parts = Callable[[int], Sequence[int]]
"""How many images each part of a batch of so many has: what one step takes is one part."""


def undivided(images: int) -> Sequence[int]:
    """Return the one part of a batch that is taken whole."""
    return (images,)


@dataclass(frozen=True)
class BatchShard:
    """Every ``step``-th image of a batch, from number ``first`` on.

    Attributes:
        whole: Images of the batch, on all ranks.
        first: Below ``step``.
        step: How many ranks share the batch; 1 where each has all of it.
    """

    whole: int
    first: int = 0
    step: int = 1

    @classmethod
    def of_batch(cls, images: int, parts: Parts = undivided) -> BatchShard:
        """Return this rank's share of a batch; all of it where a part is too small to give every rank an image."""
        if min(parts(images)) < distributed.size():
            return cls(images)
        return cls(images, distributed.rank(), distributed.size())

    @classmethod
    def alone(cls, images: int) -> BatchShard:
        """Return the share of the only process."""
        assert distributed.size() == 1, "with several ranks it must be said what share of a batch these images are"
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
