"""Every setting of every stage, frozen and typed, with the paper's CIFAR-10 values as defaults
(but for the 2 % held out).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rnascl_cli.artifacts.documents import MOST_POINTS, Paradigm, Protocol
from rnascl_cli.core.units import Count, PixelSize
from rnascl_cli.recipes.base import Settings
from rnascl_cli.recipes.baselines import BaselineSettings


class DataSettings(Settings):
    """Which images, and how they are augmented."""

    spec: str = "cifar10"
    limit_train: Annotated[int, Field(ge=1)] | None = None
    limit_test: Annotated[int, Field(ge=1)] | None = None
    holdout: float = Field(
        default=0.02, ge=0.0, le=0.5, description="share of the training images kept for choosing, never trained on"
    )
    augment: Literal["auto", "crop", "crop-flip", "flip", "resized-crop-flip", "none"] = Field(
        default="auto",
        description="auto: pad-4 crop and flip up to 64 pixels (digits: no flip), RandomResizedCrop and flip above",
    )
    keep: Literal["auto", "memory", "stream"] = Field(
        default="auto",
        description="image folders decoded once and kept, or decoded batch by batch; auto: kept up to 2 GiB a split",
    )
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        default=None,
        description="processes that decode streamed images; 0: none but this one. null: one a CPU but one, up to 16",
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
    """The learning rate times ``factor`` at each milestone, a share of the run: 75 and 90 of 100 epochs."""

    kind: Literal["step"] = "step"
    milestones: tuple[float, ...] = (0.75, 0.9)
    factor: float = Field(default=0.1, gt=0.0, le=1.0)


class CosineSchedule(Settings):
    """The learning rate to zero along half a cosine (ImageNet-100)."""

    kind: Literal["cosine"]


Schedule = Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")]


class GumbelSettings(Settings):
    """Gumbel-Softmax for widths and tutors alike (section 3.2)."""

    temperature: float = Field(default=5.0, gt=0.0, description="at the first epoch")
    decay: float = Field(default=0.045, ge=0.0, description="the temperature falls by e^-decay each epoch ...")
    decay_epochs: int | None = Field(
        default=100,
        ge=1,
        description="... of a search of this many epochs; other lengths walk the same curve. null: no scaling",
    )
    noise: Literal["gumbel", "normal"] = "gumbel"


class AttentionSettings(Settings):
    """Attention maps and the loss on them (section 3.1, eq. 1)."""

    gamma: float = Field(default=1.0, ge=0.0, description="gamma_s in the search, gamma_t in training")
    map_size: int = Field(default=8, ge=1, le=256, description="side of the common map, pixels")
    tap: Literal["conv", "norm", "block"] = Field(
        default="conv", description="maps of every conv's raw output, of every BatchNorm's, or of every block's"
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
        default="macs", description="with a budget and no target, n_f is of what the budget limits"
    )
    exponent: float = Field(default=1.0, ge=0.0)
    scale: float = Field(default=1.0, gt=0.0)
    target: float | None = Field(
        default=None,
        gt=0.0,
        description="MACs or params below which smaller is no better, e.g. 10e6; null: those of the budget, if any",
    )


class PerturbationSettings(Settings):
    """How training images are perturbed, L-inf, pixel units."""

    eps: PixelSize = 8 / 255
    step_size: PixelSize = 2 / 255
    steps: int = Field(default=10, ge=1)


RobustMethod = Literal["trades", "mart", "pgd-at", "fast-at", "ard", "rslad"]
TAUGHT_METHODS: tuple[RobustMethod, ...] = ("ard", "rslad")
"""The methods whose targets are a teacher's logits, whatever the paradigm."""


