"""Adversarial fine-tuning (section 4.2): eq. (3) with its cross-entropy replaced by a method's terms.

TRADES, MART, PGD-AT, Fast-AT, ARD or RSLAD: ``distill/adversarial_losses.py``. The KL and attention terms to the
teacher stay, on the clean images.
"""

from __future__ import annotations

from pathlib import Path

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, DerivedDocument, Paradigm, TrainDocument
from rnascl_cli.artifacts.runs import refuse_changed, refuse_changed_student, student_document
from rnascl_cli.artifacts.store import STUDENT, read_document, sha256_file, write_document
from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.models.files import load_student, save_student
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.stages.training.sanity_checks import may_have_seen_held_out, warn_of_changed_images
from rnascl_cli.stages.training.setup import training_run
from rnascl_cli.stages.training.student_training import train_student
from rnascl_cli.stages.training.train import check_fits


def source_run(source: Path) -> tuple[TrainDocument | AdvFinetuneDocument, DerivedDocument]:
    """Read the documents of the run to fine-tune.

    Raises:
        UserError: It is not a run directory of ``train`` or ``adv-finetune``, or lacks an artifact.
    """
    if not source.is_dir():
        raise UserError(f"{source}: not a run directory; name one of 'rnascl train'")
    for name in (STUDENT, "derived.json"):
        if not (source / name).is_file():
            raise UserError(f"{source}: has no {name}; name a run directory of 'rnascl train'")
    derived = read_document(source / "derived.json", DerivedDocument)
    document = student_document(source)
    if document is None:
        raise UserError(f"{source}: has no train.json; was its training interrupted? continue it with --resume")
    refuse_changed_student(source, document, found=sha256_file(source / STUDENT))
    if recorded := document.provenance.inputs.get("derived.json"):
        found = sha256_file(source / "derived.json")
        refuse_changed(source / "derived.json", document=f"{document.kind}.json", expected=recorded, found=found)
    return document, derived


def adv_finetune(source: Path, recipe: Recipe, run: RunDirectory) -> AdvFinetuneDocument:
    """Fine-tune a trained student adversarially.

    Writes ``adv-finetune.json``, ``student.safetensors`` and ``metrics.jsonl``. The weights are those of the
    last epoch, or with ``adv_finetune.select`` those of the best epoch on the held-out training images; with
    ``adv_finetune.average``, an average. The test set is evaluated once, at the end.

    Args:
        source: A run directory of ``train`` or ``adv-finetune``.
        recipe: All settings.
        run: The run directory, locked but not yet created.

    Raises:
        UserError: The run, data or teacher are unusable or do not fit together.
        RunError: The loss became NaN or infinite.
    """
    settings = recipe.adv_finetune
    if run.path.resolve() == source.resolve():
        raise UserError(f"--out {run.path}: is the run to fine-tune and would be overwritten; choose another directory")
    before, derived = source_run(source)
    paradigm: Paradigm = settings.paradigm or before.paradigm
    student, architecture = load_student(source / STUDENT)
    if architecture != before.architecture:
        raise UserError(f"{source}: {before.kind}.json and {STUDENT} name different architectures; train again")
    training = training_run(recipe, run)
    data = training.data
    check_fits(recipe.space, architecture, data)
    warn_of_changed_images(recipe, data, before=before.provenance)
    chooses = f"--select {settings.select.metric}" if settings.select else None
    seen = may_have_seen_held_out(recipe, data, before=before, chooses=chooses)
    inputs = {STUDENT: before.student_sha256, f"{before.kind}.json": sha256_file(source / f"{before.kind}.json")}

    history, teacher, final = train_student(
        "adv-finetune",
        student,
        derived,
        settings,
        paradigm=paradigm,
        training=training,
        student_sha256=before.student_sha256,
    )
    if found := run.finished(AdvFinetuneDocument, "adv-finetune.json"):
        return found
    inputs["derived.json"] = run.sha256("derived.json")
    document = AdvFinetuneDocument(
        provenance=training.provenance(teacher=teacher, inputs=inputs),
        method=settings.robust.method,
        paradigm=paradigm,
        distill=before.distill,
        holdout_seen=seen,
        architecture=architecture,
        student_sha256=save_student(run.path / STUDENT, student, architecture),
        clean_accuracy=accuracy(student, data.test, compute=training.compute),
        epochs=len(history),
        seconds=sum(entry["seconds"] for entry in history),
        history=history,
        **final,
    )
    write_document(run.path / "adv-finetune.json", document)
    return document
