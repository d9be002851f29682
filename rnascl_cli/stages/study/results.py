"""From the runs of a study to ``study.json`` and ``study.md``."""

from __future__ import annotations

from pathlib import Path

from rnascl_cli.artifacts.store import sha256_file, write_text
from rnascl_cli.artifacts.study import StudyDocument
from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.resume_command import running_command
from rnascl_cli.recipes.study import Study
from rnascl_cli.reporting.data.study import read_rows, read_searches
from rnascl_cli.reporting.tables.study import between_marks, study_markdown
from rnascl_cli.stages.study.plan import StudyPlan
from rnascl_cli.stages.study.runner import Progress

DOCUMENT, PAGE = "study.json", "study.md"


def tell_results(
    study: Study, plan: StudyPlan, progress: Progress, out: Path, *, source: Path, into: Path | None = None
) -> StudyDocument:
    """Write what has been measured so far, as a document and as a page.

    Args:
        study: As read.
        plan: Its steps and students.
        progress: Which steps are done.
        out: The study's folder.
        source: The study's file.
        into: A Markdown file that the tables go into as well, checked by :func:`check_into`.

    Raises:
        UserError: An artifact of a step cannot be read.
    """
    rows, circumstances = read_rows(out, plan.students, done=progress.done)
    document = StudyDocument(
        title=study.title,
        command=running_command(),
        study_sha256=sha256_file(source),
        reference=study.reference,
        arms=[arm.name for arm in study.arm],
        stages=["train", *(finetuning.name for finetuning in study.finetuning)],
        steps=len(plan.steps),
        steps_done=len(progress.done),
        failed=progress.failed,
        not_begun=progress.not_begun,
        circumstances=circumstances,
        searches=read_searches(out, [step.name for step in plan.steps if step.stage == "search"], done=progress.done),
        rows=rows,
    )
    write_text(out / DOCUMENT, document.model_dump_json(indent=2) + "\n")
    page = study_markdown(document)
    write_text(out / PAGE, page)
    if into is not None:
        write_text(into, between_marks(into.read_text(encoding="utf-8"), source.stem, page))
    return document


def check_into(into: Path, name: str) -> None:
    """Refuse a file that the tables cannot be put into, before hours are spent.

    Raises:
        UserError: It is not there, or lacks the study's marks.
    """
    try:
        between_marks(into.read_text(encoding="utf-8"), name, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into {into}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}") from None
    except ValueError as error:
        raise UserError(f"--into {into}: {error}") from None
