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
from rnascl_cli.data import load_data
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.models.files import load_student, save_student
from rnascl_cli.recipes import Recipe
from rnascl_cli.stages.training.sanity_checks import may_have_seen_held_out, warn_of_changed_images
from rnascl_cli.stages.training.setup import training_compute, training_provenance
from rnascl_cli.stages.training.step import StudentStep
from rnascl_cli.stages.training.student_training import train_student
from rnascl_cli.stages.training.train import check_fits


def source_run(source: Path) -> tuple[TrainDocument | AdvFinetuneDocument, DerivedDocument]:
    """Read the documents of the run that is to be fine-tuned.

    Raises:
        UserError: It is no run directory of ``train`` or ``adv-finetune``, or lacks an artifact.
    """
    if not source.is_dir():
        raise UserError(f"{source}: not a run directory; name one of 'rnascl train'")
    for name in (STUDENT, "derived.json"):
        if not (source / name).is_file():
            raise UserError(f"{source}: holds no {name}; name a run directory of 'rnascl train'")
    derived = read_document(source / "derived.json", DerivedDocument)
    document = student_document(source)
    if document is None:
        raise UserError(f"{source}: holds no train.json; was its training interrupted? go on with --resume")
    refuse_changed_student(source, document, found=sha256_file(source / STUDENT))
    if recorded := document.provenance.inputs.get("derived.json"):
        found = sha256_file(source / "derived.json")
        refuse_changed(source / "derived.json", document=f"{document.kind}.json", expected=recorded, found=found)
    return document, derived


def adv_finetune(source: Path, recipe: Recipe, run: RunDirectory) -> AdvFinetuneDocument:
    """Fine-tune a trained student adversarially.

    Writes ``adv-finetune.json``, ``student.safetensors`` and ``metrics.jsonl``. The weights are those of the
    last epoch, or with ``adv_finetune.stop`` those of the epoch that is best on the held-out training images; with
    ``adv_finetune.average``, a mean. The test images are looked at once, after that.

    Args:
        source: A run directory of ``train`` or ``adv-finetune``.
        recipe: All settings.
        run: The run directory, claimed but not yet made.

    Raises:
        UserError: The run, data or teacher are unusable or do not fit together.
        RunError: The loss became NaN or infinite.
    """
    settings, seed = recipe.adv_finetune, recipe.seed
    if run.path.resolve() == source.resolve():
        raise UserError(f"--out {run.path}: is the run to be fine-tuned, and would be lost; name another")
    before, derived = source_run(source)
    paradigm: Paradigm = settings.paradigm or before.paradigm
    compute = training_compute(recipe)
    student, architecture = load_student(source / STUDENT)
    if architecture != before.architecture:
        raise UserError(f"{source}: {before.kind}.json and {STUDENT} name different architectures; make the run again")
    data = load_data(recipe.data, seed=recipe.seed)
    check_fits(recipe, architecture, data)
    warn_of_changed_images(recipe, data, before=before.provenance)
    chooses = f"--select {settings.stop.on}" if settings.stop else None
    seen = may_have_seen_held_out(recipe, data, before=before, chooses=chooses)
    inputs = {STUDENT: before.student_sha256, f"{before.kind}.json": sha256_file(source / f"{before.kind}.json")}

    history, teacher, end = train_student(
        "adv-finetune",
        student,
        derived,
        recipe,
        settings,
        lambda distillation: AdvFinetuneStep(settings, distillation, holdout=data.holdout, compute=compute, seed=seed),
        paradigm=paradigm,
        data=data,
        compute=compute,
        run=run,
        student_sha256=before.student_sha256,
    )
    if found := run.finished(AdvFinetuneDocument, "adv-finetune.json"):
        return found
    provenance = training_provenance(
        recipe,
        compute=compute,
        data=data,
        teacher=teacher,
        inputs={**inputs, "derived.json": run.sha256("derived.json")},
    )
    document = AdvFinetuneDocument(
        provenance=provenance,
        method=settings.method,
        paradigm=paradigm,
        distill=before.distill,
        holdout_seen=seen,
        architecture=architecture,
        student_sha256=save_student(run.path / STUDENT, student, architecture),
        clean_accuracy=accuracy(student, data.test, compute=compute),
        epochs=len(history),
        seconds=sum(entry["seconds"] for entry in history),
        history=history,
        **end,
    )
    write_document(run.path / "adv-finetune.json", document)
    return document


class AdvFinetuneStep(StudentStep):
    """One step of adversarial fine-tuning."""

    stage = "adv-finetune"
    # The student is trained, its statistics settled: the points looked for are of the network to be attacked.
    statistics = "running"
