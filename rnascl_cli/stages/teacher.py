"""Training of teachers: adversarial training, the best epoch chosen on held-out images.

- ``pgd-at``: cross-entropy on images perturbed by PGD (Madry et al. 2018);
- ``fgsm-rs``: the same with one step of 1.25 eps from a random start (Wong et al. 2020). It can collapse within
  an epoch ("catastrophic overfitting"), and PGD training overfits (Rice et al. 2020), so after each epoch PGD-10
  is run on held-out training images, and the weights of the best epoch are kept.

Shape suffixes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnascl_cli import __version__
from rnascl_cli.attacks.gradient import Linf, cross_entropy, projected_gradient
from rnascl_cli.console import say, warn
from rnascl_cli.data import Batch, Data, ImageSet, load_data, ordered_batches
from rnascl_cli.data.augment import LARGEST_CIFAR_LIKE
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.engine.evaluate import accuracy
from rnascl_cli.engine.fit import ScheduledOptimiser, Stateful, fit
from rnascl_cli.engine.modes import evaluating, fixed_statistics, frozen
from rnascl_cli.engine.optimise import build_optimiser, descend
from rnascl_cli.engine.progress import progress
from rnascl_cli.engine.run_directory import CHECKPOINT, RunDirectory
from rnascl_cli.engine.seeds import generator
from rnascl_cli.errors import UserError
from rnascl_cli.models.checkpoints import SUFFIX, write_teacher
from rnascl_cli.models.teachers import TeacherArchitecture, architecture_named, build_teacher
from rnascl_cli.recipes import Recipe, TeacherTrainSettings
from rnascl_cli.stages.planning import plan_training

STAGE = "teacher-train"
FGSM_RS_STEP = 1.25  # times eps: the step that Wong et al. recommend
VALIDATION_STEPS, TEST_STEPS = 10, 20
STEP_SHARE = 0.25  # of eps: 2/255 at 8/255, the step of the evaluations
BATCH = 250


@dataclass(frozen=True)
class Measured:
    """Accuracies of a teacher on test images, as kept in its file's header.

    Attributes:
        clean: Share of the images classified rightly.
        pgd20: Share still right under PGD-20 with random start and steps of eps/4.
        eps: Of the attack, L-inf, pixel units, as a fraction.
        n: Number of images.
        data: The ``--data`` value.
        fingerprint: Of the images.
    """

    clean: float
    pgd20: float
    eps: str
    n: int
    data: str
    fingerprint: str


@dataclass(frozen=True)
class Trained:
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
    measured: Measured


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


def train_teacher(recipe: Recipe, out: Path, run: RunDirectory) -> Trained:
    """Train a teacher adversarially and write its file.

    The held-out images choose the epoch; the test images are looked at once, after that.

    Args:
        recipe: Data, seed, device and the teacher_train table.
        out: The teacher file, checked by :func:`check_out`.
        run: Where metrics and checkpoint go, claimed but not yet made. The checkpoint is removed at the end.

    Raises:
        UserError: The data do not fit the architecture, or nothing is held out.
        RunError: The loss became NaN or infinite; no file is written.
    """
    settings = recipe.teacher_train
    architecture = architecture_named(settings.architecture)
    compute = resolve_compute(recipe.device, recipe.precision)
    data = load_data(recipe.data, seed=recipe.seed)
    check_size(architecture, data)
    if not len(data.holdout):
        raise UserError("data.holdout: teacher training chooses its epoch on held-out images; set it above 0")
    module = fresh_teacher(architecture, data, seed=recipe.seed).to(compute.device)
    module = module.to(memory_format=torch.channels_last)

    run.create()
    task = AdversarialTraining(module, settings, holdout=data.holdout, compute=compute, seed=recipe.seed)
    fit(task, plan_training(STAGE, recipe, settings, data=data, compute=compute, run=run))
    module.load_state_dict(task.best.weights)
    measured = measure(module, data, eps=settings.perturbation.eps, compute=compute, seed=recipe.seed)
    if measured.pgd20 <= 1 / data.num_classes:
        warn(f"the teacher is no better than chance under PGD-20 at {measured.eps}; train longer or with a smaller eps")
    sha256 = write_teacher(
        out,
        module,
        architecture=architecture.name,
        num_classes=data.num_classes,
        about=_about(recipe, data, task.best, measured),
    )
    (run.path / CHECKPOINT).unlink(missing_ok=True)
    return Trained(out, sha256, task.best.epoch + 1, task.best.validation, measured)


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


class Best:
    """The weights of the best epoch so far: highest robust, then highest clean accuracy, then latest."""

    def __init__(self) -> None:
        self.epoch = -1
        self.validation: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def offer(self, module: nn.Module, epoch: int, *, robust: float, clean: float) -> None:
        """Take the module's weights if they are at least as good as the best."""
        before = (self.validation.get("robust", -1.0), self.validation.get("clean", -1.0))
        if (robust, clean) >= before:
            self.epoch, self.validation = epoch, {"robust": robust, "clean": clean}
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"epoch": self.epoch, "validation": self.validation, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the state of a checkpoint."""
        self.epoch, self.validation, self.weights = state["epoch"], state["validation"], state["weights"]


class AdversarialTraining:
    """One step of adversarial training, and the validation after each epoch."""

    def __init__(
        self, module: nn.Module, settings: TeacherTrainSettings, *, holdout: ImageSet, compute: Compute, seed: int
    ) -> None:
        self._module, self._settings, self._compute, self._seed = module, settings, compute, seed
        self._holdout = holdout.to(compute.device)
        optimiser = build_optimiser(module.parameters(), settings.optimiser)
        self.best = Best()
        self.optimisers = [ScheduledOptimiser(optimiser, settings.schedule, settings.optimiser.lr)]
        self.state: dict[str, Stateful] = {"teacher": module, "optimiser": optimiser, "best": self.best}
        self._epoch, self._noise = 0, torch.Generator()

    def start_epoch(self, epoch: int, noise: torch.Generator) -> None:
        """Draw this epoch's starting points from ``noise``."""
        self._epoch, self._noise = epoch, noise
        self._module.train()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Perturb the batch, then take one step of SGD on the perturbed images."""
        optimiser = self.optimisers[0].optimiser
        y_B = batch.y_B
        adversarial_BCHW = self._perturb(batch.x_BCHW, y_B)
        with self._compute.student_autocast():
            logits_BK = self._module(adversarial_BCHW)
        loss = F.cross_entropy(logits_BK.float(), y_B)
        descend(optimiser, loss)
        right = (logits_BK.detach().argmax(dim=1) == y_B).float().mean()
        return {"loss": loss.detach(), "train_robust_accuracy": right}

    def _perturb(self, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        perturbation = self._settings.perturbation
        ball = Linf(perturbation.eps)
        step_size, steps = perturbation.step_size, perturbation.steps
        if self._settings.method == "fgsm-rs":
            step_size, steps = FGSM_RS_STEP * perturbation.eps, 1
        # Train mode, as Madry, Wong and Rice do: from scratch, running statistics lag far behind the weights, and
        # what is to be fooled is the function that the step then trains. The passes on half-made images leave
        # the running statistics alone.
        with fixed_statistics(self._module), frozen(self._module.parameters()), self._compute.student_autocast():
            return projected_gradient(
                self._module,
                x_BCHW,
                loss=cross_entropy(y_B),
                ball=ball,
                step_size=step_size,
                steps=steps,
                start_BCHW=x_BCHW + ball.noise(x_BCHW, self._noise),
            )

    def end_epoch(self) -> dict[str, Any]:
        """Measure clean and PGD-10 accuracy on the held-out images; keep the weights if they are the best."""
        clean = accuracy(self._module, self._holdout, compute=self._compute)
        robust = robust_accuracy(
            self._module,
            self._holdout,
            eps=self._settings.perturbation.eps,
            steps=VALIDATION_STEPS,
            compute=self._compute,
            noise=generator(self._seed, STAGE, "validation"),  # the same starts every epoch
        )
        self.best.offer(self._module, self._epoch, robust=robust, clean=clean)
        return {"holdout_accuracy": clean, "holdout_robust_accuracy": robust}


def robust_accuracy(
    module: nn.Module, images: ImageSet, *, eps: float, steps: int, compute: Compute, noise: torch.Generator
) -> float:
    """Return the share of images that are right, and stay right under PGD with random start and steps of eps/4.

    In eval mode and float32.
    """
    right = 0
    ball = Linf(eps)
    with (
        evaluating(module),
        frozen(module.parameters()),
        progress(f"PGD-{steps}", len(images)) as advance,
    ):
        for x_BCHW, y_B in ordered_batches(images, batch_size=BATCH, device=compute.device):
            start_BCHW = x_BCHW + ball.noise(x_BCHW, noise)
            with torch.no_grad():
                still_B = module(x_BCHW).argmax(dim=1) == y_B
            x_R, y_R, start_R = x_BCHW[still_B], y_B[still_B], start_BCHW[still_B]
            if len(x_R):
                adversarial = projected_gradient(
                    module,
                    x_R,
                    loss=cross_entropy(y_R),
                    ball=ball,
                    step_size=STEP_SHARE * eps,
                    steps=steps,
                    start_BCHW=start_R,
                )
                with torch.no_grad():
                    right += int((module(adversarial).argmax(dim=1) == y_R).sum())
            advance(len(y_B))
    return right / len(images)


def measure(module: nn.Module, data: Data, *, eps: float, compute: Compute, seed: int) -> Measured:
    """Measure clean and PGD-20 accuracy on the test images."""
    module = module.to(compute.device)
    noise = generator(seed, "teacher", "pgd20")
    say(f"measuring on {len(data.test):,} test images")
    return Measured(
        clean=accuracy(module, data.test, compute=compute),
        pgd20=robust_accuracy(module, data.test, eps=eps, steps=TEST_STEPS, compute=compute, noise=noise),
        eps=as_fraction(eps),
        n=len(data.test),
        data=data.spec,
        fingerprint=data.fingerprint,
    )


def as_fraction(eps: float) -> str:
    """Return eps as a fraction of 255 where it is one: ``"8/255"``."""
    share = Fraction(eps * 255).limit_denominator(2)
    whole = abs(float(share) - eps * 255) < 1e-6 and share.denominator == 1
    return f"{share}/255" if whole else f"{eps:g}"


def _about(recipe: Recipe, data: Data, best: Best, measured: Measured) -> dict[str, Any]:
    """Return the header's account of how the teacher was made; no clock in it, so that equal runs give equal bytes."""
    settings = recipe.teacher_train
    return {
        "source": f"rnascl teacher train, {settings.method}, eps {measured.eps}, {settings.epochs} epochs",
        "source_sha256": None,
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
