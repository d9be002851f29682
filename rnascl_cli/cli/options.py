"""The options that stages share, and how they become a recipe.

Neither torch nor pydantic is read before a recipe is built, so that ``rnascl --help`` answers at once.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rnascl_cli.core.errors import UserError, expand_user

if TYPE_CHECKING:
    from rnascl_cli.recipes import Layer, Option

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import Provenance
    from rnascl_cli.recipes import Layer, Recipe

NULL: Final = object()
"""What an option gives that takes a table away, as ``--set KEY=null`` does; None is an option that was not given."""

DOWNLOADED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # torchvision's folders

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="digits, cifar10[:DIR], cifar100[:DIR], folder:DIR, imagenet100:DIR or imagenet:DIR.",
        show_default=False,
    ),
]
LimitTrain = Annotated[
    int | None, typer.Option("--limit-train", min=1, help="Use a seeded, class-balanced subset to train on.")
]
LimitTest = Annotated[
    int | None, typer.Option("--limit-test", min=1, help="Use a seeded, class-balanced subset to test on.")
]
RecipeFile = Annotated[
    str | None,
    typer.Option("--recipe", metavar="FILE", help="A recipe file, or the name of one that comes with rnascl."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting over the recipe; may be repeated.")
]
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="NAME|FILE", help="r18, r50, wrt34, wrt50 of the cache, a file, or timm:NAME."),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Number of epochs; the schedules scale with it.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step, over all processes.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute.")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="auto|fp32|bf16", help="auto: bf16 where it is faster; attacks: fp32."),
]
Deterministic = Annotated[
    bool | None,
    typer.Option("--deterministic", help="On a GPU too, the same bytes every time; slower. On a CPU they are anyway."),
]
Average = Annotated[
    str | None,
    typer.Option("--average", metavar="ema|swa", help="Keep a running mean of the weights instead of the last ones."),
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="last|robust|clean",
        help="Which epoch's weights are kept: the last one's, or the best one's on held-out training images.",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=1, metavar="N", help="End after N epochs without a better one; see --select."),
]
MaxMacs = Annotated[
    str | None,
    typer.Option("--max-macs", metavar="COUNT", help="The derived network has at most so many MACs: 8M, 900k, 8e6."),
]
MaxParams = Annotated[
    str | None,
    typer.Option("--max-params", metavar="COUNT", help="The derived network has at most so many params: 0.2M."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run directory; by default a new one under runs/.")
]
Force = Annotated[bool, typer.Option("--force", help="Write into an existing run directory, replacing its artifacts.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out, with the same options.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result artifact on stdout.")]


def build_recipe(
    stage: str | None,
    *,
    recipe: str | None,
    settings: Sequence[str] | None,
    inherited: Provenance | None = None,
    top: Layer | None = None,
    data: Layer | None = None,
    own: Layer | None = None,
) -> Recipe:
    """Lay the command line over ``--set`` over ``--recipe`` over what the input artifact says.

    Args:
        stage: The recipe table of the running stage, e.g. ``"adv_finetune"``.
        recipe: ``--recipe``.
        settings: Each ``--set``.
        inherited: Where the input artifact came from: its data, teacher and seed are the starting point.
        top: Options that are top-level keys (space, teacher, seed, device, precision).
        data: Options of the data table.
        own: Options of the stage's own table.

    Raises:
        UserError: Anything unknown or out of range.
    """
    from rnascl_cli.recipes import find_recipe, parse_setting, read_recipe_file, resolve

    layers: list[Layer] = []
    if inherited is not None:
        layers.append(_from_artifact(inherited))
    if recipe is not None:
        layers.append(read_recipe_file(find_recipe(recipe)))
    layers.extend(parse_setting(text, stage) for text in settings or ())
    options: dict[str, Any] = _given(top)
    if given := _given(data):
        options["data"] = given
    if stage is not None and (given := _given(own)):
        options[stage] = given
    layers.append(options)
    if inherited is not None and inherited.data is not None:
        # Limits and augmentation of one data set mean nothing to another.
        tables = [table for layer in layers[1:] if isinstance(table := layer.get("data"), Mapping)]
        specs = [table["spec"] for table in tables if "spec" in table]
        if specs and specs[-1] != inherited.data.spec:
            layers[0] = {key: value for key, value in layers[0].items() if key != "data"}
        elif not specs:
            _refuse_download_into(inherited.data.spec)
    return resolve(layers, options=options_of(options, stage))


def kind(average: str | None) -> dict[str, Any] | None:
    """Return the ``average`` table that ``--average`` means."""
    return None if average is None else {"kind": average}


def choice(select: str | None, patience: int | None) -> object:
    """Return the ``stop`` table that ``--select`` and ``--patience`` mean; patience alone means robust.

    Raises:
        UserError: There is patience, and nothing to choose.
    """
    if select == "last":
        if patience is not None:
            raise UserError("--patience: with --select last no epoch is better than another; use --select robust")
        return NULL
    return _given({"on": select, "patience": patience}) or None


def count(text: str | None, option: str) -> int | None:
    """Return what ``--max-macs`` or ``--max-params`` says; None where it was not given."""
    from rnascl_cli.core.units import parse_count

    return None if text is None else parse_count(text, option=option)


def new_run_directory(stem: str) -> Path:
    """Return a fresh ``runs/STEM-DATE-TIME`` for a command without ``--out``."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    # The stem comes from recipes and documents: nothing in it may lead out of runs/.
    return Path("runs") / f"{re.sub(r'[^a-z0-9._-]+', '-', stem.lower()).strip('-.')[:64]}-{now}"


def _refuse_download_into(spec: str) -> None:
    """Refuse a folder that only an artifact names and that lacks its images: they would be downloaded into it.

    Raises:
        UserError: ``spec`` is of that kind.
    """
    name, _, folder = spec.partition(":")
    if name in DOWNLOADED and folder and not (expand_user(folder, option="--data") / DOWNLOADED[name]).is_dir():
        raise UserError(
            f"--data {spec}: the artifact given names that folder, and it holds no {name}; "
            f"give --data {name}:DIR, or --data {spec} to download there"
        )


def _given(options: Layer | None) -> dict[str, Any]:
    return {key: None if value is NULL else value for key, value in (options or {}).items() if value is not None}


def _from_artifact(provenance: Provenance) -> Layer:
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


NAMES = {
    "data.spec": "--data",
    "architecture": "--arch",
    "start_from": "--from",
    "perturbation.eps": "--eps",
    "attacks": "--attack",
    "robust.method": "--robust",
    "average.kind": "--average",
    "distill.name": "--distill",
    "stop.on": "--select",
}
"""The options that are not called like their recipe key; the keys of a stage without its table's name."""

ALSO = {"--select": ("last",)}
"""Words of an option for what a recipe says by null."""


def options_of(layer: Layer, stage: str | None) -> dict[str, Option]:
    """Return the option behind each key of what the command line lays over the recipe.

    Args:
        layer: The options, as a layer of the recipe.
        stage: The running stage, in whose table most of them are.
    """
    from rnascl_cli.recipes import Option

    options = {}
    for key, value in _leaves(layer):
        inside = key if stage is None else key.removeprefix(f"{stage}.")
        name = NAMES.get(inside) or f"--{inside.rpartition('.')[2].replace('_', '-')}"
        options[key] = Option(name, value, ALSO.get(name, ()))
    return options


def _leaves(layer: Layer, under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in layer.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value
