"""What is wrong with a study, said before its first step: the stages' own checks, asked of every arm at once.

No tensors here, as with the plan. What only images, a teacher's weights or a device can tell is left to the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import Paradigm
from rnascl_cli.attacks.names import checked_names
from rnascl_cli.core.errors import UserError, prefix_errors
from rnascl_cli.recipes import Layer, Option, Recipe, StudentSettings, resolve
from rnascl_cli.recipes.data_spec import Images, check_there, images_of
from rnascl_cli.recipes.paradigms import (
    needs_teacher,
    no_holdout,
    no_tutors,
    other_tap,
    required_baseline_teacher,
    required_teacher,
    trained_paradigm,
    uses_tutors,
)
from rnascl_cli.recipes.study import Arm, Finetuning, Measurement, Study, common_layers, flat
from rnascl_cli.spaces import Budget, NetworkSpace, space_named
from rnascl_cli.stages.attack.epsilons import audit_epsilon, epsilons_of
from rnascl_cli.stages.search.derive import find_map, untutored
from rnascl_cli.teachers.files import PREFIX, find_teacher

LIMITS = ("recipe key 'search.max_macs'", "recipe key 'search.max_params'")


@dataclass(frozen=True)
class _Route:
    """What an arm does, resolved.

    Attributes:
        arm: As in the file.
        source: The recipe of the arm whose search it derives from, which may be its own.
        recipe: Its own.
        paradigm: Of its training.
    """

    arm: Arm
    source: Recipe
    recipe: Recipe
    paradigm: Paradigm

    @property
    def searched(self) -> Paradigm:
        """The paradigm of the search."""
        return self.source.search.paradigm


def check_settings(study: Study, *, data: str | None = None) -> None:
    """Refuse what no step could do, whatever the teacher and the images are.

    Args:
        study: The study.
        data: ``--data`` of every run, over what the study says.

    Raises:
        UserError: A space that does not exist; a setting that no recipe has; a budget that no network of a space keeps
            (told where the size of the images is known without reading them); an attack, eps or tutor map that there
            is not; a training without the tutors that it needs, or with what excludes each other. The message names
            the arm, fine-tuning or measurement, and the key.
    """
    for space in study.spaces:
        space_named(space, where="'spaces'")
    common = _common(study, data)
    base = _resolved(common, {}, "settings")
    _check_space_key(study, common)
    with prefix_errors("recipe key 'data.spec'") if data is None else contextlib.nullcontext():
        images = images_of(base.data.spec)
    routes = _routes(study, common)
    for route in routes:
        with prefix_errors(f"arm '{route.arm.name}'"):
            if images is not None and route.arm.network_of is None:
                _check_budget(route.recipe, study.spaces, images)
            _check_tutors(route)
    for finetuning, recipe, followed in _finetunings(study, common, routes):
        for route in followed:
            with prefix_errors(f"finetuning '{finetuning.name}' of arm '{route.arm.name}'"):
                paradigm = recipe.adv_finetune.paradigm or route.paradigm
                _check_student(recipe, recipe.adv_finetune, "adv_finetune", paradigm, route)
    for measurement in study.measurement:
        where = f"measurement '{measurement.name}'"
        recipe = _resolved(common, {"attack": measurement.settings}, where)
        with prefix_errors(where):
            _check_attack(measurement, recipe)


def check_teacher(study: Study, teacher: str | None) -> None:
    """Refuse a study that names no teacher although one of its steps needs one.

    Args:
        study: As checked by :func:`check_settings`.
        teacher: ``--teacher``; None where it is not given, and the study's settings may name one.

    Raises:
        UserError: With the arm or fine-tuning that needs it.
    """
    common = _common(study, None)
    source = teacher or _resolved(common, {}, "settings").teacher
    routes = _routes(study, common)
    for route in routes:
        search, train = route.recipe.search, route.recipe.train
        if route.arm.network_of is None:
            with prefix_errors(f"arm '{route.arm.name}', table 'search'"):
                required_teacher(source, search.paradigm, method=needs_teacher(search.robust))
        with prefix_errors(f"arm '{route.arm.name}', table 'train'"):
            if train.distill is not None:
                required_baseline_teacher(source, train.distill)
            required_teacher(source, route.paradigm, method=needs_teacher(train))
    for finetuning, recipe, followed in _finetunings(study, common, routes):
        settings = recipe.adv_finetune
        for route in followed:
            with prefix_errors(f"finetuning '{finetuning.name}' of arm '{route.arm.name}'"):
                required_teacher(source, settings.paradigm or route.paradigm, method=needs_teacher(settings))


def check_images(study: Study, *, data: str | None) -> None:
    """Refuse images that are not on this machine; none is read. CIFAR is downloaded, and need not be there yet.

    Args:
        study: As checked by :func:`check_settings`.
        data: ``--data`` of every run, over what the study says.

    Raises:
        UserError: Their folder, or a split of it, is not there.
    """
    with _readable():
        check_there(_resolved(_common(study, data), {}, "settings").data.spec)


def check_teacher_file(study: Study, *, teacher: str | None) -> None:
    """Refuse a teacher that is named and not on this machine, even where no step needs one; it is not read.

    Args:
        study: As checked by :func:`check_settings`.
        teacher: ``--teacher``, over what the study says. timm's teachers are downloaded, and need not be there yet.

    Raises:
        UserError: Its file is not there.
    """
    source = teacher or _resolved(_common(study, None), {}, "settings").teacher
    if source is not None and not source.startswith(PREFIX):
        with _readable():
            find_teacher(source)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Name the place where the system refuses to look: a name too long, or a folder that may not be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{str(error.filename)[:80]}: {error.strerror}") from None


def _common(study: Study, data: str | None) -> list[Layer]:
    """Return what is under every run, ``--data`` last."""
    return [*common_layers(study), *([] if data is None else [{"data": {"spec": data}}])]


def _routes(study: Study, common: list[Layer]) -> list[_Route]:
    recipes = {
        arm.name: _resolved(common, {"search": arm.search, "train": arm.train}, f"arm '{arm.name}'")
        for arm in study.arm
    }
    routes = []
    for arm in study.arm:
        source, recipe = recipes[arm.network_of or arm.name], recipes[arm.name]
        with prefix_errors(f"arm '{arm.name}'"):
            paradigm = trained_paradigm(recipe.train, searched=source.search.paradigm)
        routes.append(_Route(arm, source, recipe, paradigm))
    return routes


def _finetunings(
    study: Study, common: list[Layer], routes: Iterable[_Route]
) -> Iterator[tuple[Finetuning, Recipe, list[_Route]]]:
    """Yield each fine-tuning, its recipe, and the arms that it follows."""
    for finetuning in study.finetuning:
        recipe = _resolved(common, {"adv_finetune": finetuning.settings}, f"finetuning '{finetuning.name}'")
        yield finetuning, recipe, [route for route in routes if route.arm.is_followed_by(finetuning.name)]


def _resolved(common: list[Layer], own: Mapping[str, Layer], where: str) -> Recipe:
    """Resolve a recipe of the study; a wrong value is told as that of an option, which is the key in the file."""
    layers = [*common, own]
    typed = {key: Option(key, value) for layer in layers for key, value in flat(dict(layer))}
    with prefix_errors(where):
        return resolve(layers, options=typed)


def _check_space_key(study: Study, common: list[Layer]) -> None:
    """Refuse a space in the recipe or the settings that is not the study's: a training would be refused by it."""
    named = next((layer["space"] for layer in reversed(common) if "space" in layer), None)
    if named is not None and (others := [space for space in study.spaces if space != named]):
        raise UserError(
            f"recipe key 'space': is {named}, and 'spaces' has {others[0]}; leave the key out of the recipe and the "
            "settings"
        )


