"""A study as a file: which arms are compared, on which spaces and seeds, and what is measured of each.

An arm is one way from a search to a trained student. Everything that is the same for all of them stands once, in
``settings``; an arm says only what it does differently.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rnascl_cli.artifacts.reading import MAX_RECIPE_BYTES, read_bounded
from rnascl_cli.core.errors import UserError, did_you_mean, prefix_errors
from rnascl_cli.recipes.base import Settings
from rnascl_cli.recipes.load import DEEPEST_KEY, STUDIES, Layer, find_recipe, read_recipe_file, recipes_folder

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
SettingsTable = dict[str, Any]


class Arm(Settings):
    """One way from a search to a trained student."""

    name: Slug
    network_of: Slug | None = Field(
        default=None, description="train the network that another arm's search found; null: search its own"
    )
    tutors: str = Field(default="searched", description="as derive --tutors")
    search: SettingsTable = Field(default_factory=dict, description="settings of the search table")
    train: SettingsTable = Field(default_factory=dict, description="settings of the train table")
    finetune: tuple[Slug, ...] | None = Field(
        default=None, description="which of the study's fine-tunings follow; null: all of them"
    )

    def is_followed_by(self, finetuning: str) -> bool:
        """Return whether the arm's student goes into the fine-tuning of this name."""
        return self.finetune is None or finetuning in self.finetune

    @model_validator(mode="after")
    def _one_source(self) -> Arm:
        if self.network_of is not None and self.search:
            raise ValueError("'search' says how to search, 'network_of' that there is no search; leave one out")
        return self


class Finetuning(Settings):
    """An adversarial fine-tuning of every arm's student."""

    name: Slug
    settings: SettingsTable = Field(default_factory=dict, description="settings of the adv_finetune table")


class Measurement(Settings):
    """An attack on students, in a column of its own."""

    name: Slug
    of: tuple[Slug, ...] | None = Field(
        default=None, description="'train' and names of fine-tunings: whose students are attacked; null: all"
    )
    limit_test: Annotated[int, Field(ge=1)] | None = None
    audit: bool = False
    later: bool = Field(default=False, description="after everything else: for attacks that take the longest")
    settings: SettingsTable = Field(default_factory=dict, description="settings of the attack table")


class Study(Settings):
    """A whole study.

    ``reference`` names the arm that the others are held against, seed by seed.
    """

    title: str
    spaces: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    reference: Slug
    recipe: str | None = Field(default=None, description="a recipe under everything, by name or file")
    settings: SettingsTable = Field(default_factory=dict, description="settings of all runs, as in a recipe")
    arm: Annotated[tuple[Arm, ...], Field(min_length=1)]
    finetuning: tuple[Finetuning, ...] = ()
    measurement: tuple[Measurement, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Study:
        for kind, named in (("arm", self.arm), ("finetuning", self.finetuning), ("measurement", self.measurement)):
            if twice := repeated([item.name for item in named]):
                raise ValueError(f"two {kind}s are called '{twice}'")
        arms = {arm.name: arm for arm in self.arm}
        stages = {"train", *(item.name for item in self.finetuning)}
        for item in self.finetuning:
            if item.name in ("search", "train"):
                raise ValueError(f"a finetuning is called '{item.name}', as a stage is; give it another name")
        for kind, values in (("spaces", self.spaces), ("seeds", [str(seed) for seed in self.seeds])):
            if twice := repeated(values):
                raise ValueError(f"{kind}: {twice} stands there twice")
        if self.reference not in arms:
            raise ValueError(f"reference: no arm '{self.reference}'{did_you_mean(self.reference, arms)}")
        for arm in self.arm:
            source = arm.network_of
            if source is not None and (source not in arms or arms[source].network_of is not None):
                raise ValueError(
                    f"arm '{arm.name}': network_of must name an arm that searches{did_you_mean(source, arms)}"
                )
            for name in arm.finetune or ():
                if name not in stages - {"train"}:
                    raise ValueError(
                        f"arm '{arm.name}': no finetuning '{name}'{did_you_mean(name, stages - {'train'})}"
                    )
        for measurement in self.measurement:
            for name in measurement.of or ():
                if name not in stages:
                    raise ValueError(f"measurement '{measurement.name}': no stage '{name}'{did_you_mean(name, stages)}")
        return self


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stands there twice; None where all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def find_study(name: str) -> Path:
    """Return the file of a study given by path, or by its name under recipes/studies/.

    Raises:
        UserError: Neither exists.
    """
    folder = recipes_folder() / STUDIES
    for candidate in (Path(name), folder / f"{name}.toml"):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in folder.glob("*.toml"))
    raise UserError(f"study {name}: no such file, and no study of that name{did_you_mean(name, known)}")


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        UserError: The file cannot be read, is not TOML, or says something that a study has no place for.
    """
    try:
        found = tomllib.loads(read_bounded(path, MAX_RECIPE_BYTES, what="study").decode())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"study {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"study {path}: not TOML ({error}); see docs/study.md") from None
    try:
        return Study.model_validate(found)
    except ValidationError as error:
        raise UserError(f"study {path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key '{place}'"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"'{place}': {message}" if place else message


def common_layers(study: Study) -> list[Layer]:
    """Return what is under every run of the study, lowest first.

    Raises:
        UserError: Its recipe is not there, or cannot be read.
    """
    if study.recipe is None:
        return [study.settings]
    with prefix_errors("'recipe'"):
        return [read_recipe_file(find_recipe(study.recipe)), study.settings]


def flat(table: SettingsTable, under: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a table with their dotted keys, kinds of a choice before what belongs to them."""
    for key in sorted(table, key=lambda key: key not in ("name", "kind")):
        value = table[key]
        if isinstance(value, dict) and under.count(".") <= DEEPEST_KEY:  # which is refused where it is resolved
            yield from flat(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value
