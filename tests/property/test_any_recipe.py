"""Any value of any key gives a recipe or one error line; recipes survive JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.recipes.load import parse_setting, read_recipe_file, resolve
from rnascl_cli.recipes.settings import Recipe
from tests.property.profile import attempt, quick

pytestmark = pytest.mark.unit


def keys_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested settings, tables included."""
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


KEYS = sorted(keys_of(Recipe().model_dump()))
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "S5", "sgd", "adam", "cosine", "8/255", "8", "1e999999999", "null", "nan", "inf", "-1", "auto"]
    ),
)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**32, 10**400, 0.5, 1e308, 1e-320]))
scalars = st.one_of(
    st.none(), st.booleans(), numbers, texts, st.dates(), st.just(datetime.time(1, 2)), st.just(datetime.datetime.min)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "kind", "method", "lr", "betas", "x", ""]), inner, max_size=3),
    ),
    max_leaves=5,
)
keys = st.one_of(
    st.sampled_from(KEYS), st.text(max_size=8), st.sampled_from([".", "", "search", "a" * 300, "search..lr"])
)
# Values that fit their key more often than not, so that recipes come of it.
fitting = st.tuples(
    st.sampled_from([key for key in KEYS if "." in key and "name" not in key]),
    st.one_of(st.integers(1, 9), st.floats(0.01, 1.0), st.sampled_from(["icc", "cosine", "8/255", "none", "Linf"])),
)


def nested(key: str, value: object) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of ``a.b``."""
    layer: Any = value
    for name in reversed(key.split(".")):
        layer = {name: layer}
    found: dict[str, Any] = layer
    return found


def recipe_or_line(*layers: Mapping[str, Any]) -> Recipe | None:
    """What resolving gives; None where it is a clear refusal."""
    recipe, line = attempt(lambda: resolve(layers))
    assert recipe is not None or "recipe key" in line
    return recipe


def same_through_json(recipe: Recipe) -> None:
    """Check that nothing of a recipe is lost or changed on its way through a document."""
    text = json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
    assert resolve([json.loads(text)]) == recipe


@quick(300)
@given(st.lists(st.tuples(keys, values), min_size=1, max_size=4))
def test_any_value_under_any_key(pairs: list[tuple[str, Any]]) -> None:
    recipe = recipe_or_line(*(nested(key, value) for key, value in pairs))
    if recipe is not None:
        same_through_json(recipe)


@quick(200)
@given(st.lists(fitting, min_size=1, max_size=4))
def test_recipes_go_through_json_unchanged(pairs: list[tuple[str, Any]]) -> None:
    recipe = Recipe()
    for key, value in pairs:  # one after another: a refused one shall not hide the others
        recipe = recipe_or_line(recipe.model_dump(), nested(key, value)) or recipe
    same_through_json(recipe)


@quick(300)
@given(keys, st.one_of(texts, numbers.map(repr), st.text(max_size=30)), st.sampled_from([None, "search", "train"]))
def test_any_setting_on_the_command_line(key: str, value: str, stage: str | None) -> None:
    layer, line = attempt(lambda: parse_setting(f"{key}={value}", stage))
    if layer is None:
        assert line.startswith("--set ")
    else:
        recipe_or_line(layer)


@quick(150)
@given(
    st.one_of(
        st.text(max_size=80), st.binary(max_size=80), st.sampled_from(["seed = " + "9" * 5000, "a." * 3000 + "b = 1"])
    )
)
def test_any_file_is_toml_or_is_not(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    layer, line = attempt(lambda: read_recipe_file(path))
    if layer is None:
        assert f"{path}: not TOML" in line
    else:
        recipe_or_line(layer)


@quick(300)
@given(st.one_of(texts, st.from_regex(r"[+-]?[0-9]{0,4}[./e]?[0-9]{0,9}"), st.text("0123456789./e+- ", max_size=40)))
def test_any_size_of_a_perturbation(text: str) -> None:
    found, line = attempt(lambda: parse_epsilon(text))
    assert line.startswith("--eps: ") if found is None else 0 <= found.value <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_setting_is_infinite(value: float) -> None:
    """One that is would be noticed only by a loss that is; attack names and eps are words, and read later."""
    accepted = [key for key in KEYS if recipe_or_line(nested(key, value)) is not None]
    assert accepted == ["attack.attacks", "attack.eps"]
