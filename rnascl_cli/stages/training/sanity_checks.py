"""Checks for faults that leave all numbers finite but train nothing, on the first batch of each epoch.

Only once per epoch, because the result must be copied from the device. Also checks on the data of earlier stages.

Shape suffixes: B images, K classes, L layers, P pixels of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, Provenance, TrainDocument
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import RunError, UserError
from rnascl_cli.data import Data
from rnascl_cli.engine.training_loop import at_current_step
from rnascl_cli.recipes.adversarial import Perturbation
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.teachers.forward import TeacherOutput

SAME = 1e-6  # of the largest logit: a spread over the batch below this is rounding


class SanityCheck:
    """Checks one batch per epoch and reports each finding once.

    Attributes:
        pending: Whether this epoch has not been checked yet.
    """

    def __init__(self) -> None:
        self.pending = True
        self._reported: set[tuple[str, str]] = set()

    def start_epoch(self) -> None:
        """Check the next batch."""
        self.pending = True

    def run(
        self,
        teacher_output: TeacherOutput,
        *,
        kl: bool,
        teacher_layers: Sequence[str],
        student_layers: Sequence[str],
        student_BLP: Tensor | None,
        method: str | None = None,
    ) -> None:
        """Check the outputs of teacher and student for a batch, unless this epoch was checked already.

        Args:
            teacher_output: The teacher's logits and maps.
            kl: Whether the loss has the KL term.
            teacher_layers: Layer names of the teacher's maps.
            student_layers: Layer names of the student's maps.
            student_BLP: The student's maps; None without the attention term.
            method: The adversarial method, if its targets are the teacher's logits.

        Raises:
            RunError: A term compares logits, and the teacher's logits are the same for every image.
        """
        if not self.pending:
            return
        self.pending = False
        if (kl or method) and constant(teacher_output.logits_BK):
            remedy = f"use another method than {method}" if method else "leave the term out with --paradigm"
            what = (
                f"the teacher gives the same logits for every image of the batch; name another --teacher, or {remedy}"
            )
            raise RunError(at_current_step("adversarial" if method else "kl", what))
        if student_BLP is None or teacher_output.maps_BTP is None:
            return
        for who, layers, maps_BLP in (
            ("teacher", teacher_layers, teacher_output.maps_BTP),
            ("student", student_layers, student_BLP),
        ):
            self._report(who, [name for name in zero_layers(maps_BLP, layers) if (who, name) not in self._reported])

    def _report(self, who: str, layers: Sequence[str]) -> None:
        if not layers:
            return
        self._reported.update((who, name) for name in layers)
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        shown = f"{', '.join(layers[:3])}{more}"
        warning(at_current_step("attention", f"all-zero maps on every image of the batch: layers {shown} of the {who}"))


def constant(logits_BK: Tensor) -> bool:
    """Return whether all images of a batch of two or more have the same logits, up to rounding."""
    if len(logits_BK) < 2:
        return False
    spread = (logits_BK.amax(dim=0) - logits_BK.amin(dim=0)).max()
    return bool(spread <= SAME * logits_BK.abs().max())


def zero_layers(maps_BLP: Tensor, layers: Sequence[str]) -> list[str]:
    """Return the names of the layers whose map is zero everywhere on every image."""
    zero_L = (maps_BLP == 0).all(dim=2).all(dim=0)
    return [name for name, zero in zip(layers, zero_L.tolist(), strict=True) if zero]


def warn_without_perturbation(stage: str, robust: Perturbation | None, *, term: str) -> None:
    """Warn when the settings leave the training images as they are."""
    if robust is not None and robust.eps == 0:
        warning(f"{stage}: robust.eps is 0, so no image is perturbed; '{term}' is a loss on clean images")


def warn_of_changed_images(recipe: Recipe, data: Data, *, before: Provenance) -> None:
    """Warn if the same data settings give other images than when the artifact was made."""
    was, now = before.data, data.reference()
    if was is None or drawn_otherwise(recipe, before):
        return
    if was.model_copy(update={"fingerprint": now.fingerprint}) == now != was:
        warning(f"--data {data.spec}: the images have changed since the artifact given was made")


def may_have_seen_held_out(
    recipe: Recipe, data: Data, *, before: TrainDocument | AdvFinetuneDocument, chooses: str | None
) -> bool:
    """Return whether the student may have been trained on images that are now held out, and warn if so.

    Data with the same classes count as the same data set, because one folder can have several paths.

    Args:
        recipe: Recipe of the new run.
        data: Its images.
        before: Document of the run that trained the student.
        chooses: What selects an epoch on the held-out images, e.g. ``"--select robust"``; None if nothing does.

    Raises:
        UserError: It may, and an epoch would be selected on these images.
    """
    was = before.provenance.data
    if was is None or was.classes != data.classes or not len(data.holdout):
        return False
    if differences := drawn_otherwise(recipe, before.provenance):
        cause = f"with {' and '.join(differences)} other images are held out than when the student was trained"
    elif isinstance(before, AdvFinetuneDocument) and before.holdout_seen:
        cause = "the fine-tuning before this one held out other images than the training before it"
    else:
        return False
    if chooses:
        raise UserError(
            f"{chooses}: {cause}, so that it may have been trained on them; use the settings of the training"
        )
    warning(
        f"data.holdout: {cause}, so that it may have been trained on them: holdout_accuracy is not on unseen images"
    )
    return True


def drawn_otherwise(recipe: Recipe, before: Provenance) -> list[str]:
    """Return the changed settings among those that determine which images are held out, for a message."""
    holdout = before.recipe.get("data", {}).get("holdout", recipe.data.holdout)
    limit = recipe.data.limit_train if before.data is None else before.data.limit_train
    changes = {
        "seed": (before.seed, recipe.seed),
        "data.limit_train": (limit, recipe.data.limit_train),
        "data.holdout": (holdout, recipe.data.holdout),
    }
    return [f"{key} {_shown(now)} ({_shown(was)} before)" for key, (was, now) in changes.items() if was != now]


def _shown(value: object) -> str:
    return "unlimited" if value is None else str(value)
