"""Study files: which arms are compared, on which spaces and seeds, and how they are evaluated.

An arm is one way from a search to a trained student. ``settings`` apply to all arms; an arm sets only its differences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rnascl_cli.core.errors import UserError, did_you_mean, prefix_errors
from rnascl_cli.recipes.base import Layer, Settings
from rnascl_cli.recipes.load import STUDIES, find_recipe, read_recipe_file, read_toml, recipes_folder

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
SettingsTable = dict[str, Any]


class Arm(Settings):
    """One way from a search to a trained student."""

    name: Slug
    network_of: Slug | None = Field(
        default=None, description="train the network of another arm's search; null: own search"
    )
    tutors: str = Field(default="searched", description="as derive --tutors")
    search: SettingsTable = Field(default_factory=dict, description="settings of the search table")
    train: SettingsTable = Field(default_factory=dict, description="settings of the train table")
    finetune: tuple[Slug, ...] | None = Field(default=None, description="names of the fine-tunings to run; null: all")

    def is_followed_by(self, finetuning: str) -> bool:
        """Return whether the arm's student is fine-tuned by the fine-tuning of this name."""
        return self.finetune is None or finetuning in self.finetune

    @model_validator(mode="after")
    def _one_source(self) -> Arm:
        if self.network_of is not None and self.search:
            raise ValueError("'search' sets a search, but 'network_of' uses another arm's; leave one out")
        return self


class Finetuning(Settings):
    """An adversarial fine-tuning of every arm's student."""

    name: Slug
    settings: SettingsTable = Field(default_factory=dict, description="settings of the adv_finetune table")


class Measurement(Settings):
    """An attack on students, one column of the results."""

    name: Slug
    of: tuple[Slug, ...] | None = Field(
        default=None, description="'train' and names of fine-tunings whose students are attacked; null: all"
    )
    limit_test: Annotated[int, Field(ge=1)] | None = None
    audit: bool = False
    later: bool = Field(default=False, description="run after everything else, for the slowest attacks")
    settings: SettingsTable = Field(default_factory=dict, description="settings of the attack table")


class Study(Settings):
    """A study; ``reference`` names the arm that the others are compared with, seed by seed."""

    title: str
    spaces: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    reference: Slug
    recipe: str | None = Field(default=None, description="recipe of all runs, by name or file")
    settings: SettingsTable = Field(default_factory=dict, description="settings of all runs, as in a recipe")
    arm: Annotated[tuple[Arm, ...], Field(min_length=1)]
    finetuning: tuple[Finetuning, ...] = ()
    measurement: tuple[Measurement, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Study:
        for kind, named in (("arm", self.arm), ("finetuning", self.finetuning), ("measurement", self.measurement)):
            if twice := repeated([item.name for item in named]):
                raise ValueError(f"two {kind}s are called '{twice}'")
        for kind, values in (("spaces", self.spaces), ("seeds", [str(seed) for seed in self.seeds])):
            if twice := repeated(values):
                raise ValueError(f"{kind}: {twice} is listed twice")
        finetunings = [item.name for item in self.finetuning]
        for name in {"search", "train"}.intersection(finetunings):
            raise ValueError(f"a finetuning is called '{name}', as a stage is; give it another name")
        arms = [arm.name for arm in self.arm]
        searching = [arm.name for arm in self.arm if arm.network_of is None]
        _check_known("reference: no arm", self.reference, arms)
        for arm in self.arm:
            if arm.network_of is not None and arm.network_of not in searching:
                raise ValueError(
                    f"arm '{arm.name}': network_of must name an arm that searches{did_you_mean(arm.network_of, arms)}"
                )
            for name in arm.finetune or ():
                _check_known(f"arm '{arm.name}': no finetuning", name, finetunings)
        for measurement in self.measurement:
            for name in measurement.of or ():
                _check_known(f"measurement '{measurement.name}': no stage", name, ["train", *finetunings])
        return self


def _check_known(problem: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{problem} '{name}'{did_you_mean(name, known)}")


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs twice; None if all differ."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


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
        UserError: The file cannot be read, is not TOML, or is not a valid study.
    """
    found = read_toml(path, what="study", page="docs/study.md")
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
    """Return the settings of all runs of the study, the recipe first.

    Raises:
        UserError: The recipe cannot be read.
    """
    if study.recipe is None:
        return [study.settings]
    with prefix_errors("'recipe'"):
        return [read_recipe_file(find_recipe(study.recipe)), study.settings]
