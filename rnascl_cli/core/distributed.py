"""Which of several processes this is, and what they do together.

``torchrun`` starts the same command several times and tells each its rank. Alone, every function here does
nothing and imports nothing. Together, each rank works on its share of every batch, sums go over all ranks
(NCCL between GPUs, gloo between CPUs), and the first rank alone writes and speaks.

What leads a program one way or the other must be the same on every rank, or they wait for one another for ever: it
follows from the command and the seed, or comes from the first rank (:func:`from_rank_zero`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rnascl_cli.core.errors import RunError, UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up: one may be downloading, and torchrun sees a dead one."""

_store: Any = None
"""The key-value store of the processes that this one has joined; None alone.

Some clusters set torchrun's variables for every job: they count only once a process has joined others.
"""
_alike = False


class LostRankError(RunError):
    """Another process of the job has ended, or cannot be reached."""


def is_distributed_launch() -> bool:
    """Return whether torchrun, or who sets its variables, has started this process as one of several."""
    return _number("WORLD_SIZE", 1) > 1 and all(os.environ.get(name) for name in ("RANK", "MASTER_ADDR"))


def is_launch_rank_zero() -> bool:
    """Return whether this process is the one that works where only one can."""
    return not is_distributed_launch() or _number("RANK", 0) == 0


def under_torchrun() -> bool:
    """Return whether torchrun has started this process, if only as the one of a job of one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def non_distributed_environment() -> dict[str, str]:
    """Return the environment for a child process that is not a rank of this job."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value for name, value in os.environ.items() if name not in names and not name.startswith("TORCHELASTIC_")
    }


def rank() -> int:
    """Return the rank of this process."""
    return _number("RANK", 0) if _store is not None else 0


def size() -> int:
    """Return the number of processes."""
    return _number("WORLD_SIZE", 1) if _store is not None else 1


def is_rank_zero() -> bool:
    """Return whether this process writes files and messages."""
    return rank() == 0


def local_rank() -> int:
    """Return the rank on this machine, which is the index of its GPU."""
    return _number("LOCAL_RANK", 0) if _store is not None else 0


def local_size() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if _store is not None else 1


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable)
    if not text:
        return otherwise
    if not text.isdecimal():
        raise UserError(f"{variable}={text}: not a number; start several processes with torchrun")
    return int(text)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Initialize the process group while the context is open; does nothing in a single process.

    After an error the group stays initialized, so that one rank can report it (:func:`claim_error_report`).

    Raises:
        RunError: The ranks cannot connect.
    """
    global _store
    if not is_distributed_launch():
        yield
        return
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = PrefixStore("rnascl", store)
        distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of this job cannot connect ({error}); see docs/scaling.md") from None
    _store = store
    yield
    _store = None
    distributed.destroy_process_group()


def claim_error_report() -> bool:
    """Return whether this is the first rank to report an error of the job.

    An error on one rank makes the others fail too, and only one should report it.
    """
    if _store is None:
        return True
    try:
        reports: int = _store.add("reports", 1)
    except RuntimeError:  # the store has ended: better reported twice than not at all
        return True
    return reports == 1


def barrier() -> None:
    """Wait for all ranks."""
    if size() > 1:
        import torch

        all_reduce_sum(torch.zeros(1))


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Let the first rank of each machine run the body before the others, which then find its downloads and caches.

    If it fails, the others do not wait for it.
    """
    ahead = local_rank() == 0
    if not ahead:
        barrier()
    try:
        yield
    except Exception:
        if ahead:
            barrier()
        raise
    if ahead:
        barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place, without gradient, and return it.

    Raises:
        LostRankError: Another rank has ended.
    """
    if size() > 1:
        from torch import distributed

        with _noticing_losses():
            distributed.all_reduce(x)
    return x


def all_reduce_max_async(numbers: Sequence[int]) -> Callable[[], tuple[int, ...]]:
    """Start an element-wise all-reduce of the maximum and return without waiting for it.

    Returns:
        A function that waits for the result and returns it.
    """
    import torch
    from torch import distributed

    found = torch.tensor(numbers)
    with _noticing_losses():
        work = distributed.all_reduce(found, op=distributed.ReduceOp.MAX, async_op=True)

    def result() -> tuple[int, ...]:
        with _noticing_losses():
            work.wait()
        return tuple(found.tolist())

    return result


def all_gather_object(value: T) -> list[T]:
    """Return every rank's value, in the order of ranks.

    Raises:
        LostRankError: Another rank has ended.
    """
    if size() == 1:
        return [value]
    from torch import distributed

    values = [value] * size()
    with _noticing_losses():
        distributed.all_gather_object(values, value)
    return values


def from_rank_zero(find: Callable[[], T]) -> T:
    """Return what ``find`` returns on the first rank, where alone it is called.

    Raises:
        LostRankError: Another rank has ended.
    """
    if size() == 1:
        return find()
    from torch import distributed

    values: list[Any] = [find() if is_rank_zero() else None]
    with _noticing_losses():
        distributed.broadcast_object_list(values, src=0)
    found: T = values[0]
    return found


def round_robin(items: Sequence[T], work: Callable[[T], R]) -> Iterator[list[tuple[T, R]]]:
    """Do something about each item, as many at a time as there are ranks, and tell every rank what came of it.

    Args:
        items: The same on every rank.
        work: Done by one rank for each item; what it returns is sent to the others.

    Yields:
        Each turn's items and what came of them, in order.

    Raises:
        LostRankError: Another rank has ended.
    """
    for start in range(0, len(items), size()):
        turn = items[start : start + size()]
        own = work(turn[rank()]) if rank() < len(turn) else None
        results: list[Any] = all_gather_object(own)
        yield list(zip(turn, results, strict=False))


@contextlib.contextmanager
def replicated_batch(same: bool) -> Iterator[None]:
    """For the while, take note of whether every rank works on the same images, so that none has the others' to see."""
    global _alike
    before, _alike = _alike, same
    try:
        yield
    finally:
        _alike = before


def share_batches() -> bool:
    """Return whether the images of other ranks belong to the batch at hand."""
    return size() > 1 and not _alike


@contextlib.contextmanager
def _noticing_losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"another process of this job has ended, or cannot be reached ({error}); the last checkpoint, if there is "
            "one, is kept; resume with --resume"
        ) from error
