"""``teacher train``: adversarial training of a teacher, with model selection on held-out images.

With p the teacher, x an image, x' the perturbed one and y the label, the loss is

- ``pgd-at`` (Madry et al. 2018): CE(p(x'), y), with x' from PGD;
- ``fgsm-rs`` (Wong et al. 2020): the same, with x' from one step of 1.25 eps and a random start;
- ``trades`` (Zhang et al. 2019): CE(p(x), y) + beta KL(p(x) || p(x')), with x' from PGD on that KL.

After each epoch PGD-10 is run on held-out training images; the file gets the weights of the best epoch.

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
from rnascl_cli.recipes.adversarial import TRADES
from rnascl_cli.recipes.data_spec import LARGEST_CIFAR_LIKE
from rnascl_cli.recipes.settings import Recipe, SelectSettings, TeacherTrainSettings
from rnascl_cli.stages.training.adversarial import perturb, starting_offset
from rnascl_cli.stages.training.model_selection import BestCheckpoint, ModelSelection, require_holdout
from rnascl_cli.stages.training.sanity_checks import warn_without_perturbation
from rnascl_cli.stages.training.setup import TrainingRun, check_can_be_shared
from rnascl_cli.teachers.architectures import TeacherArchitecture, architecture_named, build_teacher
from rnascl_cli.teachers.files import SUFFIX
from rnascl_cli.teachers.load import Teacher, read_teacher, write_teacher

STAGE = "teacher-train"
DEFAULT_ARCHITECTURE = "r18"


@dataclass(frozen=True)
class TrainedTeacher:
    """The outcome of ``teacher train``.

    Attributes:
        path: The teacher file.
        sha256: Its sha256.
        best_epoch: The epoch of its weights, from 1.
        validation: Accuracies on the held-out images after that epoch.
        measured: Accuracies on the test images.
    """

    path: Path
    sha256: str
    best_epoch: int
    validation: dict[str, float]
    measured: TeacherAccuracy


def training_folder(out: Path) -> Path:
    """Return the folder of a training's metrics and checkpoint: ``FILE.training`` beside the teacher file."""
    return out.with_suffix(".training")


