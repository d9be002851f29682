"""The JSON artifacts, as pydantic models: one class a document, unknown fields refused.

No torch here: ``derive``, ``report`` and ``--help`` read documents without loading it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Literal[1] = 1

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Far above any network there is, and low enough that nothing made from a document takes minutes or gigabytes.
MOST_LAYERS, MOST_CLASSES, LARGEST_INPUT, MOST_POINTS = 4096, 100_000, 4096, 100
SpaceName = Annotated[str, Field(max_length=64)]
LayerNames = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=MOST_LAYERS)]
NumClasses = Annotated[int, Field(ge=2, le=MOST_CLASSES)]
InputSize = Annotated[int, Field(ge=8, le=LARGEST_INPUT, description="height and width of an input image, pixels")]
Paradigm = Literal["rnas-cl", "icc", "kl", "standard"]
TUTORED: tuple[Paradigm, ...] = ("rnas-cl", "icc")
"""The paradigms that learn from tutors (section 4.3)."""
Baseline = Literal["kd", "at", "sp", "vid", "rkd", "crd", "pkt"]
"""The distillation baselines of Figure 11."""
Protocol = Literal["pixel", "paper-code"]
TutorOrigin = Literal["searched", "random", "same-depth", "last-layer", "by-hand"]


class FrozenModel(BaseModel):
    """Base of everything written to disk: frozen, unknown fields refused, NaN and infinity refused."""

    # Validators are built at the first use: `rnascl --help` reads no document.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class DataReference(FrozenModel):
    """Which images a stage used: enough to load the same ones again and to notice when they changed."""

    spec: str = Field(description="the --data value, e.g. 'digits' or 'folder:/data/cifar'")
    fingerprint: Sha256 = Field(description="sha256 over the pixels and labels of the images used")
    limit_train: int | None = None
    limit_test: int | None = None
    classes: list[str]
    train_images: int = Field(ge=0)
    holdout_images: int = Field(ge=0, description="training images set aside for choosing; never trained on")
    test_images: int = Field(ge=0)


class TeacherReference(FrozenModel):
    """Which teacher a tutor map belongs to."""

    source: str = Field(description="the --teacher value as given: a name or a file")
    path: str = Field(description="the absolute path of the file that was read")
    architecture: str = Field(description="e.g. 'r18'")
    sha256: Sha256


class Provenance(FrozenModel):
    """How an artifact was made."""

    tool_version: str
    created: str = Field(description="UTC, ISO 8601")
    command: list[str]
    recipe: dict[str, Any] = Field(description="the resolved recipe, defaults included")
    seed: int = Field(ge=0, lt=2**32)
    data: DataReference | None = None
    teacher: TeacherReference | None = None
    inputs: dict[str, Sha256] = Field(default_factory=dict, description="sha256 of each input artifact by file name")
    device: str
    precision: str
    torch_version: str | None = None
    commit: str | None = Field(default=None, description="the tool's git commit, when run from a checkout")


class Document(FrozenModel):
    """A JSON document with a kind, a schema version and its provenance."""

    schema_version: Literal[1] = SCHEMA_VERSION
    provenance: Provenance


class BudgetRecord(FrozenModel):
    """The most that a derived network may cost (search.max_macs, search.max_params, or options of ``derive``)."""

    max_macs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="for one image; null: no limit")
    max_params: Annotated[int, Field(ge=1)] | None = Field(default=None, description="null: no limit")

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetRecord:
        if self.max_macs is None and self.max_params is None:
            raise ValueError("a budget has max_macs or max_params")
        return self


class FrontPoint(FrozenModel):
    """Which point of a search's front a network is, by rising MACs."""

    index: int = Field(ge=1, description="from 1")
    of: int = Field(ge=2)

    @model_validator(mode="after")
    def _lies_in_it(self) -> FrontPoint:
        if self.index > self.of:
            raise ValueError(f"index {self.index} is beyond the {self.of} points of the front")
        return self


