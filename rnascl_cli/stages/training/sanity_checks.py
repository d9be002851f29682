"""Faults that leave every number finite and yet train nothing: looked for in the first batch of each epoch.

Once an epoch, because the answer must be fetched from the device.

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
from rnascl_cli.recipes import PerturbationSettings, Recipe, RobustMethod, RobustSettings
from rnascl_cli.teachers.forward import TeacherOutput

OWN_SETTINGS: dict[RobustMethod, tuple[str, ...]] = {
    "trades": ("beta",),
    "mart": ("mart_lambda",),
    "ard": ("ard_alpha", "ard_temperature"),
    "rslad": ("rslad_share",),
}
"""What only one method of adversarial training reads."""
SAME = 1e-6  # of the largest logit: a spread over the batch below this is rounding


class SanityCheck:
    """Looks at a batch when asked to, and says each finding once.

    Attributes:
        due: Whether the epoch has not had its look.
    """

    def __init__(self) -> None:
        self.pending = True
        self._said: set[tuple[str, str]] = set()

    def start_epoch(self) -> None:
        """Look at the next batch."""
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
        """Look at what teacher and student say about a batch, unless the epoch has had its look.

        Args:
            teacher_output: The teacher's logits and maps.
            kl: Whether the loss has the KL term.
            teacher_layers: Names of the teacher_output's maps.
            student_layers: Names of the student's maps.
            student_BLP: The student's maps; None where the loss has no attention term.
            method: Of adversarial training, if its targets are the teacher's logits.

        Raises:
            RunError: A term compares logits, and the teacher gives the same ones for every image.
        """
        if not self.pending:
            return
        self.pending = False
        if (kl or method) and constant(teacher_output.logits_BK):
            mend = f"use another method than {method}" if method else "leave the term out with --paradigm"
            what = (
                "the teacher gives the same logits for every image of the batch and can teach nothing; name another "
                f"--teacher, or {mend}"
            )
            raise RunError(at_current_step("adversarial" if method else "kl", what))
        if student_BLP is None or teacher_output.maps_BTP is None:
            return
        for who, layers, maps_BLP in (
            ("teacher", teacher_layers, teacher_output.maps_BTP),
            ("student", student_layers, student_BLP),
        ):
            self._report(who, [name for name in zero_layers(maps_BLP, layers) if (who, name) not in self._said])

    def _report(self, who: str, layers: Sequence[str]) -> None:
        if not layers:
            return
        self._said.update((who, name) for name in layers)
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        shown = f"{', '.join(layers[:3])}{more}"
        warning(at_current_step("attention", f"all-zero maps on every image of the batch: layers {shown} of the {who}"))


def constant(logits_BK: Tensor) -> bool:
    """Return whether two or more images have all the same logits, up to rounding."""
    if len(logits_BK) < 2:
        return False
    spread = (logits_BK.amax(dim=0) - logits_BK.amin(dim=0)).max()
    return bool(spread <= SAME * logits_BK.abs().max())


def zero_layers(maps_BLP: Tensor, layers: Sequence[str]) -> list[str]:
    """Return the names of the layers whose map is zero everywhere on every image."""
    zero_L = (maps_BLP == 0).all(dim=2).all(dim=0)
    return [name for name, zero in zip(layers, zero_L.tolist(), strict=True) if zero]


def warn_without_perturbation(stage: str, perturbation: PerturbationSettings, *, term: str) -> None:
    """Say when the settings leave the training images as they are."""
    if perturbation.eps == 0:
        warning(f"{stage}: perturbation.eps is 0, so no image is perturbed; '{term}' is a loss on clean images")


def warn_of_idle_settings(stage: str, settings: RobustSettings) -> None:
    """Say which settings are not the default's, and have no effect as they are another method's."""
    for method, names in OWN_SETTINGS.items():
        for name in names:
            if method != settings.method and getattr(settings, name) != type(settings).model_fields[name].default:
                instead = f"--method is {settings.method}" if settings.method else "there is no --method"
                warning(f"{stage}: {name} is a setting of {method}, and {instead}; it has no effect")


def warn_of_changed_images(recipe: Recipe, data: Data, *, before: Provenance) -> None:
    """Say so where the same images were asked for as when the artifact was made, and others came."""
    was, now = before.data, data.reference()
    if was is None or drawn_otherwise(recipe, before):
        return
    if was.model_copy(update={"fingerprint": now.fingerprint}) == now != was:
        warning(f"--data {data.spec}: the images have changed since the artifact given was made")


def may_have_seen_held_out(
    recipe: Recipe, data: Data, *, before: TrainDocument | AdvFinetuneDocument, chooses: str | None
) -> bool:
    """Return whether images are held out that a student may have been trained on; say so where they are.

    Images of the same classes are taken for the same set, as one folder has many names.

    Args:
        recipe: Of the run that goes on with the student.
        data: Its images.
        before: What the run left that trained the student.
        chooses: What chooses an epoch on the held-out images, e.g. ``"--select robust"``; None if nothing does.

    Raises:
        UserError: They are, and the choice would be by them.
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
        raise UserError(f"{chooses}: {cause}, so that it may have been trained on them; draw them as the training did")
    warning(
        f"data.holdout: {cause}, so that it may have been trained on them: holdout_accuracy is none on unseen images"
    )
    return True


def drawn_otherwise(recipe: Recipe, before: Provenance) -> list[str]:
    """Return what is set otherwise than before, of all that decides which images are held out: words for a message."""
    holdout = before.recipe.get("data", {}).get("holdout", recipe.data.holdout)
    limit = recipe.data.limit_train if before.data is None else before.data.limit_train
    changes = {
        "seed": (before.seed, recipe.seed),
        "data.limit_train": (limit, recipe.data.limit_train),
        "data.holdout": (holdout, recipe.data.holdout),
    }
    return [f"{key} {_said(now)} ({_said(was)} before)" for key, (was, now) in changes.items() if was != now]


def _said(value: object) -> str:
    return "unlimited" if value is None else str(value)
