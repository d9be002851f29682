"""Checks of a whole study before its first step: those of the stages, for every arm.

Does not import torch. What depends on pixels, a teacher's weights or a device is checked by the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import Paradigm
from rnascl_cli.attacks.checks import audit_epsilon, checked_epsilons, checked_names
from rnascl_cli.core.errors import UserError, prefix_errors
from rnascl_cli.recipes.base import Layer, leaves
from rnascl_cli.recipes.data_spec import Images, check_there, images_of
from rnascl_cli.recipes.errors import Option
from rnascl_cli.recipes.load import resolve
from rnascl_cli.recipes.paradigms import (
    needs_teacher,
    no_holdout,
    no_tutors,
    other_source,
    required_baseline_teacher,
    required_teacher,
    trained_paradigm,
    uses_tutors,
)
from rnascl_cli.recipes.settings import AttackSettings, Recipe, SearchSettings, StudentSettings, TrainSettings
from rnascl_cli.recipes.study import Arm, Measurement, Study, common_layers
from rnascl_cli.spaces import Budget, NetworkSpace, space_named
from rnascl_cli.stages.search.derive import refuse_tutors_without_search, tutor_map_file
from rnascl_cli.teachers.files import PREFIX, find_teacher

LIMITS = ("recipe key 'search.max_macs'", "recipe key 'search.max_params'")


@dataclass(frozen=True)
class _ResolvedArm:
    """An arm with its settings resolved; ``search`` is the search it derives from, which may be another arm's."""

    arm: Arm
    search: SearchSettings
    train: TrainSettings
    paradigm: Paradigm


@dataclass(frozen=True)
class _Training:
    """A training or fine-tuning of an arm's student, whose recipe table is ``table``."""

    arm: _ResolvedArm
    where: str
    table: str
    settings: StudentSettings
    paradigm: Paradigm


def check_settings(study: Study, *, data: str | None = None) -> None:
    """Refuse settings that some step would refuse, whatever the teacher and the images are.

    Budgets are checked if the size of the images is known without reading them.

    Args:
        study: The study.
        data: ``--data``, which overrides the study's.

    Raises:
        UserError: A setting is wrong. The message names the arm, fine-tuning or measurement, and the key.
    """
    for space in study.spaces:
        space_named(space, where="'spaces'")
    common = _common(study, data)
    base = _resolved(common, {}, "settings")
    _check_space_key(study, common)
    with prefix_errors("recipe key 'data.spec'") if data is None else contextlib.nullcontext():
        images = images_of(base.data.spec)
    arms = _arms(study, common)
    for item in arms:
        with prefix_errors(f"arm '{item.arm.name}'"):
            if images is not None and item.arm.network_of is None:
                _check_budget(item.search, study.spaces, images)
            with prefix_errors("'tutors'"):
                _check_tutors(item)
    for training in _trainings(study, common, arms):
        with prefix_errors(training.where):
            if training.settings.select is not None and base.data.holdout == 0:
                raise no_holdout(f"recipe key '{training.table}.select'")
            _check_attention(training)
    for measurement in study.measurement:
        where = f"measurement '{measurement.name}'"
        settings = _resolved(common, {"attack": measurement.settings}, where).attack
        with prefix_errors(where):
            _check_attack(measurement, settings)


def check_teacher(study: Study, teacher: str | None) -> None:
    """Refuse a study that names no teacher although one of its steps needs one.

    Args:
        study: As checked by :func:`check_settings`.
        teacher: ``--teacher``, which overrides the study's.

    Raises:
        UserError: With the arm or fine-tuning that needs it.
    """
    common = _common(study, None)
    source = teacher or _resolved(common, {}, "settings").teacher
    arms = _arms(study, common)
    for item in arms:
        if item.arm.network_of is None:
            with prefix_errors(f"arm '{item.arm.name}', table 'search'"):
                required_teacher(source, item.search.paradigm, method=needs_teacher(item.search.robust))
    for training in _trainings(study, common, arms):
        settings, table = training.settings, ", table 'train'" if training.table == "train" else ""
        with prefix_errors(training.where + table):
            if isinstance(settings, TrainSettings) and settings.distill is not None:
                required_baseline_teacher(source, settings.distill)
            required_teacher(source, training.paradigm, method=needs_teacher(settings.robust))


