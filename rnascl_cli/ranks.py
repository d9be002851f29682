"""Which of several processes this is, and what they do together.

``torchrun`` starts the same command several times and tells each its rank. Alone, every function here does
nothing and imports nothing. Together, each rank works on its share of every batch, sums go over all ranks
(NCCL between GPUs, gloo between CPUs), and the first rank alone writes and speaks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from rnascl_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up; torchrun ends the job sooner when one has died."""


_joined = False
"""Whether this process has joined others: some clusters set torchrun's variables for every job."""


def rank() -> int:
    """Return this process's number, from 0."""
    return _number("RANK", 0) if _joined else 0


def local_rank() -> int:
    """Return this process's number on its machine: which of the machine's GPUs it takes."""
    return _number("LOCAL_RANK", 0)


def size() -> int:
    """Return how many processes there are."""
    return max(_number("WORLD_SIZE", 1), 1) if _joined else 1


def is_first() -> bool:
    """Return whether this is the process that writes and speaks."""
    return rank() == 0


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable)
    if not text:
        return otherwise
    if not text.isdecimal():
        raise UserError(f"{variable}={text}: not a number; start several processes with torchrun")
    return int(text)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other ranks for the while; alone, do nothing."""
    global _joined
    if _number("WORLD_SIZE", 1) <= 1:
        yield
        return
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    distributed.init_process_group(backend, timeout=TIMEOUT)
    _joined = True
    try:
        yield
    finally:
        _joined = False
        distributed.destroy_process_group()


def wait() -> None:
    """Go on when every rank has come here."""
    if size() > 1:
        from torch import distributed

        distributed.barrier()


def add_over_ranks(x: Tensor) -> Tensor:
    """Add a tensor up over all ranks, in place, without gradient; return it."""
    if size() > 1:
        from torch import distributed

        distributed.all_reduce(x)
    return x


def from_all(value: T) -> list[T]:
    """Return every rank's value, in the order of ranks."""
    if size() == 1:
        return [value]
    from torch import distributed

    values = [value] * size()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Return the first rank's value."""
    return from_all(value)[0]
