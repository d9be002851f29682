"""Adversarial fine-tuning (section 4.2): eq. (3) with its cross-entropy replaced by an adversarial term.

- ``trades``: CE(y, p(x)) + beta KL(p(x) || p(x')), x' the point of the ball where that KL is largest
  (Zhang et al. 2019);
- ``pgd-at``: CE(y, p(x')), x' by PGD on the cross-entropy (Madry et al. 2018);
- ``fast-at``: the same with one step of 1.25 eps from a random start (Wong et al. 2020).

The KL and attention terms to the teacher stay, on the clean images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, DerivedDocument, Paradigm, TrainDocument
from rnascl_cli.artifacts.runs import refuse_changed, refuse_changed_student, student_document
from rnascl_cli.artifacts.store import STUDENT, read_document, sha256_file, write_document
from rnascl_cli.data import Batch, ImageSet, load_data
from rnascl_cli.distill import objectives
from rnascl_cli.distill.objectives import add_up, trades_kl
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.fit import ScheduledOptimiser, Stateful
from rnascl_cli.engine.modes import evaluating, frozen
from rnascl_cli.engine.optimise import build_optimiser, descend
from rnascl_cli.engine.run_directory import RunDirectory
from rnascl_cli.errors import UserError
from rnascl_cli.models.files import load_student, save_student
from rnascl_cli.recipes import AdvFinetuneSettings, Recipe
from rnascl_cli.stages.apprentice import Apprentice
from rnascl_cli.stages.inspection import warn_without_perturbation
from rnascl_cli.stages.perturbing import perturb
from rnascl_cli.stages.planning import training_provenance
from rnascl_cli.stages.schooling import school
from rnascl_cli.stages.train import check_fits, holdout_accuracy


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
    last epoch; the test images are looked at once, after that.

    Args:
        source: A run directory of ``train`` or ``adv-finetune``.
        recipe: All settings.
        run: The run directory, claimed but not yet made.

    Raises:
        UserError: The run, data or teacher are unusable or do not fit together.
        RunError: The loss became NaN or infinite.
    """
    settings = recipe.adv_finetune
    if run.path.resolve() == source.resolve():
        raise UserError(f"--out {run.path}: is the run to be fine-tuned, and would be lost; name another")
    before, derived = source_run(source)
    paradigm: Paradigm = settings.paradigm or before.paradigm
    compute = resolve_compute(recipe.device, recipe.precision, deterministic=recipe.deterministic)
    student, architecture = load_student(source / STUDENT)
    if architecture != before.architecture:
        raise UserError(f"{source}: {before.kind}.json and {STUDENT} name different architectures; make the run again")
    data = load_data(recipe.data, seed=recipe.seed)
    check_fits(recipe, architecture, data, before=before.provenance.data)
    warn_without_perturbation("adv-finetune", settings.perturbation, term="adversarial")
    inputs = {STUDENT: before.student_sha256, f"{before.kind}.json": sha256_file(source / f"{before.kind}.json")}

    history, teacher = school(
        "adv-finetune",
        student,
        derived,
        recipe,
        settings,
        lambda apprentice: AdvFinetuneTask(settings, apprentice, holdout=data.holdout, compute=compute),
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
        inputs={**inputs, "derived.json": sha256_file(run.path / "derived.json")},
    )
    document = AdvFinetuneDocument(
        provenance=provenance,
        method=settings.method,
        paradigm=paradigm,
        architecture=architecture,
        student_sha256=save_student(run.path / STUDENT, student, architecture),
        clean_accuracy=accuracy(student, data.test, compute=compute),
        epochs=settings.epochs,
        seconds=sum(entry["seconds"] for entry in history),
        history=history,
    )
    write_document(run.path / "adv-finetune.json", document)
    return document


class AdvFinetuneTask:
    """One step of adversarial fine-tuning."""

    def __init__(
        self, settings: AdvFinetuneSettings, apprentice: Apprentice, *, holdout: ImageSet, compute: Compute
    ) -> None:
        self._settings, self._apprentice, self._compute = settings, apprentice, compute
        self._holdout = holdout.to(compute.device)
        optimiser = build_optimiser(apprentice.student.parameters(), settings.optimiser)
        self.optimisers = [ScheduledOptimiser(optimiser, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {"student": apprentice.student, "optimiser": optimiser}
        self._noise = torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Draw this epoch's starting points from ``noise``."""
        self._noise = noise
        self._apprentice.inspection.start_epoch()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Perturb the batch, then take one step of SGD."""
        x_BCHW, y_B = batch.x_BCHW, batch.y_B
        apprentice, optimiser = self._apprentice, self.optimisers[0].optimiser
        adversarial_BCHW = self._perturb(x_BCHW, y_B)
        apprentice.student.train()
        # The clean answer first: its maps must be taken before the perturbed images run through the taps.
        clean = apprentice.answer(x_BCHW)
        perturbed = apprentice.answer(adversarial_BCHW)
        terms = self._robust_terms(clean.logits_BK, perturbed.logits_BK, y_B)
        terms |= apprentice.teacher_terms(batch, clean)
        loss = add_up(terms, {"adversarial": self._adversarial_weight, **apprentice.weights})
        descend(optimiser, loss)
        named = {
            "loss": loss,
            **terms,
            "train_accuracy": (clean.logits_BK.argmax(dim=1) == y_B).float().mean(),
            "train_robust_accuracy": (perturbed.logits_BK.argmax(dim=1) == y_B).float().mean(),
        }
        return {name: value.detach() for name, value in named.items()}

    @property
    def _adversarial_weight(self) -> float:
        return self._settings.beta if self._settings.method == "trades" else 1.0

    def _robust_terms(self, clean_BK: Tensor, perturbed_BK: Tensor, y_B: Tensor) -> dict[str, Tensor]:
        if self._settings.method == "trades":
            return {"ce": objectives.cross_entropy(clean_BK, y_B), "adversarial": trades_kl(clean_BK, perturbed_BK)}
        return {"adversarial": objectives.cross_entropy(perturbed_BK, y_B)}

    def _perturb(self, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        student = self._apprentice.student
        # Eval mode, as TRADES's authors do: the point looked for is one of the network that will be attacked.
        with evaluating(student), frozen(student.parameters()), self._apprentice.unwatched():
            return perturb(student, x_BCHW, y_B, self._settings, noise=self._noise)

    def end_epoch(self) -> dict[str, Any]:
        """Measure clean accuracy on the held-out images."""
        self._apprentice.end_epoch()
        return holdout_accuracy(self._apprentice, self._holdout, self._compute)
