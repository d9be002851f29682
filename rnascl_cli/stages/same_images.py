"""Whether a run has the images that the artifact given to it was made with, and which of them a student has seen."""

from __future__ import annotations

from rnascl_cli.artifacts.documents import Provenance
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


def check_held_out_are_unseen(recipe: Recipe, data: Data, *, before: Provenance, chooses: str | None) -> None:
    """Say so where images are held out that a student was trained on, and refuse to choose an epoch by them.

    Args:
        recipe: Of the run that goes on with the student.
        data: Its images.
        before: Of the run that trained the student.
        chooses: What chooses an epoch on the held-out images, e.g. ``"--select robust"``; None if nothing does.

    Raises:
        UserError: The choice would be by images that the student knows.
    """
    if before.data is None or before.data.spec != data.spec or not len(data.holdout):
        return
    if not (differences := drawn_otherwise(recipe, before)):
        return
    cause = (
        f"with {' and '.join(differences)} other images are held out than when the student was trained, so that it "
        "may have been trained on them"
    )
    if chooses:
        raise UserError(f"{chooses}: {cause}; draw them as before")
    warn(f"data.holdout: {cause}: holdout_accuracy is none on unseen images")


def drawn_otherwise(recipe: Recipe, before: Provenance) -> list[str]:
    """Return what is set otherwise than before, of all that decides which images are held out: words for a message."""
    was = before.recipe.get("data", {})
    now = {"limit_train": recipe.data.limit_train, "holdout": recipe.data.holdout}
    found = [
        f"data.{name} {_said(value)} ({_said(was[name])} before)"
        for name, value in now.items()
        if _differs(was, name, value)
    ]
    if recipe.seed != before.seed:
        found.insert(0, f"seed {recipe.seed} ({before.seed} before)")
    return found


def _differs(was: dict[str, object], name: str, value: object) -> bool:
    return name in was and was[name] != value


def _said(value: object) -> str:
    return "unlimited" if value is None else str(value)
