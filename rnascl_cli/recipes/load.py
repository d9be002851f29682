"""Reading recipes: TOML files, single settings, and how they are laid over one another."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnascl_cli.artifacts.reading import MAX_RECIPE_BYTES, read_bounded
from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.recipes.errors import Option, explain
from rnascl_cli.recipes.settings import Recipe

DEEPEST_KEY = 16  # parts; the longest there is has four

STUDIES = "studies"
"""The folder, under recipes/, whose files are studies and no recipes."""

Layer = Mapping[str, Any]


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with rnascl: the package's copy, or a checkout's recipes/."""
    package = Path(__file__).resolve().parent.parent
    packed = package / "_recipes"
    return packed if packed.is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by path, or by its name under recipes/ (``cifar10/rnas-cl-s3-wrt34``).

    Raises:
        UserError: Neither exists.
    """
    folder = recipes_folder()
    for candidate in (Path(name), folder / name, folder / f"{name}.toml"):
        if candidate.is_file():
            return candidate
    files = (path for path in folder.rglob("*.toml") if path.parent.name != STUDIES)
    known = sorted(str(path.relative_to(folder).with_suffix("")) for path in files)
    raise UserError(f"--recipe: no file '{name}' and no recipe of that name{did_you_mean(name, known)}")


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a TOML recipe as a nested dictionary, unchecked.

    Raises:
        UserError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(read_bounded(path, MAX_RECIPE_BYTES, what="recipe").decode())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--recipe {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, or a number of 5,000 digits
        raise UserError(f"--recipe {path}: not TOML ({error}); see docs/recipes.md") from None


def parse_setting(text: str, stage: str | None) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` into a nested layer.

    Args:
        text: ``search.attention.gamma=10``; inside a stage also ``attention.gamma=10``. VALUE is TOML
            (numbers, true/false, lists), ``null``, or else a plain string.
        stage: The stage that is running, whose table a key without one is looked up in first.

    Raises:
        UserError: There is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: write KEY=VALUE, e.g. --set search.attention.gamma=10")
    try:
        parsed: Any = tomllib.loads(f"value = {value.strip()}")["value"]
    except (ValueError, RecursionError):
        parsed = None if value.strip() == "null" else value.strip()
    names = key.strip().replace("-", "_").split(".")
    if stage is not None and names[0] not in Recipe.model_fields:
        names.insert(0, stage)
    layer: dict[str, Any] = {}
    inner = layer
    for name in names[:-1]:
        inner = inner.setdefault(name, {})
    inner[names[-1]] = parsed
    return layer


def resolve(layers: Sequence[Layer], *, options: Mapping[str, Option] | None = None) -> Recipe:
    """Lay settings over one another, later layers winning, and check the result.

    Args:
        layers: The settings.
        options: For each key that the last layer sets by an option of the command line, that option; the error of
            such a key names it instead of the key.

    Raises:
        UserError: Unknown keys (all of them, each with the nearest known one) or values out of range.
    """
    merged = Recipe().model_dump()
    for layer in layers:
        _merge(merged, layer)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise UserError("; ".join(explain(item, options or {}) for item in error.errors())) from None


def _merge(base: dict[str, Any], over: Layer, *, under: str = "") -> None:
    if under.count(".") > DEEPEST_KEY:
        raise UserError(f"recipe key '{under[:80]}...': no recipe key has so many parts; see docs/recipes.md")
    for key, value in over.items():
        inner = base.get(key)
        if isinstance(value, Mapping):
            # Another optimiser, schedule or rival replaces the old one: its fields mean nothing to the new kind.
            kinds = [value[tag] for tag in ("name", "kind") if tag in value]
            if not isinstance(inner, dict) or (kinds and inner.get("name", inner.get("kind", kinds[0])) not in kinds):
                inner = {}
            base[key] = inner
            _merge(inner, value, under=f"{under}{key}.")
        elif isinstance(inner, dict) and value is not None:  # null takes back a table that may be left out
            raise UserError(f"recipe key '{under}{key}': is a table; set its keys one by one, e.g. {key}.KEY=VALUE")
        else:
            base[key] = value
