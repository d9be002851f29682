"""Running attacks over a set of images, one verdict an image.

An attack works on the images that are still classified rightly, in full batches; an image it breaks is left
out of its later rounds and of larger eps. What counts as broken is decided here and not by the attack: the
perturbed image must lie in the ball and in the valid range, and must fool the model in float32.

Several ranks take the batches of one process in turns and tell one another the verdicts, which are therefore the same.

Shape suffixes: N images of the set, B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from rnascl_cli.attacks.gradient import LogitFunction, cross_entropy
from rnascl_cli.attacks.interface import Attack, AttackContext, AttackPart, NoiseStreams, Norm
from rnascl_cli.attacks.protocol import PIXEL, AttackSpace
from rnascl_cli.attacks.resume import FinishedBatch, Journal, Key
from rnascl_cli.attacks.verdicts import allowed, right
from rnascl_cli.core import distributed
from rnascl_cli.core.units import Epsilon

Advance = Callable[[int], None]
"""Moves progress on by so many steps."""
Watch = Callable[[str, int], AbstractContextManager[Advance]]
"""Label and number of steps to a context that shows progress and gives a function to move it on."""


class Labelled(Protocol):
    """Images of a test set, labels, and positions in the full set."""

    def pixels(self, rows: Tensor | slice, /) -> Tensor:
        """Return the pixels of some images, uint8 ``(B, C, H, W)``."""
        ...

    @property
    def labels_N(self) -> Tensor:  # noqa: N802
        """Class numbers."""
        ...

    @property
    def index_N(self) -> Tensor:  # noqa: N802
        """Position of each image in the full test set."""
        ...


@dataclass(frozen=True, eq=False)
class Outcome:
    """One attack at one eps.

    Attributes:
        attack: Which attack.
        eps: Perturbation size.
        broken_N: Which images are classified wrongly under the attack: its own, those that it broke at a smaller eps,
            and clean mistakes.
        attacked: How many images it had to work on.
        seconds: What that took.
        broken_by: Images broken by each round, by the round's name.
        out_of_ball: Perturbed images that had left the ball or were not finite, and so were not counted.
        notes: What the attack noticed about the model.
    """

    attack: Attack
    eps: Epsilon
    broken_N: Tensor
    attacked: int = 0
    seconds: float = 0.0
    broken_by: dict[str, int] = field(default_factory=dict)
    out_of_ball: int = 0
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of all images still classified rightly."""
        return int((~self.broken_N).sum()) / len(self.broken_N)


@dataclass(frozen=True)
class Gradients:
    """What the loss gradients at clean images look like.

    Attributes:
        images: How many were looked at, all classified rightly.
        zero: Of those, how many have an all-zero gradient.
        not_finite: How many have one that is not finite.
    """

    images: int
    zero: int
    not_finite: int


@contextlib.contextmanager
def _no_watch(label: str, total: int) -> Iterator[Advance]:
    yield lambda steps: None


