"""Random streams: a seed and a name give a generator, so that no stage disturbs another's randomness.

Every epoch draws from its own stream. A resumed run therefore needs no saved generator state, and gives what
the uninterrupted run would have given.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """Return a CPU generator for a named stream, e.g. ``generator(seed, "search", "noise", epoch)``."""
    import torch

    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