class SearchDocument(Document):
    """What ``search`` found (section 3.4, the search phase)."""

    kind: Literal["search"] = "search"
    space: SpaceName
    paradigm: Paradigm
    num_classes: NumClasses
    input_size: InputSize
    width_choices: list[list[int]] = Field(
        max_length=MOST_LAYERS, description="a list a block: the filter choices of Tables 7 and 8"
    )
    width_logits: list[list[float]] = Field(description="a list a block: one logit a filter choice")
    student_layers: LayerNames
    teacher_layers: LayerNames
    tutor_logits: list[list[float]] = Field(
        max_length=MOST_LAYERS, description="n_s rows of n_t logits; empty without tutors"
    )
    temperature: float = Field(gt=0.0, description="Gumbel-Softmax temperature of the last epoch")
    expected_macs: float = Field(gt=0.0)
    budget: BudgetRecord | None = Field(default=None, description="kept by what is derived; null: none was given")
    pareto: Annotated[int, Field(ge=2, le=MOST_POINTS)] | None = Field(
        default=None, description="points of the front it was searched for; null: one network"
    )
    history: list[dict[str, Any]]
    robust: str | None = Field(default=None, description="the method that perturbed images; null: clean ones only")

    @model_validator(mode="after")
    def _shapes_agree(self) -> SearchDocument:
        if len(self.width_choices) != len(self.width_logits):
            raise ValueError("width_logits and width_choices have different numbers of blocks")
        for block, (choices, logits) in enumerate(zip(self.width_choices, self.width_logits, strict=True)):
            if len(choices) != len(logits) or not choices:
                raise ValueError(f"block {block}: {len(logits)} width_logits for {len(choices)} width_choices")
        if self.tutor_logits:
            if len(self.tutor_logits) != len(self.student_layers):
                raise ValueError("tutor_logits must have one row for each of student_layers")
            if any(len(row) != len(self.teacher_layers) for row in self.tutor_logits):
                raise ValueError("each row of tutor_logits must have one number for each of teacher_layers")
        return self


class Architecture(FrozenModel):
    """A derived student: enough to build the network."""

    space: SpaceName
    widths: list[Annotated[int, Field(ge=1)]] = Field(
        max_length=MOST_LAYERS, description="output channels of each block"
    )
    num_classes: NumClasses
    input_size: InputSize
    params: int = Field(ge=1, description="every trainable number")
    macs: int = Field(ge=1, description="multiply-accumulates of convs and linear layers, for one image")


class TutorMap(FrozenModel):
    """Which teacher layer teaches each student layer: the one-hot g of eq. (3)."""

    teacher: TeacherReference
    student_layers: LayerNames
    teacher_layers: LayerNames
    tutor: list[Annotated[int, Field(ge=0)]] = Field(description="n_s indices into teacher_layers")
    origin: TutorOrigin = Field(
        default="searched", description="who chose: the search, a control (derive --tutors), or somebody by hand"
    )

    @model_validator(mode="after")
    def _indices_in_range(self) -> TutorMap:
        if len(self.tutor) != len(self.student_layers):
            raise ValueError("tutor must have one index for each of student_layers")
        if any(index >= len(self.teacher_layers) for index in self.tutor):
            raise ValueError("tutor holds an index beyond teacher_layers")
        return self


class DerivedDocument(Document):
    """The architecture and tutor map that ``derive`` reads off a search."""

    kind: Literal["derived"] = "derived"
    paradigm: Paradigm
    architecture: Architecture
    tutors: TutorMap | None = Field(description="null where the paradigm uses no tutors")
    budget: BudgetRecord | None = Field(default=None, description="what it was derived under; null: no limit")
    point: FrontPoint | None = Field(default=None, description="null: the one network of its search")


class Validation(FrozenModel):
    """Accuracies on the held-out training images."""

    clean: Fraction
    robust: Fraction = Field(description="under PGD of the recipe's eps and select.steps")


class TrainedStudent(Document):
    """What a training of a student says of its end."""

    average: Literal["ema", "swa"] | None = Field(
        default=None, description="of what kind the weights are a mean; null: of none"
    )
    best_epoch: int | None = Field(default=None, ge=1, description="whose weights were kept; null: the last one's")
    validation: Validation | None = Field(default=None, description="of the best epoch; null where none was chosen")


