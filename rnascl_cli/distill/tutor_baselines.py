"""Tutor maps that no search chose: controls to hold the searched map against, and maps written by hand.

A map gives each of the n_s student layers the index of one of the n_t teacher layers, both in the order of their
networks. No tensors here, so that ``derive`` and ``report`` answer without torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence


def random_tutors(students: int, teachers: int, *, seed: int) -> list[int]:
    """Return a tutor for each student layer, each teacher layer equally likely.

    Args:
        students: n_s.
        teachers: n_t, at least 1.
        seed: The same seed and sizes give the same map, on every machine.
    """
    draws = random.Random(f"tutors of seed {seed}")  # a text is hashed by sha512, which no version changes
    return [int(draws.random() * teachers) for _ in range(students)]


def same_depth_tutors(students: int, teachers: int) -> list[int]:
    """Return the map in which the student's first layer has the teacher's first, the last the last, linearly between.

    Student layer i has teacher layer i (n_t - 1) / (n_s - 1), rounded, halves to the even number; a lone student
    layer has the last one.
    """
    if students == 1:
        return [teachers - 1]
    return [round(index * (teachers - 1) / (students - 1)) for index in range(students)]


def last_layer_tutors(students: int, teachers: int) -> list[int]:
    """Return the map in which the teacher's last layer teaches every student layer."""
    return [teachers - 1] * students


def tutors_by_hand(given: object, *, student_layers: Sequence[str], teacher_layers: Sequence[str]) -> list[int]:
    """Read a map that somebody wrote.

    Args:
        given: A list with a teacher layer for each student layer in order, or a mapping of every student layer's
            name to a teacher layer. A teacher layer is named, or given as its index, counted from 0.
        student_layers: Names of the student's layers.
        teacher_layers: Names of the teacher's layers.

    Raises:
        ValueError: It is neither, or names a layer that is not there, or leaves one out.
    """
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in student_layers]:
            raise ValueError(f"the student has no layer '{unknown[0]}'; {_listed(student_layers)}")
        if missing := [name for name in student_layers if name not in given]:
            raise ValueError(f"no tutor is given for student layer '{missing[0]}' ({len(missing)} are missing)")
        given = [given[name] for name in student_layers]
    if not isinstance(given, list):
        raise ValueError("must be a list of teacher layers, or a mapping of student layers to teacher layers")
    if len(given) != len(student_layers):
        raise ValueError(f"gives {len(given)} tutors, the student has {len(student_layers)} layers")
    return [_teacher_layer(layer, teacher_layers) for layer in given]


def _teacher_layer(layer: object, teacher_layers: Sequence[str]) -> int:
    if isinstance(layer, str):
        if layer not in teacher_layers:
            raise ValueError(f"the teacher has no layer '{layer}'; {_listed(teacher_layers)}")
        return teacher_layers.index(layer)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"{layer!r} is neither the name nor the index of a teacher layer")
    if not 0 <= layer < len(teacher_layers):
        raise ValueError(f"the teacher has no layer {layer}; its layers are 0 to {len(teacher_layers) - 1}")
    return layer


def _listed(layers: Sequence[str]) -> str:
    """Say which layers there are; some networks have too many to name them all."""
    return f"its {len(layers)} layers are {', '.join(layers[:3])}, ... (derive without --tutors lists them)"
