"""The settings of all stages; the defaults are the paper's CIFAR-10 values, except for the 2 % held out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rnascl_cli.artifacts.documents import MOST_POINTS, Paradigm, Protocol
from rnascl_cli.core.units import Count, PixelSize
from rnascl_cli.recipes.adversarial import EPS, FGSMRS, PGDAT, RSLAD, TRADES, FastAT, RobustMethod, RobustSettings
from rnascl_cli.recipes.base import Settings
from rnascl_cli.recipes.baselines import BaselineSettings


class DataSettings(Settings):
    """The data set and its augmentation."""

    spec: str = "cifar10"
    limit_train: Annotated[int, Field(ge=1)] | None = None
    limit_test: Annotated[int, Field(ge=1)] | None = None
    holdout: float = Field(
        default=0.02, ge=0.0, le=0.5, description="fraction of the training images held out for model selection"
    )
    augment: Literal["auto", "crop", "crop-flip", "flip", "resized-crop-flip", "none"] = Field(
        default="auto",
        description="auto: pad-4 crop and flip up to 64 pixels (digits: no flip), RandomResizedCrop and flip above",
    )
    keep: Literal["auto", "memory", "stream"] = Field(
        default="auto",
        description="decode image folders once into memory, or batch by batch; auto: memory up to 2 GiB per split",
    )
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        default=None,
        description="processes that decode streamed images; 0: this one. null: number of CPUs less one, at most 16",
    )


class SGD(Settings):
    """Stochastic gradient descent with momentum (section 4.1)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=2e-4, ge=0.0)


class Adam(Settings):
    """Adam; the authors' code uses it for the Gumbel parameters."""

    name: Literal["adam"]
    lr: float = Field(default=0.1, gt=0.0)
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-4, ge=0.0)


Optimiser = Annotated[SGD | Adam, Field(discriminator="name")]


class StepSchedule(Settings):
    """Multiplies the learning rate by ``factor`` at each milestone, a fraction of the run."""

    kind: Literal["step"] = "step"
    milestones: tuple[float, ...] = (0.75, 0.9)
    factor: float = Field(default=0.1, gt=0.0, le=1.0)


class CosineSchedule(Settings):
    """Decays the learning rate to zero along half a cosine (ImageNet-100)."""

    kind: Literal["cosine"]


Schedule = Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")]


class GumbelSettings(Settings):
    """Gumbel-Softmax for widths and tutors alike (section 3.2)."""

    temperature: float = Field(default=5.0, gt=0.0, description="at the first epoch")
    decay: float = Field(default=0.045, ge=0.0, description="the temperature is multiplied by e^-decay per epoch ...")
    decay_epochs: int | None = Field(
        default=100,
        ge=1,
        description="... of a search with this many epochs, and scaled for other lengths. null: not scaled",
    )
    noise: Literal["gumbel", "normal"] = "gumbel"


class AttentionSettings(Settings):
    """Attention maps and the loss on them (section 3.1, eq. 1)."""

    gamma: float = Field(default=1.0, ge=0.0, description="gamma_s in the search, gamma_t in training")
    map_size: int = Field(default=8, ge=1, le=256, description="side of the common map, pixels")
    source: Literal["conv", "norm", "block"] = Field(
        default="conv", description="layers whose outputs give the maps: all convolutions, BatchNorms or blocks"
    )
    norm: Literal["image", "batch"] = Field(
        default="image", description="L2 norm of a map: per image, or over the batch"
    )


class KLSettings(Settings):
    """The KL term between student p and teacher q."""

    weight: float = Field(default=1.0, ge=0.0)
    direction: Literal["student-teacher", "teacher-student"] = Field(
        default="student-teacher", description="KL(p, q) as the paper writes it, or Hinton's KL(q, p)"
    )
    temperature: float = Field(default=1.0, gt=0.0)


class CostSettings(Settings):
    """n_f of eq. (2): scale * (the supernet's expected cost over that of its widest path)^exponent."""

    measure: Literal["macs", "params"] = Field(
        default="macs", description="with a budget and no target, n_f measures what the budget limits"
    )
    exponent: float = Field(default=1.0, ge=0.0)
    scale: float = Field(default=1.0, gt=0.0)
    target: float | None = Field(
        default=None,
        gt=0.0,
        description="MACs or params below which the penalty is constant, e.g. 10e6; null: those of the budget, if any",
    )