def check_files(study: Study, *, data: str | None, teacher: str | None, all_steps: bool) -> None:
    """Refuse images or a teacher that are not on this machine, without reading them.

    CIFAR and timm's teachers may be downloaded later.

    Args:
        study: As checked by :func:`check_settings`.
        data: ``--data``, which overrides the study's.
        teacher: ``--teacher``, likewise.
        all_steps: Whether all steps will run; some of them may need no teacher.

    Raises:
        UserError: A folder or file does not exist.
    """
    base = _resolved(_common(study, data), {}, "settings")
    source = teacher or base.teacher
    with _readable():
        check_there(base.data.spec)
        if all_steps and source is not None and not source.startswith(PREFIX):
            find_teacher(source)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Name the path that the system refuses: a name that is too long, or a folder without permission."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{str(error.filename)[:80]}: {error.strerror}") from None


def _common(study: Study, data: str | None) -> list[Layer]:
    """Return the settings of all runs, ``--data`` last."""
    return [*common_layers(study), *([] if data is None else [{"data": {"spec": data}}])]


def _arms(study: Study, common: list[Layer]) -> list[_ResolvedArm]:
    recipes = {
        arm.name: _resolved(common, {"search": arm.search, "train": arm.train}, f"arm '{arm.name}'")
        for arm in study.arm
    }
    arms = []
    for arm in study.arm:
        search, train = recipes[arm.network_of or arm.name].search, recipes[arm.name].train
        with prefix_errors(f"arm '{arm.name}'"):
            arms.append(_ResolvedArm(arm, search, train, trained_paradigm(train, searched=search.paradigm)))
    return arms


def _trainings(study: Study, common: list[Layer], arms: Iterable[_ResolvedArm]) -> Iterator[_Training]:
    """Yield every training, then every fine-tuning."""
    for item in arms:
        yield _Training(item, f"arm '{item.arm.name}'", "train", item.train, item.paradigm)
    for finetuning in study.finetuning:
        where = f"finetuning '{finetuning.name}'"
        settings = _resolved(common, {"adv_finetune": finetuning.settings}, where).adv_finetune
        for item in arms:
            if item.arm.is_followed_by(finetuning.name):
                paradigm = settings.paradigm or item.paradigm
                yield _Training(item, f"{where} of arm '{item.arm.name}'", "adv_finetune", settings, paradigm)


def _resolved(common: list[Layer], own: Mapping[str, Layer], where: str) -> Recipe:
    """Resolve a recipe of the study; errors name the key in the file as if it were an option."""
    layers = [*common, own]
    typed = {key: Option(key, value) for layer in layers for key, value in leaves(layer)}
    with prefix_errors(where):
        return resolve(layers, options=typed)


def _check_space_key(study: Study, common: list[Layer]) -> None:
    """Refuse a space in recipe or settings other than the study's, with which a training would fail."""
    named = next((layer["space"] for layer in reversed(common) if "space" in layer), None)
    if named is not None and (others := [space for space in study.spaces if space != named]):
        raise UserError(
            f"recipe key 'space': is {named}, and 'spaces' has {others[0]}; leave the key out of the recipe and the "
            "settings"
        )


def _check_budget(settings: SearchSettings, spaces: Iterable[str], images: Images) -> None:
    budget = Budget(settings.max_macs, settings.max_params)
    for space in spaces if budget or settings.pareto is not None else ():
        networks = NetworkSpace(space_named(space), num_classes=images.num_classes, input_size=images.input_size)
        networks.check(budget, where=LIMITS)
        if settings.pareto is not None:
            with prefix_errors("recipe key 'search.pareto'"):
                networks.check_front(settings.pareto, budget)


def _check_tutors(item: _ResolvedArm) -> None:
    """Refuse a tutor map that does not exist or that the search has no use for."""
    arm, paradigm = item.arm, item.search.paradigm
    if not uses_tutors(paradigm):
        search = "the arm's own" if arm.network_of is None else f"that of arm '{arm.network_of}'"
        refuse_tutors_without_search(arm.tutors, paradigm=paradigm, where=search)
    with _readable():
        tutor_map_file(arm.tutors)


def _check_attention(training: _Training) -> None:
    """Refuse an attention term without tutors, or with other layers than those of the tutor map."""
    search, table = training.arm.search, training.table
    if not uses_tutors(training.paradigm):
        return
    if not uses_tutors(search.paradigm):
        with prefix_errors(f"recipe key '{table}.paradigm'"):
            raise no_tutors(training.paradigm, searched=search.paradigm)
    source = training.settings.attention.source
    if source != search.attention.source:
        raise other_source(f"recipe key '{table}.attention.source': the teacher", source)


def _check_attack(measurement: Measurement, settings: AttackSettings) -> None:
    norm, protocol = settings.norm, settings.protocol
    checked_names(settings.attacks, norm=norm, protocol=protocol, option="recipe key 'attack.attacks'")
    epsilons = checked_epsilons(settings.eps, norm=norm, option="recipe key 'attack.eps'")
    if measurement.audit:
        audit_epsilon(epsilons, norm=norm, protocol=protocol, option="'audit'")
