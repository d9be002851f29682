"""The training phase (section 3.4): the derived network from scratch, by eq. (3).

With adversarial training, the method's terms replace the cross-entropy.
"""

from __future__ import annotations

import torch

from rnascl_cli.artifacts.documents import Architecture, DerivedDocument, TrainDocument
from rnascl_cli.artifacts.store import STUDENT, write_document
from rnascl_cli.core.errors import UserError
from rnascl_cli.data import Data
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.models.files import build_student, checked_architecture, save_student
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.stages.training.distillation_baselines import training_paradigm
from rnascl_cli.stages.training.sanity_checks import warn_of_changed_images
from rnascl_cli.stages.training.setup import training_run
from rnascl_cli.stages.training.student_training import train_student


def train(derived: DerivedDocument, recipe: Recipe, run: RunDirectory) -> TrainDocument:
    """Train a derived network and write ``derived.json``, ``train.json``, ``student.safetensors``, ``metrics.jsonl``.

    The weights are those of the last epoch, or with ``train.select`` those of the best epoch on the held-out training
    images; with ``train.average``, an average. The test set is evaluated once, at the end.

    Args:
        derived: The architecture and tutor map.
        recipe: All settings.
        run: The run directory, locked but not yet created.

    Raises:
        UserError: Data or teacher are unusable, or do not fit the document.
        RunError: The loss became NaN or infinite.
    """
    settings = recipe.train
    paradigm = training_paradigm(settings, derived)
    architecture = checked_architecture(derived.architecture, where="derived document")
    training = training_run(recipe, run)
    data = training.data
    check_fits(recipe.space, architecture, data)
    warn_of_changed_images(recipe, data, before=derived.provenance)

    torch.manual_seed(recipe.seed)
    student = build_student(architecture, mean=data.mean, std=data.std)
    history, teacher, final = train_student(
        "train",
        student,
        derived,
        settings,
        paradigm=paradigm,
        training=training,
        architecture=architecture.model_dump(),
        tutors=derived.tutors.tutor if derived.tutors else None,
    )
    if found := run.finished(TrainDocument, "train.json"):
        return found
    sha256 = save_student(run.path / STUDENT, student, architecture)
    inputs = {"derived.json": run.sha256("derived.json"), **derived.provenance.inputs}
    document = TrainDocument(
        provenance=training.provenance(teacher=teacher, inputs=inputs),
        paradigm=paradigm,
        distill=settings.distill.name if settings.distill else None,
        architecture=architecture,
        student_sha256=sha256,
        clean_accuracy=accuracy(student, data.test, compute=training.compute),
        epochs=len(history),
        seconds=sum(entry["seconds"] for entry in history),
        history=history,
        method=settings.method,
        **final,
    )
    write_document(run.path / "train.json", document)
    return document


def check_fits(space: str, architecture: Architecture, data: Data) -> None:
    """Refuse a recipe of another space, and data with other classes or image size, than the network's.

    Raises:
        UserError: They differ.
    """
    if space != architecture.space:
        raise UserError(
            f"recipe key 'space': is {space}, the network is of space {architecture.space}; "
            "give a recipe for that space"
        )
    if data.num_classes != architecture.num_classes:
        raise UserError(
            f"--data {data.spec}: has {data.num_classes} classes, the network {architecture.num_classes}; "
            "give the data of the search"
        )
    if data.input_size != architecture.input_size:
        raise UserError(
            f"--data {data.spec}: images are {data.input_size} pixels wide, the network's {architecture.input_size}; "
            "give the data of the search"
        )
