"""Recipes: every setting of every stage, frozen and typed, with the paper's CIFAR-10 values
as defaults (but for the 2 % held out).

A recipe is a TOML file with top-level keys and one table a stage. Layers, later ones winning:
defaults < what the input artifact says (data, teacher, seed) < ``--recipe FILE`` < ``--set KEY=VALUE`` <
the command line's own options. Unknown keys are refused, all at once, each with the nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rnascl_cli.artifacts.documents import Paradigm, Protocol
from rnascl_cli.errors import UserError, nearest
from rnascl_cli.units import PixelSize

Layer = Mapping[str, Any]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Settings):
    """Which images, and how they are augmented."""

    spec: str = "cifar10"
    limit_train: Annotated[int, Field(ge=1)] | None = None
    limit_test: Annotated[int, Field(ge=1)] | None = None
    holdout: float = Field(
        default=0.02, ge=0.0, le=0.5, description="share of the training images kept for choosing, never trained on"
    )
    augment: Literal["auto", "crop", "crop-flip", "resized-crop-flip", "none"] = Field(
        default="auto",
        description="auto: pad-4 crop and flip up to 64 pixels (digits: no flip), RandomResizedCrop and flip above",
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
    betas: tuple[float, float] = (0.9, 0.999)
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

    measure: Literal["macs", "params"] = "macs"
    exponent: float = Field(default=1.0, ge=0.0)
    scale: float = Field(default=1.0, gt=0.0)
    target: float | None = Field(
        default=None, gt=0.0, description="MACs or params below which smaller is no better, e.g. 10e6; null: none"
    )


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
    optimiser: Optimiser = SGD()
    schedule: Schedule = StepSchedule()
    gumbel_optimiser: Optimiser = Field(
        default=SGD(weight_decay=0.0), description="for width and tutor logits; decay would only pull choices together"
    )
    gumbel: GumbelSettings = GumbelSettings()
    attention: AttentionSettings = AttentionSettings()
    kl: KLSettings = KLSettings()
    cost: CostSettings = CostSettings()


class TrainSettings(Settings):
    """The training phase (section 3.4, eq. 3)."""

    paradigm: Paradigm | None = Field(default=None, description="null: the paradigm of the search")
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimiser: Optimiser = SGD()
    schedule: Schedule = StepSchedule()
    attention: AttentionSettings = AttentionSettings()
    kl: KLSettings = KLSettings()


class PerturbationSettings(Settings):
    """How training images are perturbed, L-inf, pixel units."""

    eps: PixelSize = 8 / 255
    step_size: PixelSize = 2 / 255
    steps: int = Field(default=10, ge=1)


class AdvFinetuneSettings(Settings):
    """Adversarial fine-tuning (section 4.2): the method's term replaces the cross-entropy of eq. (3)."""

    method: Literal["trades", "pgd-at", "fast-at"] = "trades"
    paradigm: Paradigm | None = Field(default=None, description="null: the paradigm of the training")
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=1)
    beta: float = Field(default=6.0, ge=0.0, description="TRADES: weight of the KL to the perturbed images")
    perturbation: PerturbationSettings = PerturbationSettings()
    optimiser: Optimiser = SGD()
    schedule: Schedule = StepSchedule()
    attention: AttentionSettings = AttentionSettings()
    kl: KLSettings = KLSettings()


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
    batch_size: int = Field(default=250, ge=1)
    audit_images: int = Field(default=100, ge=1, description="how many of the images --audit works on")


class TeacherTrainSettings(Settings):
    """``teacher train``: a CIFAR ResNet made robust by adversarial training."""

    architecture: str = "r18"
    method: Literal["pgd-at", "fgsm-rs"] = "fgsm-rs"
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=1)
    perturbation: PerturbationSettings = PerturbationSettings()
    optimiser: Optimiser = SGD(weight_decay=5e-4)
    schedule: Schedule = StepSchedule()