def check_out(out: Path, *, force: bool) -> Path:
    """Check that a teacher may be written to ``out``.

    Raises:
        UserError: It exists and ``force`` is not given, or its suffix is not ``.safetensors``.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: a teacher file ends in {SUFFIX}")
    if out.exists() and not (force and out.is_file()):
        raise UserError(f"--out {out}: already exists; use another name or --force")
    return out


def train_teacher(recipe: Recipe, out: Path, run: RunDirectory) -> TrainedTeacher:
    """Train a teacher adversarially and write its file. The test set is used once, after model selection.

    Args:
        recipe: Data, seed, device and the teacher_train table.
        out: The teacher file, checked by :func:`check_out`.
        run: Claimed directory for metrics and checkpoint. The checkpoint is removed at the end.

    Raises:
        UserError: The data do not fit the architecture or the initial teacher, or nothing is held out.
        RunError: The loss became NaN or infinite; no file is written.
    """
    settings = recipe.teacher_train
    initial = read_initial_teacher(settings)
    architecture = architecture_named(chosen_architecture(settings, initial))
    compute = resolve_device(recipe.device, recipe.precision, deterministic=recipe.deterministic)
    data = load_data(recipe.data, seed=recipe.seed)
    check_size(architecture, data)
    require_holdout(data, who="teacher training")
    check_can_be_shared(min(settings.batch_size, len(data.train)), attention=None)
    warn_without_perturbation(STAGE, settings.robust, term="loss")
    if initial is None:
        module = fresh_teacher(architecture, data, seed=recipe.seed)
    else:
        check_initial_teacher(initial, data, out)
        module = initial.module.requires_grad_(True)
    module = use_fast_depthwise_bf16(convert_sync_batchnorm(module))
    module = module.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    run.create()
    if out.parent.is_dir() and distributed.is_rank_zero():
        remove_temporary_files(out.parent, [out.name])
    step = TeacherStep(module, settings, holdout=data.holdout, compute=compute, seed=recipe.seed)
    fit(step, TrainingRun(recipe, compute, data, run).config(STAGE, settings, teacher=initial))
    step.selection.restore_selected_weights()
    measured = measure(module, data, eps=settings.robust.eps, compute=compute, seed=recipe.seed)
    if measured.pgd20 <= 1 / data.num_classes:
        warning(
            f"the teacher is no better than chance under PGD-20 at {measured.eps}; train longer or with a smaller eps"
        )
    about = _header_fields(recipe, data, step.best, measured, initial)
    sha256 = write_teacher(out, module, architecture=architecture.name, num_classes=data.num_classes, about=about)
    run.remove(CHECKPOINT)
    return TrainedTeacher(out, sha256, step.best.epoch + 1, step.best.validation, measured)


def read_initial_teacher(settings: TeacherTrainSettings) -> Teacher | None:
    """Load the teacher whose weights training starts from; None to train from scratch.

    Raises:
        UserError: It cannot be read.
    """
    if settings.start_from is None:
        return None
    try:
        return read_teacher(settings.start_from)
    except UserError as error:
        raise UserError(str(error).replace("--teacher", "--from", 1)) from None


def chosen_architecture(settings: TeacherTrainSettings, initial: Teacher | None) -> str:
    """Return the architecture given by ``--arch``, that of the initial teacher, or the default one.

    Raises:
        UserError: ``--arch`` is not the architecture of the initial teacher.
    """
    given = settings.architecture
    if initial is None:
        return given or DEFAULT_ARCHITECTURE
    if given is not None and architecture_named(given).name != initial.architecture:
        raise UserError(
            f"--arch {given}: --from {initial.reference.source} is a {initial.architecture}; leave --arch out"
        )
    return initial.architecture


def check_initial_teacher(initial: Teacher, data: Data, out: Path) -> None:
    """Check that training may start from a teacher.

    Raises:
        UserError: It has another number of classes than the data, or ``out`` would replace it.
    """
    source = initial.reference.source
    if initial.num_classes != data.num_classes:
        raise UserError(
            f"--from {source}: has {initial.num_classes} classes, --data {data.spec} has {data.num_classes}; choose "
            "another of them, or train from scratch"
        )
    if Path(initial.reference.path).resolve() == out.resolve():
        raise UserError(f"--out {out}: is the teacher to start from, and would be lost; name another")


def fresh_teacher(architecture: TeacherArchitecture, data: Data, *, seed: int) -> nn.Module:
    """Build a teacher with seeded initial weights and the data's normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, STAGE, "weights").initial_seed())
        return build_teacher(architecture.name, num_classes=data.num_classes, mean=data.mean, std=data.std)


def check_size(architecture: TeacherArchitecture, data: Data) -> None:
    """Check that an architecture for CIFAR-sized images gets such images, and one for photographs photographs.

    Raises:
        UserError: It does not.
    """
    if (data.input_size > LARGEST_CIFAR_LIKE) != (architecture.input_size > LARGEST_CIFAR_LIKE):
        raise UserError(
            f"--arch {architecture.name}: made for images of {architecture.input_size} pixels, --data {data.spec} has "
            f"{data.input_size}; choose another of them"
        )