class RobustSettings(Settings):
    """Training on perturbed images: each method's published weights (docs/method.md)."""

    method: RobustMethod | None = None
    beta: float = Field(default=6.0, ge=0.0, description="TRADES: weight of the KL to the perturbed images")
    mart_lambda: float = Field(default=5.0, ge=0.0, description="MART: weight of the KL by 1 - p_y")
    ard_alpha: float = Field(
        default=1.0, ge=0.0, le=1.0, description="ARD: share of the teacher's term; the rest is the cross-entropy's"
    )
    ard_temperature: float = Field(default=30.0, gt=0.0, description="ARD: of teacher and student")
    rslad_share: float = Field(
        default=5 / 6, ge=0.0, le=1.0, description="RSLAD: share of the perturbed images; the rest is the clean ones'"
    )
    perturbation: PerturbationSettings = Field(default_factory=PerturbationSettings)


class SearchRobustSettings(RobustSettings):
    """The images perturbed against the supernet while it searches (the paper's future work)."""

    method: Literal["trades", "fast-at", "rslad"]


class EMA(Settings):
    """Exponential moving average of the weights, a step at a time; the first steps are forgotten sooner."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(default=0.999, ge=0.0, lt=1.0)


class SWA(Settings):
    """The mean of the weights that the last epochs ended with (Izmailov et al. 2018)."""

    kind: Literal["swa"]
    start: float = Field(default=0.75, ge=0.0, lt=1.0, description="share of the run behind which epochs count")


class SelectSettings(Settings):
    """The best epoch's weights are kept, chosen on held-out training images."""

    on: Literal["robust", "clean"] = "robust"
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="epochs without a higher accuracy after which the run ends; null: it goes to its end"
    )
    steps: int = Field(default=10, ge=1, description="of the PGD that the held-out images are attacked with")


class SearchSettings(Settings):
    """The search phase (section 3.4, eq. 2)."""

    paradigm: Paradigm = "rnas-cl"
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=2)
    weight_share: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="share of each batch for the weights; the rest is for Gumbel parameters",
    )
    optimiser: Optimiser = Field(default_factory=SGD)
    schedule: Schedule = Field(default_factory=StepSchedule)
    gumbel_optimiser: Optimiser = Field(
        default=SGD(weight_decay=0.0), description="for width and tutor logits; decay would only pull choices together"
    )
    gumbel: GumbelSettings = Field(default_factory=GumbelSettings)
    attention: AttentionSettings = Field(default_factory=AttentionSettings)
    kl: KLSettings = Field(default_factory=KLSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    robust: SearchRobustSettings | None = Field(
        default=None, description="train on images perturbed against the supernet; null: on clean ones"
    )
    max_macs: Count | None = Field(
        default=None,
        description="the derived network has at most so many MACs, and n_f aims there: 8e6 or '8M'; null: no limit",
    )
    max_params: Count | None = Field(
        default=None, description="the derived network has at most so many params: 0.2e6 or '0.2M'; null: no limit"
    )
    pareto: Annotated[int, Field(ge=2, le=MOST_POINTS)] | None = Field(
        default=None, description="derive so many networks over the range of MACs from one search; null: one network"
    )


class StudentSettings(RobustSettings):
    """What training and fine-tuning a student have alike: eq. (3), how it is descended, and which weights are kept."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimiser: Optimiser = Field(default_factory=SGD)
    schedule: Schedule = Field(default_factory=StepSchedule)
    attention: AttentionSettings = Field(default_factory=AttentionSettings)
    kl: KLSettings = Field(default_factory=KLSettings)
    average: EMA | SWA | None = Field(default=None, discriminator="kind", description="null: the weights themselves")
    stop: SelectSettings | None = Field(default=None, description="null: the last epoch's weights")


class TrainSettings(StudentSettings):
    """The training phase (section 3.4, eq. 3); with a method, its term replaces the cross-entropy."""

    paradigm: Paradigm | None = Field(default=None, description="null: the paradigm of the search")
    distill: BaselineSettings | None = Field(
        default=None, discriminator="name", description="a rival loss in place of the paradigm's teacher terms"
    )


class AdvFinetuneSettings(StudentSettings):
    """Adversarial fine-tuning (section 4.2): the method's term replaces the cross-entropy of eq. (3)."""

    method: RobustMethod = "trades"
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
        default=False, description="paper-code only: clamp normalised values to [0, 1], as the authors' code does"
    )
    stop_early: bool = Field(
        default=False,
        description="PGD and CW leave out an image once an iterate fools the model; false: the last iterate is judged",
    )
    batch_size: Annotated[int, Field(ge=1)] | None = Field(default=None, description="null: 250 on a GPU, 50 on a CPU")
    fold: bool = Field(
        default=True,
        description="attack a copy whose BatchNorms are folded into the convolutions; verdicts are the model's own",
    )
    capture: Literal["auto", "on", "off"] = Field(
        default="auto", description="on a GPU, replay captured graphs; auto: for networks of up to 5 M params"
    )
    audit_images: int = Field(default=100, ge=1, description="how many of the images --audit works on")


