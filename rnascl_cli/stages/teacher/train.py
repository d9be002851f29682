"""Training of teachers: adversarial training, the best epoch chosen on held-out images.

- ``pgd-at``: cross-entropy on images perturbed by PGD (Madry et al. 2018);
- ``trades``: cross-entropy on the clean images, and beta times the KL to the perturbed ones (Zhang et al. 2019);
- ``fgsm-rs``: as ``pgd-at``, with one step of 1.25 eps from a random start (Wong et al. 2020).

After each epoch PGD-10 is run on held-out training images, and the weights of the best epoch are kept
(``stages/training/model_selection.py``).

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnascl_cli.core import distributed
from rnascl_cli.core.console import warning
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.random_streams import generator
from rnascl_cli.core.version import __version__
from rnascl_cli.data import Batch, Data, ImageSet, load_data
from rnascl_cli.distill.adversarial_losses import adversarial_ce_terms, trades_terms
from rnascl_cli.distill.losses import weighted_sum
from rnascl_cli.engine.device import DeviceConfig, resolve_device
from rnascl_cli.engine.evaluate import TeacherAccuracy, measure
from rnascl_cli.engine.modes import evaluating, fixed_statistics, frozen
from rnascl_cli.engine.optimizer import build_optimizer, optimizer_step
from rnascl_cli.engine.run_directory import CHECKPOINT, RunDirectory, remove_temporary_files
from rnascl_cli.engine.training_loop import ScheduledOptimizer, Stateful, fit
from rnascl_cli.engine.weight_averaging import averaging
from rnascl_cli.models.batch_norm import convert_sync_batchnorm
from rnascl_cli.models.conv import use_fast_depthwise_bf16
from rnascl_cli.recipes import Recipe, SelectSettings, TeacherTrainSettings
from rnascl_cli.recipes.data_spec import LARGEST_CIFAR_LIKE
from rnascl_cli.stages.training.adversarial import perturb, starting_offset
from rnascl_cli.stages.training.model_selection import BestCheckpoint, ModelSelection, require_holdout
from rnascl_cli.stages.training.sanity_checks import warn_without_perturbation
from rnascl_cli.stages.training.setup import check_can_be_shared, plan_training
from rnascl_cli.teachers.architectures import TeacherArchitecture, architecture_named, build_teacher
from rnascl_cli.teachers.files import SUFFIX
from rnascl_cli.teachers.load import Teacher, read_teacher, write_teacher

STAGE = "teacher-train"
DEFAULT_ARCHITECTURE = "r18"


@dataclass(frozen=True)
class TrainedTeacher:
    """What ``teacher train`` made.

    Attributes:
        path: The teacher file.
        sha256: Of it.
        best_epoch: The epoch whose weights it holds, from 1.
        validation: Accuracies on the held-out images after that epoch.
        measured: Accuracies on the test images.
    """

    path: Path
    sha256: str
    best_epoch: int
    validation: dict[str, float]
    measured: TeacherAccuracy


def training_folder(out: Path) -> Path:
    """Return the folder that metrics and checkpoint of a training go to: ``FILE.training`` beside the file."""
    return out.with_suffix(".training")


def check_out(out: Path, *, force: bool) -> Path:
    """Check that a teacher may be written to ``out``.

    Raises:
        UserError: It exists and ``force`` is not given, or has another suffix than ``.safetensors``.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: a teacher file ends in {SUFFIX}")
    if out.exists() and not (force and out.is_file()):
        raise UserError(f"--out {out}: already exists; use another name or --force")
    return out


