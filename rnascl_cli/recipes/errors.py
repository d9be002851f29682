"""What is wrong with a recipe, in words: by the option that was typed, or else by the recipe key."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rnascl_cli.core.errors import UserError, did_you_mean
from rnascl_cli.recipes.settings import Recipe

LONGEST_VALUE = 40  # letters of what was typed; what it may be comes behind it, on the same line
UNKNOWN, NO_TAG, OTHER_TAG, OTHER_WORD = "extra_forbidden", "union_tag_not_found", "union_tag_invalid", "literal_error"


@dataclass(frozen=True)
class Option:
    """An option of the command line that set a recipe key.

    Attributes:
        name: As it is typed, ``--select``.
        value: What the key was set to.
        also: Words that the option takes and the key does not.
    """

    name: str
    value: object
    also: tuple[str, ...] = ()


def explain(item: Mapping[str, Any], options: Mapping[str, Option]) -> str:
    """Say what is wrong with a setting.

    Args:
        item: One of pydantic's ``errors()`` on a :class:`Recipe`.
        options: The option that set a key, for each key that one did, e.g. ``"train.average.kind"``.
    """
    names, known = _key(item["loc"])
    key, kind = ".".join(names), item["type"]
    # pydantic finds a wrong kind of a rival, optimiser or mean at the table: the key that says so lies in it.
    tag = item["ctx"]["discriminator"].strip("'") if kind in (NO_TAG, OTHER_TAG) else None
    option = options.get(f"{key}.{tag}" if tag else key)
    if option is not None and kind != UNKNOWN:
        return _by_option(item, option)
    if kind == UNKNOWN:
        return f"unknown recipe key '{key}'{did_you_mean(names[-1], known)}"
    if kind == NO_TAG:
        return f"recipe key '{key}': does not say which one; set {key}.{tag}"
    return f"recipe key '{key}': {item['msg']}"


def _by_option(item: Mapping[str, Any], option: Option) -> str:
    typed = f"{option.name} {shlex.quote(str(option.value)[:LONGEST_VALUE])}"
    context = item.get("ctx", {})
    if item["type"] in (OTHER_WORD, OTHER_TAG):
        words = re.findall("'([^']*)'", context.get("expected") or context["expected_tags"])
        return f"{typed}: one of {', '.join((*option.also, *words))}"
    if isinstance(error := context.get("error"), UserError):  # of a size or a count, which quotes what it read
        return f"{option.name}: {str(error).removeprefix('value: ')}"
    return f"{typed}: {item['msg'].removeprefix('Input ')}"


def _key(location: Sequence[str | int]) -> tuple[list[str], dict[str, Any]]:
    """Return the parts of the key that pydantic means, and the keys that there are beside its last part."""
    names: list[str] = []
    fields: dict[str, Any] = dict(Recipe.model_fields)
    known = fields
    tagged, fields_of = False, None
    for part in map(str, location):
        if tagged:  # pydantic puts the kind of an optimiser, schedule or rival into the path; it is no key
            tagged, fields = False, _kind(fields_of, part) or fields
            continue
        names.append(part)
        known = fields
        field = fields.get(part)
        if field is not None:
            tagged, fields_of = field.discriminator is not None, field.annotation
            fields = _fields(field.annotation)
    return names, known


def _fields(annotation: Any) -> dict[str, Any]:
    """Return the fields of a settings class, or of all members of a union of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict(annotation.model_fields)
    members: dict[str, Any] = {}
    for member in getattr(annotation, "__args__", ()):
        members |= _fields(member)
    return members


def _kind(annotation: Any, tag: str) -> dict[str, Any]:
    """Return the fields of the member of a union that has this tag; none where no member has."""
    for member in getattr(annotation, "__args__", ()):
        fields = _fields(member)
        if any(tag in getattr(field.annotation, "__args__", ()) for field in fields.values()):
            return fields
    return {}