SELF_TEST_IMAGES = 256  # of ``teacher import``: accuracies are then known to about three points


class TeacherTrainSettings(Settings):
    """``teacher train``: a network made robust by adversarial training."""

    architecture: str | None = Field(default=None, description="null: that of start_from, or r18")
    start_from: str | None = Field(
        default=None, description="a teacher's name or file, or timm:NAME, to go on from; null: from scratch"
    )
    method: Literal["pgd-at", "trades", "fgsm-rs"] = "fgsm-rs"
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=1)
    beta: float = Field(default=6.0, ge=0.0, description="TRADES: weight of the KL to the perturbed images")
    perturbation: PerturbationSettings = Field(default_factory=PerturbationSettings)
    optimiser: Optimiser = SGD(weight_decay=5e-4)
    schedule: Schedule = Field(default_factory=StepSchedule)
    average: EMA | SWA | None = Field(default=None, discriminator="kind", description="null: the weights themselves")


class TeacherCacheSettings(Settings):
    """Keeping the teacher's outputs for every view of the training images (docs/performance.md)."""

    mode: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="auto: where all of them fit; on: as many as fit, and an error where they cannot be kept at all",
    )
    limit_gb: float = Field(default=24.0, gt=0.0, description="what all kept outputs together may take on the disk")
    where: Literal["auto", "disk", "device", "both"] = Field(
        default="auto",
        description="disk: in files; device: in the device's memory while the run lasts; both: in that memory, and at "
        "each epoch's end in the files; auto: both on a GPU, where half of its free memory is enough, else disk",
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
        description="on a GPU: only operators that give the same bits every time, slower; see --deterministic",
    )
    capture_steps: bool | None = Field(
        default=None,
        description="record the step of search, train and adv-finetune as a CUDA graph and replay it, which spares "
        "thousands of launches a step and needs about twice a step's memory; null: on a GPU that one process has, "
        "unless deterministic",
    )
    compile_steps: bool = Field(
        default=False,
        description="fuse the operators of the step of search, train and adv-finetune by torch.compile, which takes a "
        "minute or two at first, and some minutes on a CPU: for long runs on a GPU, together with capture_steps, or on "
        "a CPU with bf16 and a C++ compiler. It rounds in other places than a run without. Not for a robust search, "
        "rival losses, or several processes",
    )
    checkpoint_minutes: float | None = Field(
        default=10.0,
        gt=0.0,
        description="a checkpoint inside an epoch that lasts longer than this; null: only at its end",
    )
    data: DataSettings = Field(default_factory=DataSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    adv_finetune: AdvFinetuneSettings = Field(default_factory=AdvFinetuneSettings)
    attack: AttackSettings = Field(default_factory=AttackSettings)
    teacher_train: TeacherTrainSettings = Field(default_factory=TeacherTrainSettings)
    teacher_cache: TeacherCacheSettings = Field(default_factory=TeacherCacheSettings)
