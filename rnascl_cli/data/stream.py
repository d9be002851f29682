"""Sets of images that stay in their files: worker processes decode each batch as it is wanted, a few ahead.

The order of the images and what is drawn for each are settled in the main process before a batch goes to a worker;
a worker draws nothing. So the batches depend on the seed alone, and not on how many workers there are.

Shape suffixes: N images of a set, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import atexit
import os
import signal
import warnings
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.data.augment import Augment, ResizedCrop
from rnascl_cli.data.decode import Shape, decode_now, decode_one, random_cut, stack
from rnascl_cli.data.files import ImageFiles
from rnascl_cli.data.images import Drawn, ImageSet, as_floats

MOST_WORKERS = 16
BATCHES_AHEAD = 2  # a worker


class Job(NamedTuple):
    """A batch to decode, in plain values that cross to another process cheaply.

    Attributes:
        paths: The files.
        shape: What the decoded images look like.
        crop: The random crop to cut out of the whole photographs; None for the evaluation's view.
        views: A row of :meth:`ResizedCrop.draw` an image; empty without a crop.
    """

    paths: list[str]
    shape: Shape
    crop: ResizedCrop | None
    views: list[list[float]]


class Decoded(NamedTuple):
    """What became of a job: pixels, uint8 ``(B, C, H, W)``, or what is wrong with one of the files."""

    pixels_BCHW: Tensor
    fault: str | None


class StreamedSet(ImageSet):
    """Images and labels, decoded batch by batch.

    Random resized crops are cut out of the whole photograph, as torchvision does it; any other augmentation works
    on the evaluation's view of the image, as it does for a set in memory.

    Args:
        files: The whole split.
        labels_N: Class numbers of the chosen images, int64.
        index_N: Their positions in the split, int64, ascending.
        feeder: Who decodes; sets of one run share it.
    """

    def __init__(self, files: ImageFiles, labels_N: Tensor, index_N: Tensor, *, feeder: Feeder) -> None:
        assert len(labels_N) == len(index_N)
        # The base class is frozen.
        for name, value in {"files": files, "feeder": feeder, "labels_N": labels_N, "index_N": index_N}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_positions_N", index_N.cpu())

    files: ImageFiles
    feeder: Feeder
    _positions_N: Tensor

    @property
    def images_NCHW(self) -> Tensor:  # noqa: N802
        """Not to be had: that would be every image at once, which is what such a set is there to avoid."""
        raise AssertionError("a streamed set's pixels are had by pixels(rows)")

    @property
    def side(self) -> int:
        """Height and width, pixels."""
        return self.files.shape.side

    def pixels(self, rows: Tensor | slice) -> Tensor:
        """Decode the images at the given rows, as they are evaluated, in this process."""
        return decode_now(self._paths(rows), self.files.shape)

    def augmented(
        self, drawn: Iterable[Drawn], *, augment: Augment, device: torch.device
    ) -> Iterator[tuple[Drawn, Tensor]]:
        """Yield each batch that was drawn, in order; while one is used, the workers decode the next."""
        crop = augment if isinstance(augment, ResizedCrop) else None
        sent: list[Drawn] = []

        def jobs() -> Iterator[Job]:
            for rows_B, views_B in drawn:
                sent.append((rows_B, views_B))
                paths = [str(path) for path in self._paths(rows_B)]
                yield Job(paths, self.files.shape, crop, views_B.tolist() if crop else [])

        for pixels_BCHW in self.feeder.feed(jobs(), pin=device.type == "cuda"):
            rows_B, views_B = sent.pop(0)
            x_BCHW = as_floats(pixels_BCHW, device)
            yield (rows_B, views_B), x_BCHW if crop else augment.apply(x_BCHW, views_B)

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield what a fingerprint of the set is made of: shape, labels, and a digest of each file's bytes."""
        yield repr(("files", len(self), self.files.shape)).encode()
        yield self.labels_N.cpu().contiguous().numpy().data
        yield from self.digests()

    def digests(self) -> list[bytes]:
        """Return a 16-byte digest of each image's file: by it an image is known again in another subset."""
        return self.files.digests(self._positions_N)

    def to(self, device: torch.device | str) -> StreamedSet:
        """Return the same set with its labels on ``device``; the images follow batch by batch."""
        return StreamedSet(self.files, self.labels_N.to(device), self.index_N.to(device), feeder=self.feeder)

    def select(self, rows: Tensor) -> StreamedSet:
        """Return the images at the given rows of this set."""
        rows = rows.to(self.labels_N.device)
        return StreamedSet(self.files, self.labels_N[rows], self.index_N[rows], feeder=self.feeder)

    def _paths(self, rows: Tensor | slice) -> list[Path]:
        return self.files.paths(self._positions_N[rows.cpu() if isinstance(rows, Tensor) else rows])


