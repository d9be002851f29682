"""What a run directory says of its student, and whether the file is still that student."""

from __future__ import annotations

from pathlib import Path

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, TrainDocument
from rnascl_cli.artifacts.store import STUDENT, read_document
from rnascl_cli.core.errors import UserError

StudentDocument = TrainDocument | AdvFinetuneDocument


def student_document(run: Path) -> StudentDocument | None:
    """Return the document of the stage that made the run's student; None where none is there.

    Raises:
        UserError: It is damaged.
    """
    if (run / "adv-finetune.json").is_file():
        return read_document(run / "adv-finetune.json", AdvFinetuneDocument)
    if (run / "train.json").is_file():
        return read_document(run / "train.json", TrainDocument)
    return None


def refuse_changed(path: Path, *, document: str, expected: str, found: str) -> None:
    """Refuse a file whose sha256 is not the one that was recorded.

    Args:
        path: The file.
        document: The name of the document that recorded it.
        expected: The sha256 recorded.
        found: The file's.

    Raises:
        UserError: They differ.
    """
    if found != expected:
        raise UserError(
            f"{path}: is not the file that {document} was written with (other sha256: expected {expected[:12]}..., "
            f"found {found[:12]}...); copy it again, or make the run again"
        )


def refuse_changed_student(run: Path, document: StudentDocument, *, found: str) -> None:
    """Refuse a run's student whose sha256 is not the one that its document recorded; see :func:`refuse_changed`."""
    refuse_changed(run / STUDENT, document=f"{document.kind}.json", expected=document.student_sha256, found=found)
