"""Tutor maps that no search chose."""

from __future__ import annotations

import pytest

from rnascl_cli.distill.tutor_baselines import last_layer_tutors, random_tutors, same_depth_tutors, tutors_by_hand

pytestmark = pytest.mark.unit

STUDENT = ["stem", "a", "b"]
TEACHER = ["conv1", "conv2", "conv3", "conv4", "conv5"]
PINNED = [10, 10, 0, 16, 2, 12, 5, 3, 17, 7, 6, 3]


def test_same_depth_by_hand() -> None:
    """Seven student layers under ten teacher layers: i * 9 / 6 = 0, 1.5, 3, 4.5, 6, 7.5, 9; halves to even."""
    assert same_depth_tutors(3, 5) == [0, 2, 4]
    assert same_depth_tutors(5, 3) == [0, 0, 1, 2, 2]
    assert same_depth_tutors(7, 10) == [0, 2, 3, 4, 6, 8, 9]
    assert same_depth_tutors(1, 5) == [4]
    assert same_depth_tutors(4, 1) == [0, 0, 0, 0]


def test_last_layer() -> None:
    assert last_layer_tutors(3, 5) == [4, 4, 4]


def test_random_is_of_its_seed_alone() -> None:
    """Pinned: a map drawn today must be the map drawn on another machine."""
    assert random_tutors(12, 20, seed=0) == random_tutors(12, 20, seed=0) == PINNED
    assert random_tutors(12, 20, seed=1) != PINNED
    assert random_tutors(3, 1, seed=5) == [0, 0, 0]


def test_random_is_even() -> None:
    """Of 4,000 draws from 5 layers each comes about 800 times; 5 standard deviations are 126."""
    drawn = random_tutors(4000, 5, seed=0)
    assert set(drawn) == set(range(5))
    assert all(abs(drawn.count(index) - 800) < 126 for index in range(5))


@pytest.mark.parametrize(
    "given",
    [
        [0, 2, 4],
        ["conv1", "conv3", "conv5"],
        [0, "conv3", 4],
        {"b": "conv5", "stem": 0, "a": "conv3"},
    ],
)
def test_by_hand(given: object) -> None:
    assert tutors_by_hand(given, student_layers=STUDENT, teacher_layers=TEACHER) == [0, 2, 4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 1], "gives 2 tutors, the student has 3 layers"),
        ([0, 1, 5], "no layer 5; its layers are 0 to 4"),
        ([0, 1, -1], "no layer -1"),
        ([0, 1, "conv6"], "the teacher has no layer 'conv6'; its 5 layers are conv1, conv2, conv3"),
        ([0, 1, 1.0], "1.0 is neither"),
        ([0, 1, True], "True is neither"),
        ([0, 1, None], "None is neither"),
        ({"stem": 0, "a": 1}, "no tutor is given for student layer 'b'"),
        ({"stem": 0, "a": 1, "c": 2}, "the student has no layer 'c'"),
        (3, "must be a list"),
        ("conv1", "must be a list"),
        (None, "must be a list"),
    ],
)
def test_by_hand_refuses_what_does_not_fit(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tutors_by_hand(given, student_layers=STUDENT, teacher_layers=TEACHER)