class TeacherStep:
    """One step of TRADES, PGD-AT or Fast-AT, with weight averaging and model selection after each epoch.

    Args:
        module: The teacher, on the device.
        settings: Of the teacher_train table.
        holdout: Images for model selection.
        compute: Device and precision.
        seed: Of the run.
    """

    def __init__(
        self, module: nn.Module, settings: TeacherTrainSettings, *, holdout: ImageSet, compute: DeviceConfig, seed: int
    ) -> None:
        self.module, self._compute = module, compute
        self._robust = settings.robust
        optimizer = build_optimizer(module.parameters(), settings.optimiser)
        self._average = averaging(module, settings.average, epochs=settings.epochs)
        self.selection = ModelSelection(
            module,
            holdout,
            SelectSettings(),
            eps=settings.robust.eps,
            compute=compute,
            seed=seed,
            stage=STAGE,
            average=self._average,
        )
        assert self.selection.best is not None
        self.best: BestCheckpoint = self.selection.best
        self.optimizers = [ScheduledOptimizer(optimizer, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {"teacher": module, "optimiser": optimizer, "best": self.best}
        if self._average is not None:
            self.state["average"] = self._average
        self.epoch, self._noise = 0, torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Set train mode; the random starts of this epoch are drawn from ``noise``."""
        self.epoch, self._noise = epoch, noise
        self.module.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Perturb the batch, and take one optimizer step on the loss of the method."""
        x_BCHW, y_B = batch.x_BCHW, batch.y_B
        adversarial_BCHW = self.perturb(batch)
        accuracies: dict[str, Tensor] = {}
        with self._compute.student_autocast():
            if isinstance(self._robust, TRADES):  # CE(p(x), y) + beta KL(p(x) || p(x'))
                clean_BK = self.module(x_BCHW)
                adversarial_BK = self.module(adversarial_BCHW)
                terms = trades_terms(clean_BK, adversarial_BK, y_B)
                weights = {"adversarial": self._robust.beta}
                accuracies["train_accuracy"] = _accuracy(clean_BK, y_B)
            else:  # CE(p(x'), y)
                adversarial_BK = self.module(adversarial_BCHW)
                terms, weights = adversarial_ce_terms(adversarial_BK, y_B), {}
        accuracies["train_robust_accuracy"] = _accuracy(adversarial_BK, y_B)
        loss = weighted_sum(terms, weights)
        optimizer_step(self.optimizers[0].optimizer, loss, images=len(batch))
        if self._average is not None:
            self._average.after_step()
        return {name: value.detach() for name, value in {"loss": loss, **terms, **accuracies}.items()}

    def perturb(self, batch: Batch) -> Tensor:
        """Return the adversarial images of a batch; weights and running statistics do not change.

        PGD-AT and Fast-AT attack the network in train mode, as Madry et al. and Wong et al. do: when training from
        scratch, the running statistics lag behind the weights, and the function that the step trains is the one to
        attack. TRADES attacks in eval mode, as its authors do, and in float32: it starts so near to x that bf16 would
        round the difference of the logits away.
        """
        module = self.module
        is_trades = isinstance(self._robust, TRADES)
        mode = evaluating(module) if is_trades else fixed_statistics(module)
        precision = contextlib.nullcontext() if is_trades else self._compute.student_autocast()
        with mode, frozen(module.parameters()), precision:
            offset_BCHW = starting_offset(batch.x_BCHW, self._robust, noise=self._noise, share=batch.shard)
            return perturb(module, batch.x_BCHW, batch.y_B, self._robust, offset_BCHW=offset_BCHW)

    def end_epoch(self) -> dict[str, Any]:
        """Measure clean and PGD-10 accuracy on the held-out images, and keep the weights if they are the best."""
        return dict(self.selection.end_epoch(self.epoch))


def _accuracy(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return (logits_BK.argmax(dim=1) == y_B).float().mean()


def _header_fields(
    recipe: Recipe, data: Data, best: BestCheckpoint, measured: TeacherAccuracy, initial: Teacher | None
) -> dict[str, Any]:
    """Return the header fields that say how the teacher was trained, without times: equal runs give equal bytes."""
    settings = recipe.teacher_train
    method = settings.robust.method
    origin = f", from {initial.architecture} sha256 {initial.reference.sha256[:12]}" if initial else ""
    return {
        "source": f"rnascl teacher train, {method}, eps {measured.eps}, {settings.epochs} epochs{origin}",
        "source_sha256": initial.reference.sha256 if initial else None,
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
