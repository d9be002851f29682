"""Runs attacks over a set of images, with one verdict per image.

An attack runs in full batches on the images that are still classified correctly; an image that it breaks is left out
of its later parts and of larger eps. The evaluator decides what counts as broken, not the attack: the perturbed image
must lie in the ball and in the valid range, and must fool the model in float32.

Several ranks share the batches and exchange verdicts, which are therefore the same as those of one process.

Shape suffixes: N images of the set, B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rnascl_cli.attacks.checks import Norm
from rnascl_cli.attacks.gradient import LogitFunction, cross_entropy
from rnascl_cli.attacks.interface import Attack, AttackContext, AttackPart, NoiseStreams
from rnascl_cli.attacks.protocol import PIXEL, AttackSpace
from rnascl_cli.attacks.resume import FinishedBatch, Journal, Key
from rnascl_cli.attacks.verdicts import allowed, right
from rnascl_cli.core import distributed
from rnascl_cli.core.units import Epsilon

Advance = Callable[[int], None]
"""Advances a progress bar by a number of steps."""
Watch = Callable[[str, int], AbstractContextManager[Advance]]
"""Label and number of steps to a context that shows progress."""


class LabelledImages(Protocol):
    """Images of a test set with labels and positions in the full set."""

    def pixels(self, rows: Tensor | slice, /) -> Tensor:
        """Return the pixels of some images, uint8 ``(B, C, H, W)``."""
        ...

    @property
    def labels_N(self) -> Tensor: ...  # noqa: N802

    @property
    def index_N(self) -> Tensor: ...  # noqa: N802


@dataclass(frozen=True, eq=False)
class Outcome:
    """One attack at one eps.

    Attributes:
        attack: Which attack.
        eps: Radius of the ball.
        broken_N: Images that are misclassified under the attack, at this or a smaller eps, or when clean.
        attacked: Number of images that the attack ran on.
        seconds: Wall time of that.
        broken_by: Number of images that each part broke, by the part's name.
        out_of_ball: Number of perturbed images outside the ball or not finite, which do not count as broken.
        notes: Warnings of the attack about the model.
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
        """Fraction of all images still classified correctly."""
        return int((~self.broken_N).sum()) / len(self.broken_N)


@dataclass(frozen=True)
class Gradients:
    """How many of the ``images`` examined have an all-zero loss gradient, and one that is not finite."""

    images: int
    zero: int
    not_finite: int


@contextlib.contextmanager
def _no_watch(label: str, total: int) -> Iterator[Advance]:
    yield lambda steps: None


