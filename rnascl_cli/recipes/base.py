"""The base class of settings, and the nested tables that settings are read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

Layer = Mapping[str, Any]
"""Nested settings as in a recipe file, unchecked."""
TAGS = ("name", "kind", "method")
"""Keys that select the class of a table: of an optimizer, a schedule, a baseline, an adversarial method."""
DEEPEST_KEY = 16  # parts; the longest key has four


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused.

    Validators are built at first use, because ``rnascl --help`` needs none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def leaves(layer: Layer, under: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting; a tag comes before the settings of its table."""
    for key in sorted(layer, key=lambda key: key not in TAGS):
        value = layer[key]
        if isinstance(value, Mapping) and value and under.count(".") <= DEEPEST_KEY:  # deeper ones are refused later
            yield from leaves(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value
