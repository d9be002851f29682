"""Which option set which recipe key, so that an error names what was typed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnascl_cli.recipes import Layer, Option

NAMES = {
    "data.spec": "--data",
    "architecture": "--arch",
    "start_from": "--from",
    "perturbation.eps": "--eps",
    "attacks": "--attack",
    "robust.method": "--robust",
    "average.kind": "--average",
    "distill.name": "--distill",
    "stop.on": "--select",
}
"""The options that are not called like their recipe key; the keys of a stage without its table's name."""

ALSO = {"--select": ("last",)}
"""Words of an option for what a recipe says by null."""


def options_of(layer: Layer, stage: str | None) -> dict[str, Option]:
    """Return the option behind each key of what the command line lays over the recipe.

    Args:
        layer: The options, as a layer of the recipe.
        stage: The running stage, in whose table most of them are.
    """
    from rnascl_cli.recipes import Option

    options = {}
    for key, value in _leaves(layer):
        inside = key if stage is None else key.removeprefix(f"{stage}.")
        name = NAMES.get(inside) or f"--{inside.rpartition('.')[2].replace('_', '-')}"
        options[key] = Option(name, value, ALSO.get(name, ()))
    return options


def _leaves(layer: Layer, under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in layer.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value