def train_teacher(recipe: Recipe, out: Path, run: RunDirectory) -> TrainedTeacher:
    """Train a teacher adversarially and write its file.

    The held-out images choose the epoch; the test images are looked at once, after that.

    Args:
        recipe: Data, seed, device and the teacher_train table.
        out: The teacher file, checked by :func:`check_out`.
        run: Where metrics and checkpoint go, claimed but not yet made. The checkpoint is removed at the end.

    Raises:
        UserError: The data do not fit the architecture or the teacher to start from, or nothing is held out.
        RunError: The loss became NaN or infinite; no file is written.
    """
    settings = recipe.teacher_train
    start = starting_point(settings)
    architecture = architecture_named(chosen_architecture(settings, start))
    compute = resolve_device(recipe.device, recipe.precision, deterministic=recipe.deterministic)
    data = load_data(recipe.data, seed=recipe.seed)
    check_size(architecture, data)
    require_holdout(data, who="teacher training")
    check_can_be_shared(min(settings.batch_size, len(data.train)), attention=None)
    warn_without_perturbation(STAGE, settings.perturbation, term="loss")
    if start is None:
        module = fresh_teacher(architecture, data, seed=recipe.seed)
    else:
        check_start(start, data)
        if Path(start.reference.path).resolve() == out.resolve():
            raise UserError(f"--out {out}: is the teacher to start from, and would be lost; name another")
        module = start.module.requires_grad_(True)
    module = use_fast_depthwise_bf16(convert_sync_batchnorm(module)).to(
        compute.device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]

    run.create()
    if out.parent.is_dir() and distributed.is_rank_zero():
        remove_temporary_files(out.parent, [out.name])
    task = TeacherStep(module, settings, holdout=data.holdout, compute=compute, seed=recipe.seed)
    fit(task, plan_training(STAGE, recipe, settings, data=data, compute=compute, run=run, teacher=start))
    task.validation.restore_selected_weights()
    measured = measure(module, data, eps=settings.perturbation.eps, compute=compute, seed=recipe.seed)
    if measured.pgd20 <= 1 / data.num_classes:
        warning(
            f"the teacher is no better than chance under PGD-20 at {measured.eps}; train longer or with a smaller eps"
        )
    sha256 = write_teacher(
        out,
        module,
        architecture=architecture.name,
        num_classes=data.num_classes,
        about=_about(recipe, data, task.best, measured, start),
    )
    run.remove(CHECKPOINT)
    return TrainedTeacher(out, sha256, task.best.epoch + 1, task.best.validation, measured)


def starting_point(settings: TeacherTrainSettings) -> Teacher | None:
    """Read the teacher that the training goes on from; None from scratch.

    Raises:
        UserError: It cannot be read.
    """
    if settings.start_from is None:
        return None
    try:
        return read_teacher(settings.start_from)
    except UserError as error:
        raise UserError(str(error).replace("--teacher", "--from", 1)) from None


def chosen_architecture(settings: TeacherTrainSettings, start: Teacher | None) -> str:
    """Return the architecture asked for, that of the teacher to start from, or the default one.

    Raises:
        UserError: Another one is asked for than the teacher to start from has.
    """
    asked = settings.architecture
    if start is None:
        return asked or DEFAULT_ARCHITECTURE
    if asked is not None and architecture_named(asked).name != start.architecture:
        raise UserError(f"--arch {asked}: --from {start.reference.source} is a {start.architecture}; leave --arch out")
    return start.architecture


def check_start(start: Teacher, data: Data) -> None:
    """Refuse to go on from a teacher of other classes: its last layer would mean something else.

    Raises:
        UserError: It has another number of classes than the data.
    """
    if start.num_classes != data.num_classes:
        raise UserError(
            f"--from {start.reference.source}: has {start.num_classes} classes, --data {data.spec} has "
            f"{data.num_classes}; choose another of them, or train from scratch"
        )


