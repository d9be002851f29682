"""Reads recipes: TOML files, single settings, and the layers of both."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnascl_cli.artifacts.reading import MAX_RECIPE_BYTES, read_bounded
from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.recipes.adversarial import METHODS
from rnascl_cli.recipes.base import DEEPEST_KEY, TAGS, Layer
from rnascl_cli.recipes.errors import Option, explain
from rnascl_cli.recipes.old_keys import refuse_old_keys
from rnascl_cli.recipes.settings import Recipe

STUDIES = "studies"
"""The folder of the studies, under recipes/."""


def recipes_folder() -> Path:
    """Return the folder of the built-in recipes: the package's copy, or recipes/ of a checkout."""
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
    """Read a TOML recipe as a nested dictionary, unchecked; see :func:`read_toml`."""
    return read_toml(path, what="--recipe", page="docs/recipes.md")


def read_toml(path: Path, *, what: str, page: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        what: What it is, in messages.
        page: The page of the docs that describes it.

    Raises:
        UserError: It cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(read_bounded(path, MAX_RECIPE_BYTES, what=what.removeprefix("--")).decode())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, or a number of 5,000 digits
        raise UserError(f"{what} {path}: not TOML ({error}); see {page}") from None


def parse_setting(text: str, stage: str | None) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` into a nested layer.

    Args:
        text: ``search.attention.gamma=10``; inside a stage also ``attention.gamma=10``. VALUE is TOML
            (numbers, true/false, lists), ``null``, or else a plain string.
        stage: The running stage, in whose table keys without a table are.

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
    """Merge layers of settings, of which later ones win, and validate the result.

    Args:
        layers: The settings.
        options: The command-line option of each key that one has set; errors name it instead of the key.

    Raises:
        UserError: Unknown keys (all of them, each with the nearest known key), old keys, or values out of range.
    """
    merged = Recipe().model_dump()
    for layer in layers:
        _merge(merged, layer)
        refuse_old_keys(layer)
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
            base[key] = inner = _remaining(inner, value)
            _merge(inner, value, under=f"{under}{key}.")
        elif isinstance(inner, dict) and value is not None:  # null removes an optional table
            raise UserError(f"recipe key '{under}{key}': is a table; set its keys one by one, e.g. {key}.KEY=VALUE")
        else:
            base[key] = value


def _remaining(table: Any, over: Layer) -> dict[str, Any]:
    """Return the settings of a table that a layer over it leaves valid.

    A layer that selects another optimizer, schedule or baseline starts from that one's defaults. Another adversarial
    method keeps the settings that both have, such as eps.
    """
    if not isinstance(table, dict):
        return {}
    tag = next((tag for tag in TAGS if tag in over), None)
    if tag is None or table.get(tag, over[tag]) == over[tag]:
        return table
    member = METHODS.get(over[tag]) if tag == "method" and isinstance(over[tag], str) else None
    return {key: value for key, value in table.items() if member and key in member.model_fields}
