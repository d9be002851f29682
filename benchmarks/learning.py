"""Whether students learn as well one way as another: ``python -m benchmarks.learning BEFORE AFTER``.

Two study.json whose students were trained from the same searches. Prints the mean difference of their clean accuracies,
student by student, with a 95 % bootstrap interval over the students.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.timing import bootstrap
from rnascl_cli.artifacts.study import StudyDocument

Student = tuple[str, int, str, str]


def differences(before: StudyDocument, after: StudyDocument) -> dict[Student, float]:
    """Return by how much each student's clean accuracy is higher ``after``; only of those that are in both.

    Raises:
        ValueError: None is, or a network has other widths.
    """
    known = {(row.space, row.seed, row.arm, row.stage): row for row in before.rows}
    found = {}
    for row in after.rows:
        student = row.space, row.seed, row.arm, row.stage
        if student in known:
            if row.widths != known[student].widths:
                raise ValueError(f"{'/'.join(map(str, student))}: not the same network in both")
            found[student] = row.clean_accuracy - known[student].clean_accuracy
    if not found:
        raise ValueError("no student is in both")
    return found


def summary(found: dict[Student, float]) -> str:
    """Return the mean difference in percentage points, in words."""
    values = list(found.values())
    low, high = bootstrap(lambda drawn: statistics.mean(values[index] for index in drawn), len(values))
    return (
        f"{len(values)} students: clean accuracy {100 * statistics.mean(values):+.2f} percentage points, 95 % interval "
        f"[{100 * low:+.2f}, {100 * high:+.2f}]; largest difference {100 * max(values, key=abs):+.2f}"
    )


def main() -> None:
    """Print what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a study.json")
    parser.add_argument("after", type=Path, help="another, with some of the same students")
    paths = parser.parse_args()
    before, after = (StudyDocument.model_validate_json(path.read_bytes()) for path in (paths.before, paths.after))
    print(summary(differences(before, after)))


if __name__ == "__main__":
    main()