class TrainDocument(TrainedStudent):
    """What ``train`` reached."""

    kind: Literal["train"] = "train"
    paradigm: Paradigm
    distill: Baseline | None = Field(
        default=None, description="the distillation baseline that replaced the teacher terms"
    )
    architecture: Architecture
    student_sha256: Sha256
    clean_accuracy: Fraction = Field(description="on the test images")
    epochs: int = Field(ge=1, description="how many there were")
    seconds: float = Field(ge=0.0)
    history: list[dict[str, Any]]
    method: str | None = Field(default=None, description="trained on perturbed images by; null: on clean ones, eq. (3)")


class AdvFinetuneDocument(TrainedStudent):
    """What ``adv-finetune`` reached."""

    kind: Literal["adv-finetune"] = "adv-finetune"
    method: str
    paradigm: Paradigm
    distill: Baseline | None = Field(
        default=None, description="the distillation baseline of the training it started from"
    )
    holdout_seen: bool = Field(
        default=False, description="the student may have been trained before on images that are held out here"
    )
    architecture: Architecture
    student_sha256: Sha256
    clean_accuracy: Fraction
    epochs: int = Field(ge=1)
    seconds: float = Field(ge=0.0)
    history: list[dict[str, Any]]


class AttackResult(FrozenModel):
    """One attack at one eps."""

    attack: str
    eps: str = Field(description="as a fraction, e.g. '8/255'")
    eps_value: float = Field(ge=0.0, description="the same as a number; at most 1 in Linf; units by the protocol")
    norm: Literal["Linf", "L2"] = "Linf"
    steps: int | None = Field(description="gradient steps; null where the attack has no such number")
    step_size: float | None = None
    restarts: int = 1
    accuracy: Fraction = Field(description="share of the n images still classified rightly under this attack")
    confidence_interval: tuple[Fraction, Fraction] | None = Field(
        default=None, description="95 % Wilson interval, where only a subset of the test set was attacked"
    )
    seconds: float = Field(ge=0.0)
    images_per_second: float = Field(ge=0.0, description="images attacked over seconds")
    attacked: int | None = Field(
        default=None, ge=0, description="images it had to work on: right when clean, not broken at a smaller eps"
    )
    standard: bool = Field(default=True, description="False where the attack departs from its published setting")

    @model_validator(mode="after")
    def _pixels_have_a_range(self) -> AttackResult:
        if self.norm == "Linf" and self.eps_value > 1:
            raise ValueError(f"eps_value {self.eps_value} is above 1 in Linf")
        return self


class Verdicts(FrozenModel):
    """Which test images one attack at one eps broke."""

    attack: str
    eps: str
    broken: list[int] = Field(description="test-set indices, clean mistakes included, ascending")


class AuditCheck(FrozenModel):
    """One line of the gradient-masking audit."""

    name: str
    passed: bool
    detail: str = Field(description="what was measured, in words")


class AttackDocument(Document):
    """What ``attack`` measured."""

    kind: Literal["attack"] = "attack"
    model: str = Field(description="what was attacked, as given")
    model_sha256: Sha256
    protocol: Protocol
    n: int = Field(ge=1)
    images: list[int] = Field(description="test-set indices of the n images, in the order attacked")
    clean_accuracy: Fraction
    clean_confidence_interval: tuple[Fraction, Fraction] | None = None
    worst_case_accuracy: Fraction | None = Field(
        default=None, description="share that no attack of the largest eps broke (per-image worst case)"
    )
    worst_case_confidence_interval: tuple[Fraction, Fraction] | None = None
    results: list[AttackResult]
    verdicts: list[Verdicts]
    warnings: list[str] = Field(description="what the gradient-masking checks noticed; empty when nothing")
    audit: list[AuditCheck] | None = Field(default=None, description="the card of attack --audit; null without it")


AnyDocument = SearchDocument | DerivedDocument | TrainDocument | AdvFinetuneDocument | AttackDocument
DOCUMENTS: dict[str, type[AnyDocument]] = {
    "search": SearchDocument,
    "derived": DerivedDocument,
    "train": TrainDocument,
    "adv-finetune": AdvFinetuneDocument,
    "attack": AttackDocument,
}
