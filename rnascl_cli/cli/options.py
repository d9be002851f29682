"""Command-line options, each declared once, and how they become a recipe.

``rnascl --help`` must answer at once: torch and pydantic are imported only when a recipe is built.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rnascl_cli.core.errors import UserError, expand_user

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import Provenance
    from rnascl_cli.recipes.base import Layer
    from rnascl_cli.recipes.errors import Option
    from rnascl_cli.recipes.settings import Recipe

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="digits, cifar10[:DIR], cifar100[:DIR], folder:DIR, imagenet100:DIR or imagenet:DIR.",
        show_default=False,
    ),
]
LimitTest = Annotated[
    int | None, typer.Option("--limit-test", min=1, help="Size of a seeded, class-balanced subset of the test set.")
]
RecipeFile = Annotated[
    str | None, typer.Option("--recipe", metavar="FILE", help="A recipe file, or the name of a built-in recipe.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher", metavar="NAME|FILE", help="A teacher in the cache (r18, r50, wrt34, wrt50), a file, or timm:NAME."
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Global batch size.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Random seed.")]
Device = Annotated[str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Device to run on.")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="auto|fp32|bf16", help="auto: bf16 where it is faster, but fp32 for attacks."),
]
MaxMacs = Annotated[
    str | None, typer.Option("--max-macs", metavar="COUNT", help="Upper limit of the network's MACs: 8M, 900k, 8e6.")
]
MaxParams = Annotated[
    str | None, typer.Option("--max-params", metavar="COUNT", help="Upper limit of the network's parameters: 0.2M.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of commands that evaluate a model on test images."""

    data: Data = None
    limit_test: LimitTest = None
    seed: Seed = None
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(DataOptions):
    """Options of commands whose settings come from a recipe."""

    recipe: RecipeFile = None
    settings: Set = None
    batch_size: BatchSize = None
    precision: Precision = None
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Bit-identical results on a GPU too, slower; always so on a CPU."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(RecipeOptions):
    """Options of commands that train."""

    limit_train: Annotated[
        int | None,
        typer.Option("--limit-train", min=1, help="Size of a seeded, class-balanced subset of the training set."),
    ] = None
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Number of epochs; schedules scale with it.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TrainingOptions):
    """Options of commands that train under a teacher."""

    teacher: Teacher = None
    paradigm: Annotated[
        str | None,
        typer.Option(
            "--paradigm",
            metavar="rnas-cl|icc|kl|standard",
            help="Loss of section 4.3; by default that of the run given, rnas-cl in a search.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StudentOptions(DistillationOptions):
    """Options of commands that train a student."""

    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="trades|mart|pgd-at|fast-at|ard|rslad", help="Adversarial training objective."
        ),
    ] = None
    average: Annotated[
        str | None, typer.Option("--average", metavar="ema|swa", help="Save an average of the weights.")
    ] = None
    select: Annotated[
        str | None,
        typer.Option(
            "--select",
            metavar="last|robust|clean",
            help="Save the last epoch's weights, or those with the best held-out robust or clean accuracy.",
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=1, metavar="N", help="Stop after N epochs without improvement; see --select."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of commands with a run directory."""

    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory; by default a new one under runs/.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite the artifacts of an existing run directory.")] = (
        False
    )
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the checkpoint in --out, with the same options.")
    ] = False
    json: Json = False


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with each parameter that is a dataclass of options replaced by these options."""
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: item.annotation for name, item in parameters.items() if is_dataclass(item.annotation)
    }

    def expanded() -> Iterator[inspect.Parameter]:
        for name, parameter in parameters.items():
            if name not in groups:
                yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                continue
            types = get_type_hints(groups[name], include_extras=True)
            for field in fields(groups[name]):
                default, annotation = field.default, types[field.name]
                yield inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(
                **{field.name: values.pop(field.name) for field in fields(group) if field.name in values}
            )
        command(**values)

    signature = inspect.Signature(list(expanded()))
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()}
    return call


TOP = ("space", "teacher", "seed", "device", "precision", "deterministic")
"""Options that are top-level recipe keys."""
KEYS = {
    "data": "data.spec",
    "limit_train": "data.limit_train",
    "limit_test": "data.limit_test",
    **{name: name for name in TOP},
}
STAGE_KEYS = {
    "method": "robust.method",
    "robust": "robust.method",
    "teacher_train.eps": "robust.eps",
    "average": "average.kind",
    "distill": "distill.name",
    "select": "select.metric",
    "patience": "select.patience",
}
"""Options with another name than their key in the stage's table."""
FLAGS = {"attacks": "--attack", "architecture": "--arch", "start_from": "--from"}
"""Options with another name than their parameter."""