class EMA(Settings):
    """Exponential moving average of the weights, per step; the decay is smaller in the first steps."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(default=0.999, ge=0.0, lt=1.0)


class SWA(Settings):
    """Stochastic weight averaging: the mean of the weights after each of the last epochs (Izmailov et al. 2018)."""

    kind: Literal["swa"]
    start: float = Field(
        default=0.75, ge=0.0, lt=1.0, description="fraction of the run after which epochs are averaged"
    )


class SelectSettings(Settings):
    """The weights of the best epoch on held-out training images are kept."""

    metric: Literal["robust", "clean"] = "robust"
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="stop after so many epochs without improvement; null: never"
    )
    steps: int = Field(default=10, ge=1, description="PGD steps on the held-out images")
    eps: PixelSize | None = Field(default=None, description="of that PGD; null: that of the training, or 8/255")


class SearchSettings(Settings):
    """The search phase (section 3.4, eq. 2)."""

    paradigm: Paradigm = "rnas-cl"
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=2)
    weight_share: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="fraction of each batch for the weights; the rest is for the Gumbel parameters",
    )
    optimiser: Optimiser = Field(default_factory=SGD)
    schedule: Schedule = Field(default_factory=StepSchedule)
    gumbel_optimiser: Optimiser = Field(
        default=SGD(weight_decay=0.0), description="for width and tutor logits, which weight decay would pull together"
    )
    gumbel: GumbelSettings = Field(default_factory=GumbelSettings)
    attention: AttentionSettings = Field(default_factory=AttentionSettings)
    kl: KLSettings = Field(default_factory=KLSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    robust: TRADES | FastAT | RSLAD | None = Field(
        default=None, discriminator="method", description="adversarial training of the supernet; null: clean images"
    )
    max_macs: Count | None = Field(
        default=None,
        description="upper limit of the derived network's MACs, and target of n_f: 8e6 or '8M'; null: no limit",
    )
    max_params: Count | None = Field(
        default=None, description="upper limit of the derived network's params: 0.2e6 or '0.2M'; null: no limit"
    )
    pareto: Annotated[int, Field(ge=2, le=MOST_POINTS)] | None = Field(
        default=None,
        description="number of networks over the range of MACs to derive from one search; null: one network",
    )


class StudentSettings(Settings):
    """Settings that training and fine-tuning of a student share: eq. (3), its optimization and model selection."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimiser: Optimiser = Field(default_factory=SGD)
    schedule: Schedule = Field(default_factory=StepSchedule)
    attention: AttentionSettings = Field(default_factory=AttentionSettings)
    kl: KLSettings = Field(default_factory=KLSettings)
    robust: RobustSettings | None = Field(
        default=None,
        discriminator="method",
        description="adversarial training, whose terms replace the cross-entropy; null: clean images",
    )
    average: EMA | SWA | None = Field(default=None, discriminator="kind", description="weight averaging; null: none")
    select: SelectSettings | None = Field(default=None, description="model selection; null: the last epoch's weights")

    @property
    def method(self) -> RobustMethod | None:
        """The method of adversarial training; None on clean images."""
        return None if self.robust is None else self.robust.method

    @property
    def selection_eps(self) -> float:
        """Size of the PGD attack on the held-out images, L-inf, pixel units."""
        if self.select is not None and self.select.eps is not None:
            return self.select.eps
        return EPS if self.robust is None else self.robust.eps


class TrainSettings(StudentSettings):
    """The training phase (section 3.4, eq. 3)."""

    paradigm: Paradigm | None = Field(default=None, description="null: the paradigm of the search")
    distill: BaselineSettings | None = Field(
        default=None, discriminator="name", description="baseline loss that replaces the paradigm's teacher terms"
    )


class AdvFinetuneSettings(StudentSettings):
    """Adversarial fine-tuning (section 4.2)."""

    robust: RobustSettings = Field(default_factory=TRADES, discriminator="method")
    paradigm: Paradigm | None = Field(default=None, description="null: the paradigm of the training")
    epochs: int = Field(default=20, ge=1)


