"""The search step to be measured: ours and the plain one, with the same weights, on the same kind of images.

Images are random bytes and the teacher's weights are random: neither changes what a step costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.reference import PlainSearch, pil_loader
from rnascl_cli.artifacts.documents import Paradigm
from rnascl_cli.data import Batch, Data, ImageSet, batches
from rnascl_cli.data.augment import Crop, augmentation
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.models.supernet import Supernet
from rnascl_cli.recipes.paradigms import uses_tutors
from rnascl_cli.recipes.settings import AttentionSettings, DataSettings, SearchSettings, TeacherCacheSettings
from rnascl_cli.spaces import SearchSpace, space_named
from rnascl_cli.stages.search.setup import search_step
from rnascl_cli.stages.search.step import SearchStep
from rnascl_cli.teachers.architectures import build_teacher
from rnascl_cli.teachers.load import Teacher, read_teacher, write_teacher
from rnascl_cli.teachers.output_cache import open_output_cache

CLASSES = 10


@dataclass(frozen=True, eq=False)
class Workload:
    """What both sides work on.

    Attributes:
        space: The search space.
        teacher_file: Written by :func:`random_teacher`, or any teacher.
        side: Of the common maps, pixels.
        data: Training images, 32x32.
        batch_size: Images a step.
    """

    space: SearchSpace
    teacher_file: Path
    side: int
    data: Data
    batch_size: int = 128

    def teacher(self) -> Teacher:
        """Read the teacher afresh."""
        return read_teacher(str(self.teacher_file), num_classes=CLASSES)


def random_teacher(folder: Path, architecture: str) -> Path:
    """Write a teacher with random weights and return its file."""
    path = folder / f"{architecture}.safetensors"
    torch.manual_seed(1)
    module = build_teacher(architecture, num_classes=CLASSES)
    write_teacher(path, module, architecture=architecture, num_classes=CLASSES, about={"source": "random weights"})
    return path


def random_images(count: int) -> Data:
    """Return training images of random bytes, shaped as CIFAR-10's."""
    stream = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream)
    labels_N = torch.randint(0, CLASSES, (count,), generator=stream)
    images = ImageSet(pixels_NCHW, labels_N, torch.arange(count))
    none = images.select(torch.arange(0))
    return Data("random", [str(index) for index in range(CLASSES)], images, none, none, 32, None, None)


def workload(folder: Path, *, space: str, teacher: str, side: int, images: int, batch_size: int = 128) -> Workload:
    """Return the workload of a space and a teacher architecture."""
    return Workload(space_named(space), random_teacher(folder, teacher), side, random_images(images), batch_size)


@contextlib.contextmanager
def our_search(
    work: Workload, *, compute: DeviceConfig, paradigm: Paradigm = "rnas-cl", keep: bool = False
) -> Iterator[SearchStep]:
    """Set the search step up as the stage does.

    Args:
        work: On what.
        compute: Device and precision.
        paradigm: With or without the attention term.
        keep: Whether the teacher's outputs are kept, under the cache folder.
    """
    settings = SearchSettings(paradigm=paradigm, attention=AttentionSettings(map_size=work.side))
    teacher, tutoring = work.teacher(), uses_tutors(paradigm)
    kept = None
    if keep:
        kept = open_output_cache(
            TeacherCacheSettings(mode="on"),
            teacher,
            images=work.data.train,
            augment=augmentation(DataSettings(), work.data.input_size),
            attention=settings.attention,
            maps=tutoring,
            compute=compute,
        )
    torch.manual_seed(0)
    with search_step(settings, work.space, data=work.data, teacher=teacher, compute=compute, cache=kept) as step:
        step.start_epoch(0, torch.Generator().manual_seed(1))
        yield step


def plain_search(work: Workload, *, hoisted: bool = False) -> PlainSearch:
    """Set the plain step up, with the weights that ours starts from."""
    torch.manual_seed(0)
    supernet = Supernet(work.space, num_classes=CLASSES, mean=work.data.mean, std=work.data.std)
    plain = PlainSearch(
        work.space,
        work.teacher().module,
        side=work.side,
        num_classes=CLASSES,
        mean=work.data.mean,
        std=work.data.std,
        hoisted=hoisted,
    )
    plain.supernet.load_state_dict(supernet.state_dict())
    return plain


def our_batches(work: Workload) -> Iterator[Batch]:
    """Yield batches for ever: the same order and views at each pass, so that kept outputs are found again."""
    while True:
        yield from batches(
            work.data.train,
            batch_size=work.batch_size,
            generator=torch.Generator().manual_seed(2),
            augment=Crop(),
            device=torch.device("cpu"),
        )


def stepping(task: SearchStep, work: Workload) -> Callable[[], object]:
    """Return a call that draws a batch and takes our step on it."""
    drawn = our_batches(work)
    return lambda: task.step(next(drawn))


def plain_stepping(plain: PlainSearch, work: Workload) -> Callable[[], object]:
    """Return a call that draws a batch through PIL and takes the plain step on it."""

    def drawn() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = pil_loader(work.data.train.images_NCHW, work.data.train.labels_N, batch_size=work.batch_size)
        while True:
            yield from loader

    batch = drawn()
    return lambda: plain.step(*next(batch))


def smaller(work: Workload, batch_size: int) -> Workload:
    """Return the same workload with another batch size."""
    return dataclasses.replace(work, batch_size=batch_size)
