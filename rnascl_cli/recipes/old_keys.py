"""Recipe keys of earlier versions: users are told the new key, and recipes recorded in artifacts are upgraded.

A new version adds a line for each key that it renames or removes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rnascl_cli.core.errors import UserError
from rnascl_cli.recipes.adversarial import METHODS
from rnascl_cli.recipes.base import leaves

_ROBUST = {
    "perturbation": "robust",
    "method": "robust.method",
    "beta": "robust.beta",
    "mart_lambda": "robust.kl_weight",
    "ard_alpha": "robust.alpha",
    "ard_temperature": "robust.temperature",
    "rslad_share": "robust.adversarial_share",
}
_STUDENT = {**_ROBUST, "stop": "select", "stop.on": "select.metric", "attention.tap": "attention.source"}
RENAMED = {
    "search.attention.tap": "search.attention.source",
    "search.robust.perturbation": "search.robust",
    "search.robust.rslad_share": "search.robust.adversarial_share",
    **{f"{table}.{old}": f"{table}.{new}" for table in ("train", "adv_finetune") for old, new in _STUDENT.items()},
    **{f"teacher_train.{old}": f"teacher_train.{_ROBUST[old]}" for old in ("perturbation", "method", "beta")},
}
"""Old key -> new key, of tables too; the longest match counts."""
REMOVED = {
    "attack.fold": "attacks always run on a copy with folded BatchNorm layers where it agrees with the model",
    "attack.capture": "on a GPU, graphs are captured for networks of up to 5 M params",
}
"""Old key -> what holds without it."""


def refuse_old_keys(layer: Mapping[str, Any]) -> None:
    """Check that a layer of settings has no key of an earlier version.

    Raises:
        UserError: With the new key of each.
    """
    found = []
    for key, _ in leaves(layer):
        if (old := _longest(key, REMOVED)) is not None:
            found.append(f"recipe key '{key}' was removed: {REMOVED[old]}")
        elif (new := current_key(key)) != key:
            found.append(f"recipe key '{key}' was renamed; use '{new}'")
    if found:
        raise UserError("; ".join(found))


def current_key(key: str) -> str:
    """Return the name that a key has today."""
    old = _longest(key, RENAMED)
    return key if old is None else RENAMED[old] + key[len(old) :]


def current_setting(text: str) -> str:
    """Return ``KEY=VALUE`` with the name that the key has today."""
    key, equals, value = text.partition("=")
    return f"{current_key(key)}{equals}{value}"


def upgraded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe recorded in an artifact, with the keys of today; nothing is checked."""
    found: dict[str, Any] = {}
    for key, value in leaves(recipe):
        if _longest(key, REMOVED) is None:
            _put(found, current_key(key).split("."), value)
    for table in found.values():
        if isinstance(table, dict) and isinstance(robust := table.get("robust"), dict):
            _drop_idle(table, robust)
    return found


def _drop_idle(table: dict[str, Any], robust: dict[str, Any]) -> None:
    """Drop the settings of other methods, which 0.1.0 recorded beside those of the method."""
    member = METHODS.get(str(robust.get("method")))
    select = table.get("select")
    if isinstance(select, dict):
        select.setdefault("eps", None if member else robust.get("eps"))
    table["robust"] = member and {key: value for key, value in robust.items() if key in member.model_fields}


def _longest(key: str, table: Mapping[str, str]) -> str | None:
    matches = [old for old in table if key == old or key.startswith(f"{old}.")]
    return max(matches, key=len, default=None)


def _put(table: Any, names: list[str], value: Any) -> None:
    for name in names[:-1]:
        table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if isinstance(table, dict):  # a document may record anything
        table[names[-1]] = value