class Recipe(Settings):
    """All settings of a run."""

    space: str = "S5"
    teacher: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    data: DataSettings = DataSettings()
    search: SearchSettings = SearchSettings()
    train: TrainSettings = TrainSettings()
    adv_finetune: AdvFinetuneSettings = AdvFinetuneSettings()
    attack: AttackSettings = AttackSettings()
    teacher_train: TeacherTrainSettings = TeacherTrainSettings()


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with rnascl: the package's copy, or a checkout's recipes/."""
    package = Path(__file__).resolve().parent
    packed = package / "_recipes"
    return packed if packed.is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by path, or by its name under recipes/ (``cifar10/rnas-cl-s3-wrt34``).

    Raises:
        UserError: Neither exists.
    """
    folder = recipes_folder()
    for candidate in (Path(name), folder / name, folder / f"{name}.toml"):
        if candidate.is_file():
            return candidate
    known = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.toml"))
    raise UserError(f"--recipe: no file '{name}' and no recipe of that name{nearest(name, known)}")


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a TOML recipe as a nested dictionary, unchecked.

    Raises:
        UserError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--recipe {path}: not TOML ({error})") from None


def parse_setting(text: str, stage: str | None) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` into a nested layer.

    Args:
        text: ``search.attention.gamma=10``; inside a stage also ``attention.gamma=10``. VALUE is TOML
            (numbers, true/false, lists), ``null``, or else a plain string.
        stage: The stage that is running, whose table a key without one is looked up in first.

    Raises:
        UserError: There is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: write KEY=VALUE, e.g. --set search.attention.gamma=10")
    try:
        parsed: Any = tomllib.loads(f"value = {value.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = None if value.strip() == "null" else value.strip()
    names = key.strip().replace("-", "_").split(".")
    if stage is not None and names[0] not in Recipe.model_fields:
        names.insert(0, stage)
    layer: dict[str, Any] = {}
    inner = layer
    for name in names[:-1]:
        inner = inner.setdefault(name, {})
    inner[names[-1]] = parsed
    return layer


def resolve(layers: Sequence[Layer]) -> Recipe:
    """Lay settings over one another, later layers winning, and check the result.

    Raises:
        UserError: Unknown keys (all of them, each with the nearest known one) or values out of range.
    """
    merged = Recipe().model_dump()
    for layer in layers:
        _merge(merged, layer)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item) for item in error.errors())) from None


def _merge(base: dict[str, Any], over: Layer, *, under: str = "") -> None:
    for key, value in over.items():
        inner = base.get(key)
        if isinstance(value, Mapping):
            # Another optimiser or schedule replaces the old one: its fields mean nothing to the new kind.
            kinds = [value[tag] for tag in ("name", "kind") if tag in value]
            if not isinstance(inner, dict) or (kinds and inner.get("name", inner.get("kind")) not in kinds):
                inner = {}
            base[key] = inner
            _merge(inner, value, under=f"{under}{key}.")
        elif isinstance(inner, dict):
            raise UserError(f"recipe key '{under}{key}': is a table; set its keys one by one, e.g. {key}.KEY=VALUE")
        else:
            base[key] = value


def _fields(annotation: Any) -> dict[str, Any]:
    """Return the fields of a settings class, or of all members of a union of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict(annotation.model_fields)
    members: dict[str, Any] = {}
    for member in getattr(annotation, "__args__", ()):
        members |= _fields(member)
    return members


def _explain(item: Any) -> str:
    names: list[str] = []
    fields: dict[str, Any] = dict(Recipe.model_fields)
    tagged = False
    for part in map(str, item["loc"]):
        if tagged:  # pydantic puts the kind of an optimiser or schedule into the path; it is no key
            tagged = False
            continue
        names.append(part)
        field = fields.get(part)
        if field is not None:
            tagged = field.discriminator is not None
            known, fields = fields, _fields(field.annotation)
        else:
            known = fields
    key = ".".join(names)
    if item["type"] == "extra_forbidden":
        return f"unknown recipe key '{key}'{nearest(names[-1], known)}"
    return f"recipe key '{key}': {item['msg']}"
