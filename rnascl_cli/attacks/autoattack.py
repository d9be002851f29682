"""AutoAttack (Croce and Hein 2020) through the ``pyautoattack`` package.

The parts, their settings and their arithmetic are pyautoattack's. Its outer loop, which hands the images not
broken yet from part to part in batches, is walked here instead, in the same order and with the same seeds, so that the
verdicts are the same while time left, interruption and the recount of each image work as for any other
attack, and APGD spends no further step on an image that it has broken (:mod:`rnascl_cli.attacks.early_stopping`). What
pyautoattack would do beside that is kept in: it reseeds torch's global stream, replaces the interpreter's trace
function, keeps counts between models, and logs.

Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rnascl_cli.attacks.early_stopping import drop_broken
from rnascl_cli.attacks.interface import AttackContext, AttackPart, Note
from rnascl_cli.attacks.names import PARTS
from rnascl_cli.core.errors import UserError

TARGETS = 9
SQUARE_SHARE = 0.002
"""AutoAttack's own flag: Square breaking more than this share of images after the white-box parts."""
_SMALLEST_CLASS_COUNT = {"apgd-t": 4, "apgd-dlr": 3}  # the DLR losses sort this many logits


@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack's standard or rand version, or one of its parts in the standard version's settings.

    Attributes:
        name: A key of :data:`PARTS`.
        steps: AutoAttack adapts its steps; there is no one number.
        restarts: One, in every part of the standard version.
        iterations: Steps of APGD and FAB; anything but 100 is no AutoAttack and is marked so.
        queries: Of Square; likewise, 5000.
    """

    name: str
    steps: int | None = None
    restarts: int = 1
    iterations: int = 100
    queries: int = 5000

    def step_size_at(self, eps: float) -> float | None:
        """AutoAttack chooses its own step sizes."""
        return None

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return the parts that can run with this many classes.

        Raises:
            UserError: None can.
        """
        able = tuple(part for part in PARTS[self.name] if num_classes >= _SMALLEST_CLASS_COUNT.get(part, 2))
        if not able:
            needed = _SMALLEST_CLASS_COUNT[self.name]
            raise UserError(
                f"--attack {self.name}: needs {needed} classes and the model has {num_classes}; leave it out"
            )
        return able

    def is_standard(self, num_classes: int) -> bool:
        """Return whether all parts run as published: nine targets need ten classes."""
        parts = self.parts(num_classes)
        targeted = "apgd-t" in parts or "fab-t" in parts
        published = (self.iterations, self.queries) == (100, 5000)
        return published and parts == PARTS[self.name] and not (targeted and num_classes <= TARGETS)

    def rounds(self, problem: AttackContext, note: Note) -> list[AttackPart]:
        """Return one round for each part, in AutoAttack's order."""
        parts = self.parts(problem.num_classes)
        if left_out := [part for part in PARTS[self.name] if part not in parts]:
            note(f"{', '.join(left_out)} left out: its loss needs more than {problem.num_classes} classes")
        targets = min(TARGETS, problem.num_classes - 1)
        suite = self._suite(problem, targets, note)
        eot = suite.apgd.eot_iter
        passes = {
            "apgd-ce": self.iterations * eot,
            "apgd-dlr": self.iterations * eot,
            "apgd-t": self.iterations * targets,
            "fab-t": 2 * self.iterations * targets,
            "square": self.queries,
        }
        return [AttackPart(part, passes[part], partial(_perturb, suite, part, problem)) for part in parts]

    def check_model(self, problem: AttackContext, z_BCHW: Tensor, y_B: Tensor) -> list[str]:
        """Run AutoAttack's checks for randomised, probability-valued and dynamic models on the first batch."""
        from pyautoattack import checks

        messages: list[str] = []
        collector = _Collector(messages.append)
        with _quiet(problem.device):
            if self.name != "aa-rand":
                checks.check_randomized(problem.plain, z_BCHW, y_B, bs=len(z_BCHW), logger=collector)
            checks.check_range_output(problem.plain, z_BCHW, logger=collector)
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))
            checks.check_dynamic(problem.plain, z_BCHW, False, logger=collector)
        return messages

    def _suite(self, problem: AttackContext, targets: int, note: Note) -> Any:
        from pyautoattack import AutoAttack as Suite

        suite: Any = Suite(
            problem.exact,
            device=problem.device,
            eps=problem.eps,
            norm=problem.norm,
            seed=problem.seed,
            version="rand" if self.name == "aa-rand" else "standard",
        )
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = targets
        suite.fab.targeted = True
        suite.square.n_queries = self.queries
        if self.iterations != 100:
            for part in (suite.apgd, suite.apgd_targeted):
                part.n_iter = part.n_iter_orig = self.iterations
                part.n_iter_2 = max(int(0.22 * self.iterations), 1)
                part.n_iter_min = max(int(0.06 * self.iterations), 1)
                part.size_decr = max(int(0.03 * self.iterations), 1)
            suite.fab.n_iter = self.iterations
        for part in (suite.apgd, suite.apgd_targeted):
            drop_broken(part)
        collector = _Collector(note)
        suite.apgd.logger = suite.apgd_targeted.logger = collector
        return suite


@dataclass
class _Collector:
    """Takes the place of pyautoattack's logger: warnings are passed on, the rest is dropped."""

    note: Note

    def warning(self, message: str) -> None:
        """Pass a warning on, in our options' words."""
        message = message.replace(' Please use version="rand".', " Use --attack aa-rand.")
        self.note(message.replace(" See flags_doc.md for details.", ""))

    def info(self, message: str) -> None:
        """Drop it."""

    debug = info


def _perturb(
    suite: Any, part: str, problem: AttackContext, z_BCHW: Tensor, y_B: Tensor, index_B: Sequence[int]
) -> Tensor:
    worker = {
        "apgd-ce": suite.apgd,
        "apgd-dlr": suite.apgd,
        "apgd-t": suite.apgd_targeted,
        "fab-t": suite.fab,
        "square": suite.square,
    }[part]
    if worker is suite.apgd:
        worker.loss = part.removeprefix("apgd-")
    worker.seed = problem.seed
    with _quiet(problem.device):
        # pyautoattack views its tensors flat, which only the contiguous layout allows.
        adversarial: Tensor = worker.perturb(z_BCHW.contiguous().clone(), y_B.clone())
    return adversarial.detach()


@contextlib.contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Give back torch's random streams and the trace function as they were."""
    tracer = sys.gettrace()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        sys.settrace(tracer)
