"""Whether the students beside the documents are still those that were measured."""

from __future__ import annotations

from collections.abc import Sequence

from rnascl_cli.artifacts.store import STUDENT, sha256_file
from rnascl_cli.reporting.lineage import Model


def changed_students(models: Sequence[Model]) -> list[str]:
    """Say which students' files have changed since their documents were written.

    The numbers reported are still those of the file that was measured, so this is a warning and no error. A student
    that is not there is none: weights are often kept elsewhere.
    """
    words = []
    for model in models:
        if model.made is None or not (path := model.made.folder / STUDENT).is_file():
            continue
        found = sha256_file(path)
        if found != model.sha256:
            words.append(
                f"{model.name}: {STUDENT} has changed since {model.made.file} was written (sha256 expected "
                f"{model.sha256[:12]}..., found {found[:12]}...); the numbers here are of the file before. Copy it "
                "again, or make the run again"
            )
    return words
