"""Rules of paradigms, adversarial methods and distillation baselines. No tensors here.

Stages check them at their start; a study checks them for all steps before the first one.
"""

from __future__ import annotations

from rnascl_cli.artifacts.documents import TUTORED, Paradigm
from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes.adversarial import TEACHER_LOGIT_METHODS, RobustMethod, RobustSettings
from rnascl_cli.recipes.baselines import BaselineSettings
from rnascl_cli.recipes.settings import KLSettings, TrainSettings


def uses_kl(paradigm: Paradigm, kl: KLSettings) -> bool:
    """Return whether the loss has a KL term: the paradigm has one (section 4.3), and its weight is not zero."""
    return paradigm in ("kl", "rnas-cl") and kl.weight > 0


def uses_tutors(paradigm: Paradigm) -> bool:
    """Return whether the paradigm has the attention term (section 4.3)."""
    return paradigm in TUTORED


def needs_teacher(settings: RobustSettings | None) -> RobustMethod | None:
    """Return the adversarial method if its targets are a teacher's logits."""
    return settings.method if settings is not None and settings.method in TEACHER_LOGIT_METHODS else None


def trained_paradigm(settings: TrainSettings, *, searched: Paradigm) -> Paradigm:
    """Return the paradigm of a training; with a baseline loss ``standard``, as it replaces all teacher terms.

    Args:
        settings: Settings of the training.
        searched: The paradigm of the search, which is the default.

    Raises:
        UserError: A baseline loss is combined with a paradigm with teacher terms or with adversarial training.
    """
    if settings.distill is None:
        return settings.paradigm or searched
    if settings.method is not None:
        raise UserError(
            f"--distill {settings.distill.name}: trains on clean images, as published; leave out --method "
            f"{settings.method} (recipe key train.robust) and run adv-finetune after it"
        )
    if settings.paradigm not in (None, "standard"):
        raise UserError(
            f"--distill {settings.distill.name}: replaces the paradigm's teacher terms; leave out either it "
            f"(recipe key train.distill) or --paradigm {settings.paradigm} (recipe key train.paradigm)"
        )
    return "standard"


def required_teacher(source: str | None, paradigm: Paradigm, *, method: RobustMethod | None = None) -> str | None:
    """Return the teacher to load; None if neither the paradigm nor the method uses one.

    Args:
        source: The ``--teacher`` value.
        paradigm: Determines the terms of eqs. (2) and (3).
        method: The adversarial method, if its targets are the teacher's logits.

    Raises:
        UserError: A teacher is needed, and none is named.
    """
    if paradigm == "standard" and method is None:
        return None
    if source is None and method is not None:
        raise UserError(f"--teacher: method '{method}' learns from a teacher's logits; name one or use another method")
    if source is None:
        raise UserError(f"--teacher: paradigm '{paradigm}' needs a teacher; name one or use --paradigm standard")
    return source


def required_baseline_teacher(source: str | None, settings: BaselineSettings) -> str:
    """Return the teacher of a distillation baseline.

    Args:
        source: The ``--teacher`` value, or the teacher of the search.
        settings: Settings of the baseline.

    Raises:
        UserError: There is none.
    """
    if source is None:
        raise UserError(
            f"--distill {settings.name}: needs a teacher, and the derived document names none; give --teacher"
        )
    return source


def no_tutors(paradigm: Paradigm, *, searched: Paradigm) -> UserError:
    """Return the error for a paradigm with tutors and a network whose search had none."""
    return UserError(
        f"paradigm '{paradigm}' needs a tutor map, and this network was searched as '{searched}'; "
        "search with --paradigm rnas-cl or icc, or train with --paradigm kl or standard"
    )


def other_source(layers: str, source: str) -> UserError:
    """Return the error for layers of kind ``source`` that are not those of the tutor map."""
    return UserError(
        f"{layers}: its {source} layers are not those of the tutor map; set attention.source as in the search"
    )


def no_holdout(who: str) -> UserError:
    """Return the error for model selection by ``who`` without held-out images."""
    return UserError(f"data.holdout: {who} selects the epoch on held-out training images; set it above 0")