class Feeder:
    """Worker processes that decode batches in order, a few ahead of their use.

    They are started with the first batch, kept for the following passes, and stopped with the feeder's last user.

    Args:
        workers: How many; 0 decodes in this process, when a batch is wanted.
    """

    def __init__(self, workers: int) -> None:
        self._pool = _Pool(workers)
        # The pool must not be garbage together with the feeder: its queues would go before they had stopped anybody.
        weakref.finalize(self, self._pool.stop).atexit = False

    def feed(self, jobs: Iterator[Job], *, pin: bool) -> Iterator[Tensor]:
        """Yield the pixels of each job, in order, uint8 ``(B, C, H, W)``.

        Args:
            jobs: Taken as workers get free, so ahead of what is yielded.
            pin: Whether to bring the pixels into page-locked memory, from which a GPU copies without waiting.

        Raises:
            UserError: A file does not decode (named).
            RunError: A worker died.
        """
        pool = self._pool
        if pool.workers == 0 or pool.busy:  # one pass at a time; a pass inside another needs no haste
            yield from (_checked(decode_job(job)) for job in jobs)
            return
        pool.busy = True
        try:
            for decoded in pool.start(jobs, pin=pin):
                yield _checked(decoded)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            pool.stop()
            raise RunError(
                f"a process that decodes images died ({' '.join(str(error).split())}); if memory or shared memory "
                f"(/dev/shm) ran out, use fewer with --set data.workers=N, below {pool.workers}"
            ) from None
        finally:
            pool.busy = False


class _Pool:
    """The worker processes of a feeder: a DataLoader whose jobs change from pass to pass."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.busy = False
        self._jobs = _Jobs()
        self._loader: DataLoader[Decoded] | None = None

    def start(self, jobs: Iterator[Job], *, pin: bool) -> Iterator[Decoded]:
        """Start a pass, and before the first one the workers."""
        self._jobs.waiting = jobs
        first = self._loader is None
        with warnings.catch_warnings():
            # How many workers there are is the user's to choose. And from 3.12 on, Python warns of every fork beside
            # threads; the workers use none of the threads there were.
            warnings.filterwarnings("ignore", message=".*worker processes in total.*", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            if self._loader is None:
                self._loader = self._make_loader(pin=pin)
            decoded = iter(self._loader)
        if first:  # now, since what is registered last runs first: before multiprocessing waits for the workers
            atexit.register(self.stop)
        return decoded

    def stop(self) -> None:
        """Stop the workers; another pass would start new ones."""
        atexit.unregister(self.stop)
        loader, self._loader = self._loader, None
        iterator: Any = getattr(loader, "_iterator", None)
        if iterator is not None:
            # The loader does this when it is collected, which a suspended pass may prevent.
            iterator._shutdown_workers()
            for worker in iterator._workers:
                if worker.is_alive():  # stuck in a read, say; it holds nothing that could be lost
                    worker.kill()

    def _make_loader(self, *, pin: bool) -> DataLoader[Decoded]:
        return DataLoader(
            _Decoder(),
            sampler=self._jobs,
            batch_size=None,  # a job is a batch already
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            worker_init_fn=_leave_signals_to_the_main_process,
            prefetch_factor=BATCHES_AHEAD,
            persistent_workers=True,
            generator=torch.Generator(),  # else each pass would draw from torch's global stream
        )


def default_workers() -> int:
    """Return how many worker processes to start: one fewer than the CPUs this process may use, at least 1, up to 16.

    The processes that torchrun started on this machine share the CPUs.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(MOST_WORKERS, usable // (int(beside) if beside.isdecimal() and int(beside) else 1) - 1))


def decode_job(job: Job) -> Decoded:
    """Decode a batch, or say which file is at fault."""
    cuts = [None] * len(job.paths) if job.crop is None else [random_cut(job.crop, view) for view in job.views]
    try:
        images = [decode_one(Path(path), job.shape, cut) for path, cut in zip(job.paths, cuts, strict=True)]
    except UserError as error:
        return Decoded(torch.empty(0, dtype=torch.uint8), str(error))
    return Decoded(stack(images, job.shape), None)


class _Jobs:
    """What the loader takes its jobs from; each pass has its own."""

    waiting: Iterator[Job] = iter(())

    def __iter__(self) -> Iterator[Job]:
        return self.waiting


class _Decoder(Dataset[Decoded]):
    """What a worker does with a job."""

    def __getitem__(self, job: Job) -> Decoded:
        return decode_job(job)


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _checked(decoded: Decoded) -> Tensor:
    if decoded.fault is not None:
        raise UserError(decoded.fault)
    return decoded.pixels_BCHW


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore what a terminal or a scheduler sends to a whole group: the main process decides, and stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
