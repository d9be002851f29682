"""Perturbation sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnascl_cli.errors import UserError
from rnascl_cli.units import Epsilon, parse_epsilon, parse_epsilons

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
def test_what_is_no_size(text: str, message: str) -> None:
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
def test_every_step_of_a_byte(numerator: int) -> None:
    assert parse_epsilon(f"{numerator}/255").value == numerator / 255
