"""Paired differences between two studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning import differences, summary
from rnascl_cli.artifacts.study import StudyDocument

pytestmark = pytest.mark.unit

BF16 = Path(__file__).parent.parent.parent / "docs" / "results" / "study" / "precision-bf16.json"


def changed(study: StudyDocument, *, by: float, wider: int = 0) -> StudyDocument:
    """The same study with other accuracies, and other networks."""
    rows = [
        row.model_copy(
            update={"clean_accuracy": row.clean_accuracy + by, "widths": [width + wider for width in row.widths]}
        )
        for row in study.rows
    ]
    return study.model_copy(update={"rows": rows})


def test_student_by_student() -> None:
    after = StudyDocument.model_validate_json(BF16.read_bytes())
    half = after.model_copy(update={"rows": after.rows[5:15]})  # of either seed and space
    found = differences(changed(after, by=-0.01), half)
    assert len(found) == 10
    assert summary(found).startswith(
        "10 students: clean accuracy +1.00 percentage points, 95 % interval [+1.00, +1.00]"
    )


def test_other_networks_are_not_compared() -> None:
    after = StudyDocument.model_validate_json(BF16.read_bytes())
    with pytest.raises(ValueError, match="not the same network"):
        differences(changed(after, by=0.0, wider=4), after)
    with pytest.raises(ValueError, match="no student"):
        differences(after, after.model_copy(update={"rows": []}))