def _check_budget(recipe: Recipe, spaces: Iterable[str], images: Images) -> None:
    settings = recipe.search
    budget = Budget(settings.max_macs, settings.max_params)
    for space in spaces if budget or settings.pareto is not None else ():
        networks = NetworkSpace(space_named(space), num_classes=images.num_classes, input_size=images.input_size)
        networks.check(budget, where=LIMITS)
        if settings.pareto is not None:
            with prefix_errors("recipe key 'search.pareto'"):
                networks.check_front(settings.pareto, budget)


def _check_tutors(route: _Route) -> None:
    """Refuse a tutor map that there is not or that the search has no use for, and a training without its tutors."""
    tutors = route.arm.tutors
    with prefix_errors("'tutors'"):
        if tutors != "searched" and not uses_tutors(route.searched):
            search = "the arm's own" if route.arm.network_of is None else f"that of arm '{route.arm.network_of}'"
            raise untutored(tutors, paradigm=route.searched, where=search)
        try:
            find_map(tutors)
        except OSError as error:
            raise UserError(f"{tutors[:80]}: {error.strerror}") from None
    _check_student(route.recipe, route.recipe.train, "train", route.paradigm, route)


def _check_student(recipe: Recipe, settings: StudentSettings, table: str, paradigm: Paradigm, route: _Route) -> None:
    if settings.stop is not None and recipe.data.holdout == 0:
        raise no_holdout(f"recipe key '{table}.stop'")
    if not uses_tutors(paradigm):
        return
    if not uses_tutors(route.searched):
        with prefix_errors(f"recipe key '{table}.paradigm'"):
            raise no_tutors(paradigm, searched=route.searched)
    tap = settings.attention.tap
    if tap != route.source.search.attention.tap:
        raise other_tap(f"recipe key '{table}.attention.tap': the teacher", tap)


def _check_attack(measurement: Measurement, recipe: Recipe) -> None:
    settings = recipe.attack
    paper_code = settings.protocol == "paper-code"
    checked_names(settings.attacks, norm=settings.norm, paper_code=paper_code, option="recipe key 'attack.attacks'")
    epsilons = epsilons_of(settings, option="recipe key 'attack.eps'")
    if measurement.audit:
        audit_epsilon(settings, epsilons, option="'audit'")