def fresh_teacher(architecture: TeacherArchitecture, data: Data, *, seed: int) -> nn.Module:
    """Build a teacher with seeded initial weights and the data's normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, STAGE, "weights").initial_seed())
        return build_teacher(architecture.name, num_classes=data.num_classes, mean=data.mean, std=data.std)


def check_size(architecture: TeacherArchitecture, data: Data) -> None:
    """Refuse images of another kind than the architecture was made for.

    Raises:
        UserError: A CIFAR network is given photographs, or the other way round.
    """
    if (data.input_size > LARGEST_CIFAR_LIKE) != (architecture.input_size > LARGEST_CIFAR_LIKE):
        raise UserError(
            f"--arch {architecture.name}: made for images of {architecture.input_size} pixels, --data {data.spec} has "
            f"{data.input_size}; choose another of them"
        )


class TeacherStep:
    """One step of adversarial training, and the validation after each epoch."""

    def __init__(
        self, module: nn.Module, settings: TeacherTrainSettings, *, holdout: ImageSet, compute: DeviceConfig, seed: int
    ) -> None:
        self._module, self._settings, self._compute = module, settings, compute
        optimiser = build_optimizer(module.parameters(), settings.optimiser)
        self._average = averaging(module, settings.average, epochs=settings.epochs)
        self.validation = ModelSelection(
            module,
            holdout,
            SelectSettings(),
            eps=settings.perturbation.eps,
            compute=compute,
            seed=seed,
            stage=STAGE,
            average=self._average,
        )
        assert self.validation.best is not None
        self.best: BestCheckpoint = self.validation.best
        self.optimizers = [ScheduledOptimizer(optimiser, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {"teacher": module, "optimiser": optimiser, "best": self.best}
        if self._average is not None:
            self.state["average"] = self._average
        self._epoch, self._noise = 0, torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Draw this epoch's starting points from ``noise``."""
        self._epoch, self._noise = epoch, noise
        self._module.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Perturb the batch, then take one step of SGD on the perturbed images; for TRADES on the clean ones too."""
        x_BCHW, y_B = batch.x_BCHW, batch.y_B
        adversarial_BCHW = self._perturb(batch)
        terms: dict[str, Tensor] = {}
        right: dict[str, Tensor] = {}
        with self._compute.student_autocast():
            if self._settings.method == "trades":
                clean_BK = self._module(x_BCHW)
                perturbed_BK = self._module(adversarial_BCHW)
                terms = trades_terms(clean_BK, perturbed_BK, y_B)
                right["train_accuracy"] = _share_right(clean_BK, y_B)
            else:
                perturbed_BK = self._module(adversarial_BCHW)
                terms = adversarial_ce_terms(perturbed_BK, y_B)
        loss = weighted_sum(terms, {"adversarial": self._settings.beta if self._settings.method == "trades" else 1.0})
        optimizer_step(self.optimizers[0].optimizer, loss, images=len(batch))
        if self._average is not None:
            self._average.after_step()
        right["train_robust_accuracy"] = _share_right(perturbed_BK, y_B)
        return {name: value.detach() for name, value in {"loss": loss, **terms, **right}.items()}

    def _perturb(self, batch: Batch) -> Tensor:
        # Train mode on the cross-entropy, as Madry, Wong and Rice do: from scratch, running statistics lag far behind
        # the weights, and what is to be fooled is the function that the step then trains. The passes on half-made
        # images leave the running statistics alone. TRADES's authors look for its images in eval mode, and start so
        # near x that bf16 would round the difference of the logits away.
        module, trades = self._module, self._settings.method == "trades"
        mode = evaluating(module) if trades else fixed_statistics(module)
        precision = contextlib.nullcontext() if trades else self._compute.student_autocast()
        with mode, frozen(module.parameters()), precision:
            offset_BCHW = starting_offset(batch.x_BCHW, self._settings, noise=self._noise, share=batch.shard)
            return perturb(module, batch.x_BCHW, batch.y_B, self._settings, offset_BCHW=offset_BCHW)

    def end_epoch(self) -> dict[str, Any]:
        """Measure clean and PGD-10 accuracy on the held-out images; keep the weights if they are the best."""
        return dict(self.validation.end_epoch(self._epoch))


def _share_right(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return (logits_BK.argmax(dim=1) == y_B).float().mean()


def _about(
    recipe: Recipe, data: Data, best: BestCheckpoint, measured: TeacherAccuracy, start: Teacher | None
) -> dict[str, Any]:
    """Return the header's account of how the teacher was made; no clock in it, so that equal runs give equal bytes."""
    settings = recipe.teacher_train
    before = f", from {start.architecture} sha256 {start.reference.sha256[:12]}" if start else ""
    return {
        "source": f"rnascl teacher train, {settings.method}, eps {measured.eps}, {settings.epochs} epochs{before}",
        "source_sha256": start.reference.sha256 if start else None,
        "tool_version": __version__,
        "training": {
            "settings": settings.model_dump(mode="json"),
            "augment": recipe.data.augment,
            "seed": recipe.seed,
            "data": data.reference().model_dump(mode="json"),
            "best_epoch": best.epoch + 1,
            "validation": best.validation,
        },
        "measured": asdict(measured),
    }
