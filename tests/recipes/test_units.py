"""Notations of perturbation sizes and counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import Epsilon, parse_count, parse_epsilon, parse_epsilons
from rnascl_cli.recipes.load import parse_setting, resolve

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.031", 0.031),
        ("0", 0.0),
        ("1", 1.0),
        ("255/255", 1.0),
        ("1e-3", 0.001),
        ("0/255", 0.0),
    ],
)
def test_sizes(text: str, value: float) -> None:
    assert parse_epsilon(text) == Epsilon(text.strip(), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "8 is above 1, and pixels lie in [0, 1]; did you mean 8/255?"),
        ("300", "300 is above 1, and pixels lie in [0, 1]"),
        ("-8/255", "-8/255 is negative; write 8/255 or 0.03"),
        ("x", "'x' is not a number; write 8/255 or 0.03"),
        ("", "'' is not a number"),
        ("8/0", "'8/0' is not a number"),
        ("8/255/2", "'8/255/2' is not a number"),
        ("nan", "'nan' is not a number"),
        ("inf", "'inf' is not a number"),
        ("8,255", "'8,255' is not a number"),
    ],
)
def test_invalid_sizes(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_epsilon(text, option="--eps")
    assert str(error.value).startswith("--eps: ")
    assert message in str(error.value)


def test_lists() -> None:
    assert parse_epsilons("0, 1/255,8/255,") == [
        Epsilon("0", 0.0),
        Epsilon("1/255", 1 / 255),
        Epsilon("8/255", 8 / 255),
    ]


@given(numerator=st.integers(0, 255))
def test_all_multiples_of_1_255(numerator: int) -> None:
    assert parse_epsilon(f"{numerator}/255").value == numerator / 255


COUNTS = [
    ("8M", 8_000_000),
    ("0.2M", 200_000),
    ("900k", 900_000),
    ("900K", 900_000),
    ("1.2G", 1_200_000_000),
    ("8e6", 8_000_000),
    (" 8 M ", 8_000_000),
    ("7869952", 7_869_952),
    ("1", 1),
    ("0.0029k", 2),  # at most 2.9 params are at most 2
    ("7.874177M", 7_874_177),  # and not a float beside it
]


@pytest.mark.parametrize(("text", "value"), COUNTS)
def test_counts(text: str, value: int) -> None:
    assert parse_count(text, option="--max-macs") == value
    assert resolve([parse_setting(f"search.max_macs={text}", None)]).search.max_macs == value


@pytest.mark.parametrize("value", [8e6, 8_000_000, "8M"])
def test_notations_of_counts_in_recipes(value: object) -> None:
    assert resolve([{"search": {"max_macs": value}}]).search.max_macs == 8_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8m", "'8m' is not a number; write 8M, 0.2M, 900k or 8e6"),
        ("8 million", "'8 million' is not a number"),
        ("8,000,000", "'8,000,000' is not a number"),
        ("", "'' is not a number"),
        ("M", "'M' is not a number"),
        ("1.2.3M", "'1.2.3M' is not a number"),
        ("nan", "'nan' is not a number"),
        ("9" * 400, "is not a number"),
        ("0", "0 is not between 1 and 1e18"),
        ("-8M", "-8M is not between 1 and 1e18"),
        ("0.5", "0.5 is not between 1 and 1e18"),
        ("1e99", "1e99 is not between 1 and 1e18"),
    ],
)
def test_invalid_counts(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_count(text, option="--max-macs")
    assert str(error.value).startswith("--max-macs: ")
    assert message in str(error.value)
    with pytest.raises(UserError, match=r"recipe key 'search\.max_macs'"):
        resolve([{"search": {"max_macs": text}}])
