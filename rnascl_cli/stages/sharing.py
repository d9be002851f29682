"""What several processes cannot do together, refused before anything is made."""

from __future__ import annotations

from rnascl_cli import ranks
from rnascl_cli.artifacts.documents import Rival
from rnascl_cli.errors import UserError
from rnascl_cli.recipes import AttentionSettings

RELATIONAL: tuple[Rival, ...] = ("sp", "rkd", "crd", "pkt")
"""The rival losses that compare images of a batch with one another, or remember all of them."""


def check_can_be_shared(
    batch: int,
    *,
    smallest_part: int | None = None,
    attention: AttentionSettings | None,
    rival: Rival | None = None,
) -> None:
    """Refuse a training that several ranks could not share; alone, everything is allowed.

    Args:
        batch: Images a step.
        smallest_part: Images in the smallest part of the batch that takes a step of its own; None for ``batch``.
        attention: How maps are compared; None where they are not.
        rival: The rival loss, if there is one.

    Raises:
        UserError: A rank would be left without an image, maps are normed over the batch, or a rival loss relates images
            that different ranks have.
    """
    count = ranks.size()
    part = batch if smallest_part is None else smallest_part
    if part < count:
        of_them = "" if part == batch else f", of which one step takes {part},"
        raise UserError(
            f"--batch-size: a batch of {batch} images{of_them} cannot be shared by {count} processes; use larger "
            "batches or fewer processes"
        )
    if count > 1 and attention is not None and attention.norm == "batch":
        raise UserError("recipe key 'attention.norm': 'batch' needs the whole batch in one process; use 'image'")
    if count > 1 and rival in RELATIONAL:
        raise UserError(f"--distill {rival}: relates the images of a whole batch; run it in one process")
