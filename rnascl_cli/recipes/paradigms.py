"""What the four paradigms, the methods and the rivals need, and what of them excludes what. No tensors here.

The stages ask as they begin; a study asks of all its steps before the first one.
"""

from __future__ import annotations

from rnascl_cli.artifacts.documents import TUTORED, Paradigm
from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes import TAUGHT_METHODS, BaselineSettings, KLSettings, RobustMethod, RobustSettings, TrainSettings


def uses_kl(paradigm: Paradigm, kl: KLSettings) -> bool:
    """Return whether there is a KL term: the paradigm has it (section 4.3), and its weight is not zero."""
    return paradigm in ("kl", "rnas-cl") and kl.weight > 0


def uses_tutors(paradigm: Paradigm) -> bool:
    """Return whether the paradigm has the attention term (section 4.3)."""
    return paradigm in TUTORED


def needs_teacher(settings: RobustSettings | None) -> RobustMethod | None:
    """Return the method of a table if its targets are a teacher's logits."""
    return settings.method if settings is not None and settings.method in TAUGHT_METHODS else None


def trained_paradigm(settings: TrainSettings, *, searched: Paradigm) -> Paradigm:
    """Return the paradigm of a training: beside a rival loss ``standard``, as the rival stands for all teacher terms.

    Args:
        settings: Of the training.
        searched: The paradigm of the search, which is the training's where the settings name none.

    Raises:
        UserError: A rival loss is asked for beside a paradigm with teacher terms, or on perturbed images.
    """
    if settings.distill is None:
        return settings.paradigm or searched
    if settings.method is not None:
        raise UserError(
            f"--distill {settings.distill.name}: compares clean images, as it was published; leave out --method "
            f"{settings.method} (recipe key train.method) and run adv-finetune after it"
        )
    if settings.paradigm not in (None, "standard"):
        raise UserError(
            f"--distill {settings.distill.name}: takes the place of the paradigm's teacher terms; leave out either it "
            f"(recipe key train.distill) or --paradigm {settings.paradigm} (recipe key train.paradigm)"
        )
    return "standard"


def required_teacher(source: str | None, paradigm: Paradigm, *, method: RobustMethod | None = None) -> str | None:
    """Return the teacher that is to be read; None where neither paradigm nor method has one.

    Args:
        source: The ``--teacher`` value.
        paradigm: Which terms of eqs. (2) and (3) there are.
        method: Of adversarial training, if its targets are the teacher's logits.

    Raises:
        UserError: One is needed, and none is named.
    """
    if paradigm == "standard" and method is None:
        return None
    if source is None and method is not None:
        raise UserError(f"--teacher: method '{method}' learns from a teacher's logits; name one or use another method")
    if source is None:
        raise UserError(f"--teacher: paradigm '{paradigm}' needs a teacher; name one or use --paradigm standard")
    return source


def required_baseline_teacher(source: str | None, settings: BaselineSettings) -> str:
    """Return the teacher of a rival loss.

    Args:
        source: The ``--teacher`` value, or the teacher of the search.
        settings: Of the loss.

    Raises:
        UserError: There is none.
    """
    if source is None:
        raise UserError(
            f"--distill {settings.name}: needs a teacher, and the derived document names none; give --teacher"
        )
    return source


def no_tutors(paradigm: Paradigm, *, searched: Paradigm) -> UserError:
    """Return the refusal of a paradigm with tutors for a network whose search had none."""
    return UserError(
        f"paradigm '{paradigm}' needs a tutor map, and this network was searched as '{searched}'; "
        "search with --paradigm rnas-cl or icc, or train with --paradigm kl or standard"
    )


def other_tap(layers: str, tap: str) -> UserError:
    """Return the refusal of layers (``tap`` says of which kind) that are not those of the tutor map."""
    return UserError(f"{layers}: its {tap} layers are not those of the tutor map; set attention.tap as in the search")


def no_holdout(who: str) -> UserError:
    """Return the refusal to choose an epoch where no image is held out; ``who`` would choose it."""
    return UserError(f"data.holdout: {who} chooses its epoch on held-out training images; set it above 0")
