"""Error messages for invalid settings, which name the command-line option or else the recipe key."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.recipes.settings import Recipe

LONGEST_VALUE = 40  # characters of a wrong value that are shown
UNKNOWN, NO_TAG, OTHER_TAG, OTHER_WORD = "extra_forbidden", "union_tag_not_found", "union_tag_invalid", "literal_error"


@dataclass(frozen=True)
class Option:
    """An option of the command line that set a recipe key.

    Attributes:
        name: For example ``--select``.
        value: Value of the key.
        also: Values that the option takes and the key does not.
    """

    name: str
    value: object
    also: tuple[str, ...] = ()


def explain(item: Mapping[str, Any], options: Mapping[str, Option]) -> str:
    """Return the message for an invalid setting.

    Args:
        item: One of pydantic's ``errors()`` on a :class:`Recipe`.
        options: The option of each key that one has set, e.g. of ``"train.average.kind"``.
    """
    names, known = _key(item["loc"])
    key, kind = ".".join(names), item["type"]
    # pydantic reports a wrong tag at the table, and the key is in it.
    tag = item["ctx"]["discriminator"].strip("'") if kind in (NO_TAG, OTHER_TAG) else None
    option = options.get(f"{key}.{tag}" if tag else key)
    if option is not None and kind != UNKNOWN:
        return _by_option(item, option)
    if kind == UNKNOWN:
        return f"unknown recipe key '{key}'{did_you_mean(names[-1], known)}"
    if kind == NO_TAG:
        return f"recipe key '{key}.{tag}': must be set with the other keys of '{key}'"
    return f"recipe key '{key}': {item['msg']}"


def _by_option(item: Mapping[str, Any], option: Option) -> str:
    typed = f"{option.name} {shlex.quote(str(option.value)[:LONGEST_VALUE])}"
    context = item.get("ctx", {})
    if item["type"] in (OTHER_WORD, OTHER_TAG):
        words = re.findall("'([^']*)'", context.get("expected") or context["expected_tags"])
        return f"{typed}: one of {', '.join((*option.also, *words))}"
    if isinstance(error := context.get("error"), UserError):  # of a size or a count, which quotes the value
        return f"{option.name}: {str(error).removeprefix('value: ')}"
    return f"{typed}: {item['msg'].removeprefix('Input ')}"


def _key(location: Sequence[str | int]) -> tuple[list[str], set[str]]:
    """Return the parts of the key at pydantic's location, and the keys of the table that its last part is in."""
    names: list[str] = []
    known: set[str] = set()
    classes: list[type[BaseModel]] = [Recipe]
    for part in map(str, location):
        if len(classes) > 1:  # in a table with a tag, pydantic puts the tag's value before the key
            classes = [item for item in classes if _has_tag(item, part)]
            continue
        names.append(part)
        known = {name for item in classes for name in item.model_fields}
        fields = [item.model_fields[part] for item in classes if part in item.model_fields]
        classes = [member for field in fields for member in _classes(field.annotation)]
    return names, known


def _has_tag(settings: type[BaseModel], tag: str) -> bool:
    return any(tag in get_args(field.annotation) for field in settings.model_fields.values())


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes that an annotation names."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [item for member in get_args(annotation) for item in _classes(member)]
