"""The training phase (section 3.4): the derived network from scratch, by eq. (3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import Architecture, DataReference, DerivedDocument, TrainDocument
from rnascl_cli.artifacts.store import STUDENT, sha256_file, write_document
from rnascl_cli.console import warn
from rnascl_cli.data import Batch, Data, ImageSet, load_data
from rnascl_cli.distill.objectives import add_up, cross_entropy
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.fit import ScheduledOptimiser, Stateful
from rnascl_cli.engine.optimise import build_optimiser, descend
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.errors import UserError
from rnascl_cli.models.files import build_student, checked_architecture, save_student
from rnascl_cli.recipes import Recipe, TrainSettings
from rnascl_cli.stages.apprentice import Apprentice
from rnascl_cli.stages.planning import training_provenance
from rnascl_cli.stages.schooling import school


def train(derived: DerivedDocument, recipe: Recipe, run: RunDirectory) -> TrainDocument:
    """Train a derived network and write ``derived.json``, ``train.json``, ``student.safetensors``, ``metrics.jsonl``.

    The weights are those of the last epoch: nothing is chosen by an accuracy. The test images are looked at
    once, after that.

    Args:
        derived: The architecture and tutor map.
        recipe: All settings.
        run: The run directory, claimed but not yet made.

    Raises:
        UserError: Data or teacher are unusable, or do not fit the document.
        RunError: The loss became NaN or infinite.
    """
    settings = recipe.train
    paradigm = settings.paradigm or derived.paradigm
    architecture = checked_architecture(derived.architecture, where="derived document")
    compute = resolve_compute(recipe.device, recipe.precision, deterministic=recipe.deterministic)
    data = load_data(recipe.data, seed=recipe.seed)
    check_fits(recipe, architecture, data, before=derived.provenance.data)

    torch.manual_seed(recipe.seed)
    student = build_student(architecture, mean=data.mean, std=data.std)
    history, teacher = school(
        "train",
        student,
        derived,
        recipe,
        settings,
        lambda apprentice: TrainTask(settings, apprentice, holdout=data.holdout, compute=compute),
        paradigm=paradigm,
        data=data,
        compute=compute,
        run=run,
        architecture=architecture.model_dump(),
        tutors=derived.tutors.tutor if derived.tutors else None,
    )
    if found := run.finished(TrainDocument, "train.json"):
        return found
    sha256 = save_student(run.path / STUDENT, student, architecture)
    inputs = {"derived.json": sha256_file(run.path / "derived.json"), **derived.provenance.inputs}
    document = TrainDocument(
        provenance=training_provenance(
            recipe,
            compute=compute,
            data=data,
            teacher=teacher,
            inputs=inputs,
        ),
        paradigm=paradigm,
        architecture=architecture,
        student_sha256=sha256,
        clean_accuracy=accuracy(student, data.test, compute=compute),
        epochs=settings.epochs,
        seconds=sum(entry["seconds"] for entry in history),
        history=history,
    )
    write_document(run.path / "train.json", document)
    return document


def check_fits(recipe: Recipe, architecture: Architecture, data: Data, *, before: DataReference | None) -> None:
    """Refuse a recipe of another space, and data with other classes or image size, than the network's.

    Says so where the same data set holds other images than it did ``before``.

    Raises:
        UserError: They differ.
    """
    if recipe.space != architecture.space:
        raise UserError(
            f"recipe key 'space': is {recipe.space}, the network is of space {architecture.space}; "
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
    now = data.reference()
    same_set = before is not None and before.model_copy(update={"fingerprint": now.fingerprint}) == now
    if before is not None and same_set and before.fingerprint != now.fingerprint:
        warn(f"--data {data.spec}: the images have changed since the artifact given was made")


class TrainTask:
    """One training step: eq. (3) on a batch."""

    def __init__(self, settings: TrainSettings, apprentice: Apprentice, *, holdout: ImageSet, compute: Compute) -> None:
        self._apprentice, self._compute = apprentice, compute
        self._holdout = holdout.to(compute.device)
        optimiser = build_optimiser(apprentice.student.parameters(), settings.optimiser)
        self.optimisers = [ScheduledOptimiser(optimiser, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {"student": apprentice.student, "optimiser": optimiser}

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Look anew for a teacher that teaches nothing; nothing else changes with the epoch."""
        self._apprentice.inspection.start_epoch()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step of SGD."""
        apprentice, optimiser = self._apprentice, self.optimisers[0].optimiser
        apprentice.student.train()
        answer = apprentice.answer(batch.x_BCHW)
        terms = {"ce": cross_entropy(answer.logits_BK, batch.y_B), **apprentice.teacher_terms(batch, answer)}
        loss = add_up(terms, apprentice.weights)
        descend(optimiser, loss)
        right = (answer.logits_BK.argmax(dim=1) == batch.y_B).float().mean()
        return {name: value.detach() for name, value in {"loss": loss, **terms, "train_accuracy": right}.items()}

    def end_epoch(self) -> dict[str, Any]:
        """Measure clean accuracy on the held-out images."""
        self._apprentice.end_epoch()
        return holdout_accuracy(self._apprentice, self._holdout, self._compute)


def holdout_accuracy(apprentice: Apprentice, holdout: ImageSet, compute: Compute) -> dict[str, Any]:
    """Return the student's clean accuracy on the held-out images as a metrics entry; empty without any."""
    if not len(holdout):
        return {}
    return {"holdout_accuracy": accuracy(apprentice.student, holdout, compute=compute)}