class _RunState(NamedTuple):
    context: AttackContext
    meter: Meter
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Evaluator:
    """A model and the images it is attacked on.

    Attributes:
        model: Images in [0, 1] to logits, in eval mode, with frozen parameters. Verdicts come from it.
        images: What to attack.
        num_classes: Number of logits.
        streams: Generators for the attacks' noise, per image.
        device: Where the model is.
        seed: For attacks that draw from torch's global stream.
        attack_space: Where perturbations are added.
        norm: Of the ball.
        batch_size: Images per batch.
        autocast: Context of the attacks' own precision; verdicts are always float32.
        layout: Memory format of the model's input; channels last is faster on CPUs and in bf16.
        watch: Shows progress.
        journal: Records finished batches; None records none.
        attacked_model: An accelerated version of ``model``, equal up to rounding, for the attacks; None is ``model``.
    """

    model: LogitFunction
    images: LabelledImages
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
        """Return which images the model classifies correctly without attack: ``right_N``, bool, on the CPU."""
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
        """Examine the cross-entropy's gradients at the first batch of correctly classified images."""
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

        An image that an attack breaks at one eps lies in the ball of every larger one too. It stays broken there
        without being attacked again: accuracy decreases with eps by construction.
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
            eps: Radius of the ball; at 0 nothing is run.
            broken_N: Images to leave out: clean mistakes, and those broken at a smaller eps.
            label: Name for progress and journal if it is not the attack's.
        """
        label = label or attack.name
        todo = int((~broken_N).sum())
        if eps.value == 0 or todo == 0:
            return Outcome(attack, eps, broken_N.clone())
        notes: list[str] = []
        meter = Meter()
        state = _RunState(self.attack_context(eps, meter), meter, notes)
        result = Outcome(attack, eps, broken_N.clone(), attacked=todo)
        with exact_float32():
            parts = attack.parts(state.context, notes.append)
            x_BCHW, y_B = self._batch((~broken_N).nonzero().squeeze(1)[: self.batch_size])
            notes += attack.check_model(state.context, self.attack_space.from_pixels(x_BCHW), y_B)
            with self.watch(f"{label} {eps.text}", todo * sum(part.passes for part in parts)) as advance:
                meter.advance = advance
                for number, part in enumerate(parts):
                    result = self._run_part(result, (label, eps.text, number), part, state)
                    left = int((~result.broken_N).sum())
                    advance((todo - left) * sum(later.passes for later in parts[number + 1 :]))
                    todo = left
        return replace(result, notes=tuple(dict.fromkeys(notes)))

    def _run_part(self, result: Outcome, key: Key, part: AttackPart, state: _RunState) -> Outcome:
        broken_N, out_of_ball, seconds = result.broken_N.clone(), result.out_of_ball, result.seconds
        batches = self._split((~broken_N).nonzero().squeeze(1))
        for rows, done in zip(batches, self._finished_batches(key, part, batches, state), strict=True):
            broken_N[rows] = torch.isin(self.images.index_N[rows], torch.tensor(done.broken, dtype=torch.int64))
            out_of_ball, seconds = out_of_ball + done.out_of_ball, seconds + done.seconds
            state.notes.extend(done.notes)
        broken_by = {**result.broken_by, part.name: int(broken_N.sum()) - int(result.broken_N.sum())}
        return replace(result, broken_N=broken_N, out_of_ball=out_of_ball, seconds=seconds, broken_by=broken_by)

    def _finished_batches(
        self, key: Key, part: AttackPart, batches: Sequence[Tensor], state: _RunState
    ) -> list[FinishedBatch]:
        """Return the outcome of each batch: from the journal, or by attacking it now, which is recorded."""
        context, meter, notes = state
        index: list[list[int]] = [self.images.index_N[rows].tolist() for rows in batches]
        done = [self.journal.find(key, index_B) if self.journal else None for index_B in index]
        due = [number for number, known in enumerate(done) if known is None]

        def attack(number: int) -> FinishedBatch:
            before = len(notes)
            with meter.batch(len(batches[number]) * part.passes):
                found = self.attack_batch(part, context, batches[number], index[number])
            found = found._replace(notes=notes[before:])
            del notes[before:]
            return found

        meter.skip(sum(len(rows) * part.passes for rows, known in zip(batches, done, strict=True) if known))
        for turn in distributed.round_robin(due, attack):
            # The wall time of a turn is that of its slowest batch.
            seconds = max(found.seconds for _, found in turn) / len(turn)
            for rank, (number, found) in enumerate(turn):
                done[number] = finished = found._replace(seconds=seconds)
                if self.journal:
                    self.journal.record(key, index[number], finished)
                if rank != distributed.rank():
                    meter.skip(len(batches[number]) * part.passes)
        return [found for found in done if found is not None]

    def attack_batch(self, part: AttackPart, context: AttackContext, rows: Tensor, index_B: list[int]) -> FinishedBatch:
        """Run one part of an attack on one batch, and judge the perturbed images in float32."""
        started = time.perf_counter()
        x_BCHW, y_B = self._batch(rows)
        clean_BCHW = self.attack_space.from_pixels(x_BCHW)
        z_BCHW = part.perturb(clean_BCHW, y_B, index_B).detach()
        allowed_B = allowed(z_BCHW, clean_BCHW, attack_space=self.attack_space, norm=self.norm, eps=context.eps)
        with torch.no_grad():
            fooled_B = ~right(self.model(self.attack_space.pixels(z_BCHW)), y_B)
        broken_B = (fooled_B & allowed_B).tolist()
        broken = [index for index, lost in zip(index_B, broken_B, strict=True) if lost]
        return FinishedBatch(broken, int((~allowed_B).sum()), time.perf_counter() - started, [])

    def attack_context(self, eps: Epsilon, meter: Meter) -> AttackContext:
        """Return what attacks at ``eps`` work on; each forward pass advances ``meter``."""
        attacked_model = self.attacked_model or self.model

        def plain(z_BCHW: Tensor) -> Tensor:
            # pyautoattack requires contiguous tensors of its own.
            return self.model(self.attack_space.to_pixels(z_BCHW).contiguous(memory_format=self.layout))

        def exact(z_BCHW: Tensor) -> Tensor:
            meter.count(len(z_BCHW))
            logits_BK = attacked_model(self.attack_space.to_pixels(z_BCHW).contiguous(memory_format=self.layout))
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

    def _split(self, rows: Tensor) -> list[Tensor]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW = self.images.pixels(rows).to(self.device).float() / 255
        return x_BCHW.contiguous(memory_format=self.layout), self.images.labels_N[rows].to(self.device)


def _attached(logits_BK: Tensor, z_BCHW: Tensor) -> Tensor:
    """Return the logits with a zero gradient if the model detaches them, so that attacks see it instead of failing."""
    if not z_BCHW.requires_grad or logits_BK.requires_grad or not torch.is_grad_enabled():
        return logits_BK
    return logits_BK + 0 * z_BCHW.flatten(1).sum(dim=1, keepdim=True)


class Meter:
    """Advances progress with each forward pass, also inside long batches."""

    def __init__(self) -> None:
        self.advance: Advance = lambda steps: None
        self._left = 0

    def count(self, images: int) -> None:
        """Count a forward pass; passes beyond the batch's plan are not shown."""
        steps = min(images, self._left)
        self._left -= steps
        self.skip(steps)

    def skip(self, planned: int) -> None:
        """Count image passes that an earlier run or another rank has made."""
        if planned:
            self.advance(planned)

    @contextlib.contextmanager
    def batch(self, planned: int) -> Iterator[None]:
        """Expect ``planned`` image passes, and count the unused ones at the end."""
        self._left = planned
        yield
        self.skip(self._left)
        self._left = 0


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32, which rounds the inputs of convolutions to ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
