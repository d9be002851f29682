"""Whether a run has the images that the artifact given to it was made with, and which of them a student has seen."""

from __future__ import annotations

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, Provenance, TrainDocument
from rnascl_cli.console import warn
from rnascl_cli.data import Data
from rnascl_cli.errors import UserError
from rnascl_cli.recipes import Recipe


def warn_of_changed_images(recipe: Recipe, data: Data, *, before: Provenance) -> None:
    """Say so where the same images were asked for as when the artifact was made, and others came."""
    was, now = before.data, data.reference()
    if was is None or drawn_otherwise(recipe, before):
        return
    if was.model_copy(update={"fingerprint": now.fingerprint}) == now != was:
        warn(f"--data {data.spec}: the images have changed since the artifact given was made")


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
    warn(f"data.holdout: {cause}, so that it may have been trained on them: holdout_accuracy is none on unseen images")
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