def build_recipe(
    stage: str | None, shared: DataOptions | None = None, *, inherited: Provenance | None = None, **own: object
) -> Recipe:
    """Resolve the settings of a command: its options over ``--set``, ``--recipe`` and the input artifact's settings.

    Args:
        stage: The recipe table of the stage, e.g. ``"adv_finetune"``.
        shared: The command's shared options.
        inherited: Provenance of the input artifact, for the default data, teacher and seed.
        own: The command's other options by parameter name, which win; None stands for an option that is not given.

    Raises:
        UserError: An unknown key, or a value out of range.
    """
    from rnascl_cli.recipes.load import find_recipe, parse_setting, read_recipe_file, resolve

    given = {**(vars(shared) if shared else {}), **own}
    recipe, settings = given.pop("recipe", None), given.pop("settings", None)
    layers: list[Layer] = []
    if inherited is not None:
        layers.append(_inherited_layer(inherited))
    if recipe is not None:
        layers.append(read_recipe_file(find_recipe(recipe)))
    options, named = _options_layer(stage, given)
    layers.append(_tags(options))  # before --set, which may set keys of what an option selects, and again after it
    layers.extend(parse_setting(text, stage) for text in settings or ())
    layers.append(options)
    if inherited is not None and inherited.data is not None:
        # Limits and augmentation belong to one data set.
        tables = [table for layer in layers[1:] if isinstance(table := layer.get("data"), Mapping)]
        specs = [table["spec"] for table in tables if "spec" in table]
        if specs and specs[-1] != inherited.data.spec:
            layers[0] = {key: value for key, value in layers[0].items() if key != "data"}
        elif not specs:
            _refuse_download_into(inherited.data.spec)
    return resolve(layers, options=named)


def _options_layer(stage: str | None, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Option]]:
    """Return the options as a layer of settings, and for each of its keys the option that set it."""
    from rnascl_cli.recipes.errors import Option

    if given.get("select") == "last" and given.get("patience") is not None:
        raise UserError("--patience: needs a selection metric; use --select robust or --select clean")
    layer: dict[str, Any] = {}
    named = {}
    for name, value in given.items():
        if value is None:
            continue
        key = KEYS.get(name) or f"{stage}.{STAGE_KEYS.get(f'{stage}.{name}') or STAGE_KEYS.get(name, name)}"
        if name == "select" and value == "last":
            key, value = f"{stage}.select", None
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        named[key] = Option(flag, value, ("last",) if name == "select" else ())
        *tables, last = key.split(".")
        inner = layer
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[last] = value
    return layer, named


def _tags(options: Layer) -> dict[str, Any]:
    """Return only what selects the classes of tables, such as the method of adversarial training."""
    from rnascl_cli.recipes.base import TAGS

    tables = {key: _tags(value) for key, value in options.items() if isinstance(value, Mapping)}
    tags = {key: value for key, value in options.items() if key in TAGS}
    return {**{key: table for key, table in tables.items() if table}, **tags}


def new_run_directory(stem: str) -> Path:
    """Return a new path ``runs/STEM-DATE-TIME`` for a command without ``--out``."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    # The stem comes from recipes and documents: nothing in it may lead out of runs/.
    return Path("runs") / f"{re.sub(r'[^a-z0-9._-]+', '-', stem.lower()).strip('-.')[:64]}-{now}"


DOWNLOADED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # torchvision's folders


def _refuse_download_into(spec: str) -> None:
    """Refuse to download a data set into a folder that only an artifact names.

    Raises:
        UserError: The folder does not hold the data set.
    """
    name, _, folder = spec.partition(":")
    if name in DOWNLOADED and folder and not (expand_user(folder, option="--data") / DOWNLOADED[name]).is_dir():
        raise UserError(
            f"--data {spec}: the input artifact names that folder, and it has no {name}; give --data {name}:DIR, or "
            f"--data {spec} to download there"
        )


def _inherited_layer(provenance: Provenance) -> Layer:
    layer: dict[str, Any] = {"seed": provenance.seed}
    if isinstance(space := provenance.recipe.get("space"), str):
        layer["space"] = space
    if provenance.data is not None:
        settings = provenance.recipe.get("data")
        kept = settings if isinstance(settings, dict) else {}
        layer["data"] = {
            "spec": provenance.data.spec,
            "limit_train": provenance.data.limit_train,
            "limit_test": provenance.data.limit_test,
            **{key: kept[key] for key in ("holdout", "augment", "keep") if key in kept},
        }
    if provenance.teacher is not None:
        layer["teacher"] = provenance.teacher.path
    return layer