def _words(value: Any) -> Any:
    """Split comma-separated text, so that ``--set attack.eps=2/255,8/255`` reads like ``--eps``."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (str(value),) if isinstance(value, int | float) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class AttackSettings(Settings):
    """The evaluation attacks (section 4.1, A.4)."""

    attacks: Words = ("fgsm", "mi-fgsm", "pgd20", "cw", "aa")
    eps: Words = Field(default=("8/255",), description="as fractions; units by protocol")
    norm: Literal["Linf", "L2"] = "Linf"
    protocol: Protocol = "pixel"
    step_size: PixelSize | None = Field(
        default=None, description="of PGD and CW; null: a quarter of eps, which is 2/255 at 8/255"
    )
    restarts: int = Field(default=1, ge=1, description="random starts of PGD and CW")
    mi_steps: int = Field(default=10, ge=1)
    mi_decay: float = Field(default=1.0, ge=0.0)
    cw_steps: int = Field(default=20, ge=1)
    cw_kappa: float = Field(default=0.0, ge=0.0)
    paper_code_clamp: bool = Field(
        default=False, description="paper-code only: clamp normalized values to [0, 1], as in the authors' code"
    )
    stop_early: bool = Field(
        default=False,
        description="PGD and CW stop at the first iterate that fools the model; false: the last iterate counts",
    )
    batch_size: Annotated[int, Field(ge=1)] | None = Field(default=None, description="null: 250 on a GPU, 50 on a CPU")
    audit_images: int = Field(default=100, ge=1, description="number of images of --audit")


SELF_TEST_IMAGES = 256  # of ``teacher import``: accuracies are then known to about three points


class TeacherTrainSettings(Settings):
    """Adversarial training of a teacher (``teacher train``)."""

    architecture: str | None = Field(default=None, description="null: that of start_from, or r18")
    start_from: str | None = Field(
        default=None, description="initial teacher: a name, a file or timm:NAME; null: random weights"
    )
    robust: PGDAT | TRADES | FGSMRS = Field(default_factory=FGSMRS, discriminator="method")
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimiser: Optimiser = SGD(weight_decay=5e-4)
    schedule: Schedule = Field(default_factory=StepSchedule)
    average: EMA | SWA | None = Field(default=None, discriminator="kind", description="weight averaging; null: none")


class TeacherCacheSettings(Settings):
    """Cache of the teacher's outputs for the augmented training images (docs/performance.md)."""

    mode: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="auto: if all of them fit; on: as many as fit, and an error where none can be cached",
    )
    limit_gb: float = Field(default=24.0, gt=0.0, description="limit of all cached outputs on the disk")
    where: Literal["auto", "disk", "device"] = Field(
        default="auto",
        description="disk: files; device: device memory during the run; auto: files, and also device memory on a GPU "
        "where half of its free memory suffices",
    )


class Recipe(Settings):
    """All settings of a run."""

    space: str = "S5"
    teacher: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = Field(
        default=False,
        description="on a GPU: only deterministic operators, slower",
    )
    capture_steps: bool | None = Field(
        default=None,
        description="run the steps of search, train and adv-finetune from CUDA graphs: fewer kernel launches, about "
        "twice the memory of a step; null: in a single process on a GPU, unless deterministic",
    )
    compile_steps: bool = Field(
        default=False,
        description="compile the steps of search, train and adv-finetune by torch.compile, which takes minutes: for "
        "long runs on a GPU, with capture_steps, or on a CPU with bf16 and a C++ compiler. Rounding differs. Not for "
        "a robust search, baseline losses or several processes",
    )
    checkpoint_minutes: float | None = Field(
        default=10.0,
        gt=0.0,
        description="time between checkpoints within an epoch; null: only at its end",
    )
    data: DataSettings = Field(default_factory=DataSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    adv_finetune: AdvFinetuneSettings = Field(default_factory=AdvFinetuneSettings)
    attack: AttackSettings = Field(default_factory=AttackSettings)
    teacher_train: TeacherTrainSettings = Field(default_factory=TeacherTrainSettings)
    teacher_cache: TeacherCacheSettings = Field(default_factory=TeacherCacheSettings)