@dataclass(frozen=True, eq=False)
class Evaluator:
    """A model and the images it is attacked on.

    Attributes:
        model: Images in [0, 1] to logits, in eval mode, taking no gradients of its parameters. Verdicts are its own.
        images: What to attack.
        num_classes: Number of logits.
        streams: Generators for attacks' noise, image by image.
        device: Where the model is.
        seed: For attacks that draw from torch's global stream.
        domain: Where perturbations live.
        norm: Of the ball.
        batch_size: Images a batch.
        autocast: Context of the attacks' own precision; verdicts are float32 whatever it is.
        layout: How the model wants its input in memory; channels last is faster on CPUs and in bf16.
        watch: Shows progress.
        journal: Keeps finished batches; None keeps none.
        worker: The same function as ``model`` up to rounding, made faster, for attacks to work on; None is ``model``.
    """

    model: LogitFunction
    images: Labelled
    num_classes: int
    streams: NoiseStreams
    device: torch.device
    seed: int = 0
    attack_space: AttackSpace = PIXEL
    norm: Norm = "Linf"
    batch_size: int = 250
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    layout: torch.memory_format = torch.contiguous_format
    watch: Watch = _no_watch
    journal: Journal | None = None
    attacked_model: LogitFunction | None = None

    def clean(self) -> Tensor:
        """Return which images the model classifies rightly as they are: ``right_N``, bool, on the CPU."""
        found: list[Tensor] = []

        def judge(rows: Tensor) -> Tensor:
            x_BCHW, y_B = self._batch(rows)
            return right(self.model(x_BCHW), y_B).cpu()

        with exact_float32(), torch.no_grad(), self.watch("clean", len(self.images.labels_N)) as advance:
            for turn in distributed.round_robin(self._split(torch.arange(len(self.images.labels_N))), judge):
                found += [right_B for _, right_B in turn]
                advance(sum(len(rows) for rows, _ in turn))
        return torch.cat(found)

    def gradients(self, right_N: Tensor) -> Gradients:
        """Look at the cross-entropy's gradients at the first batch of rightly classified images."""
        rows = right_N.nonzero().squeeze(1)[: self.batch_size]
        if not len(rows):
            return Gradients(0, 0, 0)
        x_BCHW, y_B = self._batch(rows)
        z_BCHW = self.attack_space.from_pixels(x_BCHW).requires_grad_(True)
        with exact_float32(), torch.enable_grad():
            loss_B = cross_entropy(y_B)(_attached(self.model(self.attack_space.to_pixels(z_BCHW)), z_BCHW))
            (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), z_BCHW)
        size_B = gradient_BCHW.abs().flatten(1).amax(dim=1)
        return Gradients(len(rows), int((size_B == 0).sum()), int((~size_B.isfinite()).sum()))

    def evaluate(self, attacks: Sequence[Attack], epsilons: Sequence[Epsilon], right_N: Tensor) -> list[Outcome]:
        """Run every attack at every eps, the smallest first.

        An image that an attack breaks at one eps lies in the ball of every larger one too, so it stays broken
        there without being attacked again: accuracy falls with eps by construction.
        """
        outcomes = []
        for attack in attacks:
            if attack.name == "clean":
                outcomes.append(Outcome(attack, Epsilon("0", 0.0), ~right_N))
                continue
            broken_N = ~right_N
            for eps in sorted(epsilons, key=lambda item: item.value):
                outcomes.append(self.run(attack, eps, broken_N))
                broken_N = outcomes[-1].broken_N
        return outcomes

    def run(self, attack: Attack, eps: Epsilon, broken_N: Tensor, *, label: str | None = None) -> Outcome:
        """Run one attack at one eps on the images not broken yet.

        Args:
            attack: What to run.
            eps: Perturbation size; at 0 there is nothing to do.
            broken_N: Images to leave out: clean mistakes, and those broken at a smaller eps.
            label: What progress and the journal call it, where that is not the attack's name.
        """
        label = label or attack.name
        broken_N = broken_N.clone()
        todo = int((~broken_N).sum())
        if eps.value == 0 or todo == 0:
            return Outcome(attack, eps, broken_N)
        notes: list[str] = []
        meter = Meter()
        problem = self._problem(eps, meter)
        result = Outcome(attack, eps, broken_N, attacked=todo)
        with exact_float32():
            rounds = attack.rounds(problem, notes.append)
            notes += attack.check_model(problem, *self._first_batch(broken_N))
            with self.watch(f"{label} {eps.text}", todo * sum(item.passes for item in rounds)) as advance:
                for number, item in enumerate(rounds):
                    meter.show = advance
                    result = self._round(result, (label, eps.text, number), item, problem, meter, notes)
                    advance(
                        (todo - int((~result.broken_N).sum())) * sum(later.passes for later in rounds[number + 1 :])
                    )
                    todo = int((~result.broken_N).sum())
        return replace(result, notes=tuple(dict.fromkeys(notes)))

    def _round(
        self, result: Outcome, key: Key, item: AttackPart, problem: AttackContext, meter: Meter, notes: list[str]
    ) -> Outcome:
        broken_N, out_of_ball, seconds = result.broken_N.clone(), result.out_of_ball, result.seconds
        before = int(broken_N.sum())
        batches = self._split((~broken_N).nonzero().squeeze(1))
        for rows, done in zip(batches, self._done(key, item, batches, problem, meter, notes), strict=True):
            broken_N[rows] = torch.isin(self.images.index_N[rows], torch.tensor(done.broken, dtype=torch.int64))
            out_of_ball, seconds = out_of_ball + done.out_of_ball, seconds + done.seconds
            notes.extend(done.notes)
        found = {**result.broken_by, item.name: int(broken_N.sum()) - before}
        return replace(result, broken_N=broken_N, out_of_ball=out_of_ball, seconds=seconds, broken_by=found)

    def _done(
        self,
        key: Key,
        item: AttackPart,
        batches: Sequence[Tensor],
        problem: AttackContext,
        meter: Meter,
        notes: list[str],
    ) -> list[FinishedBatch]:
        """Return what came of each batch: from the journal, or by attacking it now, which is written down."""
        index: list[list[int]] = [self.images.index_N[rows].tolist() for rows in batches]
        done = [self.journal.find(key, index_B) if self.journal else None for index_B in index]
        due = [number for number, known in enumerate(done) if known is None]

        def attack(number: int) -> FinishedBatch:
            noticed = len(notes)
            with meter.batch(len(batches[number]) * item.passes):
                found = self._attack_batch(item, problem, batches[number], index[number])
            found = found._replace(notes=notes[noticed:])
            del notes[noticed:]
            return found

        meter.skip(sum(len(rows) * item.passes for rows, known in zip(batches, done, strict=True) if known))
        for turn in distributed.round_robin(due, attack):
            for place, (number, found) in enumerate(turn):
                # What a turn took is what its longest batch took: seconds are those of a clock on the wall.
                share = max(other.seconds for _, other in turn) / len(turn)
                done[number] = found._replace(seconds=share)
                if self.journal:
                    self.journal.record(key, index[number], found._replace(seconds=share))
                if place != distributed.rank():
                    meter.skip(len(batches[number]) * item.passes)
        return [found for found in done if found is not None]

    def _attack_batch(
        self, item: AttackPart, problem: AttackContext, rows: Tensor, index_B: list[int]
    ) -> FinishedBatch:
        started = time.perf_counter()
        x_BCHW, y_B = self._batch(rows)
        clean_BCHW = self.attack_space.from_pixels(x_BCHW)
        z_BCHW = item.perturb(clean_BCHW, y_B, index_B).detach()
        allowed_B = allowed(z_BCHW, clean_BCHW, attack_space=self.attack_space, norm=self.norm, eps=problem.eps)
        with torch.no_grad():
            fooled_B = ~right(self.model(self.attack_space.pixels(z_BCHW)), y_B)
        broken_B = (fooled_B & allowed_B).tolist()
        broken = [index for index, lost in zip(index_B, broken_B, strict=True) if lost]
        return FinishedBatch(broken, int((~allowed_B).sum()), time.perf_counter() - started, [])

    def _problem(self, eps: Epsilon, meter: Meter) -> AttackContext:
        worker = self.attacked_model or self.model

        def plain(z_BCHW: Tensor) -> Tensor:
            # The attacks of pyautoattack insist on contiguous tensors of their own.
            return self.model(self.attack_space.to_pixels(z_BCHW).contiguous(memory_format=self.layout))

        def exact(z_BCHW: Tensor) -> Tensor:
            meter.count(len(z_BCHW))
            logits_BK = worker(self.attack_space.to_pixels(z_BCHW).contiguous(memory_format=self.layout))
            return _attached(logits_BK, z_BCHW)

        def model(z_BCHW: Tensor) -> Tensor:
            with self.autocast():
                return exact(z_BCHW)

        return AttackContext(
            model=model,
            exact=exact,
            plain=plain,
            attack_space=self.attack_space,
            norm=self.norm,
            eps=eps.value,
            num_classes=self.num_classes,
            seed=self.seed,
            streams=self.streams,
            device=self.device,
        )

    def _first_batch(self, broken_N: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW, y_B = self._batch((~broken_N).nonzero().squeeze(1)[: self.batch_size])
        return self.attack_space.from_pixels(x_BCHW), y_B

    def _split(self, rows: Tensor) -> list[Tensor]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW = self.images.pixels(rows).to(self.device).float() / 255
        return x_BCHW.contiguous(memory_format=self.layout), self.images.labels_N[rows].to(self.device)


def _attached(logits_BK: Tensor, z_BCHW: Tensor) -> Tensor:
    """Return the logits with a gradient of zero where the model cuts its graph, so that attacks find it so."""
    if not z_BCHW.requires_grad or logits_BK.requires_grad or not torch.is_grad_enabled():
        return logits_BK
    return logits_BK + 0 * z_BCHW.flatten(1).sum(dim=1, keepdim=True)


class Meter:
    """Moves progress on with each forward pass, so that it moves inside long batches too."""

    def __init__(self) -> None:
        self.show: Advance = lambda steps: None
        self._left = 0

    def count(self, images: int) -> None:
        """Take note of a forward pass; more passes than were planned for the batch do not show."""
        steps = min(images, self._left)
        self._left -= steps
        if steps:
            self.show(steps)

    def skip(self, planned: int) -> None:
        """Count ``planned`` image passes as made: they were made before, or by another rank."""
        if planned:
            self.show(planned)

    @contextlib.contextmanager
    def batch(self, planned: int) -> Iterator[None]:
        """Expect ``planned`` image passes, and count those not needed as made at the end."""
        self._left = planned
        yield
        self.skip(self._left)
        self._left = 0


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Keep TF32, which rounds to ten bits on its way, out of the arithmetic for the while."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
