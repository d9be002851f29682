"""torchdistill's losses, and embeddings to compare them on."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def theirs() -> Any:
    """torchdistill's losses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "torchdistill is not installed; it is only compared with"
        return pytest.importorskip("torchdistill.losses.mid_level", reason=reason)


@pytest.fixture
def embeddings(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Six embeddings of the student (4 numbers) and of the teacher (7), at zero or above as after a ReLU."""
    student_BE, teacher_BE = (torch.randn(6, width, generator=generator).relu() + 0.1 for width in (4, 7))
    return student_BE, teacher_BE
