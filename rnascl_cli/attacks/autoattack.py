"""AutoAttack (Croce and Hein 2020) through the ``pyautoattack`` package.

The parts, their settings and their arithmetic are pyautoattack's. Only its outer loop is replaced: the evaluator
passes the images not broken yet from part to part, in the same order and with the same seeds. Verdicts are the same,
while progress, interruption and the float32 recount work as for any other attack, and APGD stops on images it has
broken (:mod:`rnascl_cli.attacks.early_stopping`). pyautoattack's side effects (reseeding torch's global stream,
replacing the trace function, call counts shared between models, logging) are undone.

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

from rnascl_cli.attacks.checks import PARTS
from rnascl_cli.attacks.early_stopping import drop_broken
from rnascl_cli.attacks.interface import Attack, AttackContext, AttackPart, Note
from rnascl_cli.core.errors import UserError

TARGETS = 9
SQUARE_SHARE = 0.002
"""AutoAttack's own warning threshold: share of images that Square breaks after the white-box parts."""
_SMALLEST_CLASS_COUNT = {"apgd-t": 4, "apgd-dlr": 3}  # the DLR losses sort this many logits


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack's standard or rand version, or one of its parts in the standard version's settings.

    Attributes:
        iterations: Steps of APGD and FAB; the published value is 100.
        queries: Of Square; the published value is 5000.
    """

    steps: int | None = None
    iterations: int = 100
    queries: int = 5000

    def part_names(self, num_classes: int) -> tuple[str, ...]:
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
        names = self.part_names(num_classes)
        targeted = "apgd-t" in names or "fab-t" in names
        published = (self.iterations, self.queries) == (100, 5000)
        return published and names == PARTS[self.name] and not (targeted and num_classes <= TARGETS)

    def parts(self, context: AttackContext, note: Note) -> list[AttackPart]:
        """Return the parts in AutoAttack's order."""
        names = self.part_names(context.num_classes)
        if left_out := [name for name in PARTS[self.name] if name not in names]:
            note(f"{', '.join(left_out)} left out: the loss needs more than {context.num_classes} classes")
        targets = min(TARGETS, context.num_classes - 1)
        suite = self._suite(context, targets, note)
        passes = {
            "apgd-ce": self.iterations * suite.apgd.eot_iter,
            "apgd-dlr": self.iterations * suite.apgd.eot_iter,
            "apgd-t": self.iterations * targets,
            "fab-t": 2 * self.iterations * targets,
            "square": self.queries,
        }
        return [AttackPart(name, passes[name], partial(_perturb, suite, name, context)) for name in names]

    def check_model(self, context: AttackContext, z_BCHW: Tensor, y_B: Tensor) -> list[str]:
        """Run AutoAttack's checks for randomized, probability-valued and dynamic models on the first batch."""
        from pyautoattack import checks

        messages: list[str] = []
        collector = _Collector(messages.append)
        with _without_side_effects(context.device):
            if self.name != "aa-rand":
                checks.check_randomized(context.plain, z_BCHW, y_B, bs=len(z_BCHW), logger=collector)
            checks.check_range_output(context.plain, z_BCHW, logger=collector)
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))
            checks.check_dynamic(context.plain, z_BCHW, False, logger=collector)
        return messages

    def _suite(self, context: AttackContext, targets: int, note: Note) -> Any:
        from pyautoattack import AutoAttack as Suite

        suite: Any = Suite(
            context.exact,
            device=context.device,
            eps=context.eps,
            norm=context.norm,
            seed=context.seed,
            version="rand" if self.name == "aa-rand" else "standard",
        )
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = targets
        suite.fab.targeted = True
        suite.fab.n_iter = self.iterations
        suite.square.n_queries = self.queries
        for apgd in (suite.apgd, suite.apgd_targeted):
            if self.iterations != 100:
                apgd.n_iter = apgd.n_iter_orig = self.iterations
                apgd.n_iter_2 = max(int(0.22 * self.iterations), 1)
                apgd.n_iter_min = max(int(0.06 * self.iterations), 1)
                apgd.size_decr = max(int(0.03 * self.iterations), 1)
            drop_broken(apgd)
            apgd.logger = _Collector(note)
        return suite


@dataclass
class _Collector:
    """Replaces pyautoattack's logger: passes warnings on, and drops the rest."""

    note: Note

    def warning(self, message: str) -> None:
        """Pass a warning on, with the option of this tool."""
        message = message.replace(' Please use version="rand".', " Use --attack aa-rand.")
        self.note(message.replace(" See flags_doc.md for details.", ""))

    def info(self, message: str) -> None:
        """Drop it."""

    debug = info


def _perturb(
    suite: Any, name: str, context: AttackContext, z_BCHW: Tensor, y_B: Tensor, index_B: Sequence[int]
) -> Tensor:
    attack = {"apgd-t": suite.apgd_targeted, "fab-t": suite.fab, "square": suite.square}.get(name, suite.apgd)
    if attack is suite.apgd:
        attack.loss = name.removeprefix("apgd-")
    attack.seed = context.seed
    with _without_side_effects(context.device):
        # pyautoattack views its tensors flat, which requires the contiguous layout.
        adversarial: Tensor = attack.perturb(z_BCHW.contiguous().clone(), y_B.clone())
    return adversarial.detach()


@contextlib.contextmanager
def _without_side_effects(device: torch.device) -> Iterator[None]:
    """Restore torch's random streams and the trace function afterwards."""
    tracer = sys.gettrace()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        sys.settrace(tracer)
