"""``rnascl teacher``: list, show, import, fetch, train and measure teachers."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console
from rnascl_cli.core.errors import UserError

if TYPE_CHECKING:
    from rnascl_cli.recipes import Recipe
    from rnascl_cli.stages.teacher.import_checkpoint import ImportResult

app = typer.Typer(
    help="List, show, import, fetch, train and measure robust teachers.",
    epilog="Example: rnascl teacher import Sehwag2021Proxy_R18.pt --arch r18 --public r18",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Architecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="r8, r18, r50, wrn-34-10, wrn-34-20, imagenet-r18, ... (import can tell them apart), or timm:NAME.",
    ),
]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="Normalisation to put in, over the file's own.")
]
Std = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Given together with --mean.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The teacher file; by default in the teacher cache.")
]
Source = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A teacher in the cache, a file, or timm:NAME.", show_default=False)
]
ForceFile = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@app.command("list", epilog="Example: rnascl teacher list")
def list_command(json: options.Json = False) -> None:
    """List the teachers in the cache, and the public ones that can be fetched."""
    from rnascl_cli.stages.teacher.registry import list_teachers

    rows = list_teachers()
    if json:
        console.print_result(json_format.dumps(rows, indent=2))
        return
    lines = [("name", "architecture", "clean / AA published", "clean / PGD-20 / AA here", "from")]
    for row in rows:
        if "problem" in row:
            console.warning(row["problem"])
            continue
        where = row["source"] or row["path"]
        lines.append(
            (
                row["name"],
                row["architecture"],
                _accuracies(row["published"], "clean", "autoattack"),
                _accuracies(row["attacked"] or row["measured"], "clean", "pgd20", "autoattack"),
                where if row["path"] else f"not here: rnascl teacher fetch {row['name']} ({where})",
            )
        )
    console.print_result(_columns(lines))


@app.command("show", epilog="Example: rnascl teacher show r18")
def show_command(
    source: Source,
    json: options.Json = False,
) -> None:
    """Show where a teacher came from, what it reaches, and its convolutions with the sides of their maps."""
    from rnascl_cli.stages.teacher.registry import show_teacher

    shown = show_teacher(source)
    if json:
        console.print_result(json_format.dumps(shown, indent=2))
        return
    facts = [(key, _plain(value)) for key, value in shown.items() if key != "layers" and value is not None]
    layers = [("layer", "channels", "side")]
    layers += [(row["layer"], str(row["channels"]), str(row["side"])) for row in shown["layers"]]
    console.print_result(f"{_columns(facts)}\n\n{_columns(layers)}")


@app.command("import", epilog="Example: rnascl teacher import Sehwag2021Proxy_R18.pt --arch r18 --public r18")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint: .pt, .pth, .ckpt or .safetensors.")],
    architecture: Architecture = None,
    public: Annotated[
        str | None,
        typer.Option("--public", metavar="NAME", help="Which public checkpoint it is: r18, r50, wrt34, wrt50, ..."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    data: options.Data = None,
    limit_test: options.LimitTest = None,
    seed: options.Seed = None,
    device: options.Device = None,
    out: OutFile = None,
    force: ForceFile = False,
    json: options.Json = False,
) -> None:
    """Read a public checkpoint and keep it as a teacher file, and test it on a few hundred images.

    Without --data it is tested on CIFAR-10 where that is in the cache; nothing is downloaded for it.
    """
    constants = _constants(mean, std)
    recipe = _self_test_recipe(data, limit_test=limit_test, seed=seed, device=device)
    from rnascl_cli.data import load_data
    from rnascl_cli.recipes import SELF_TEST_IMAGES
    from rnascl_cli.stages.teacher.import_checkpoint import default_file, import_teacher

    imported = import_teacher(
        file,
        out or default_file(public or file.stem),
        architecture=architecture,
        public=public,
        constants=constants,
        data=None if data is None else load_data(recipe.data, seed=recipe.seed, training=False),
        limit_test=recipe.data.limit_test or SELF_TEST_IMAGES,
        device=recipe.device,
        seed=recipe.seed,
        force=force,
    )
    _finish_import(imported, json=json)


@app.command("fetch", epilog="Example: rnascl teacher fetch wrt34")
def fetch_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ADDRESS",
            help="r18, r50, wrt34, wrt50, imagenet-r18 or imagenet-r50; or https://..., hf:OWNER/REPO/FILE, gdrive:ID.",
        ),
    ],
    architecture: Architecture = None,
    mean: Mean = None,
    std: Std = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="What the checkpoint must be; checked.")
    ] = None,
    data: options.Data = None,
    limit_test: options.LimitTest = None,
    seed: options.Seed = None,
    device: options.Device = None,
    out: OutFile = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it again, and replace an existing file.")] = False,
    json: options.Json = False,
) -> None:
    """Download a robust checkpoint and import it; a download that broke off is gone on with.

    A name means a checkpoint of RobustBench. Nothing is downloaded where the teacher is in the cache already.
    """
    constants = _constants(mean, std)
    recipe = _self_test_recipe(data, limit_test=limit_test, seed=seed, device=device)
    from rnascl_cli.data import load_data
    from rnascl_cli.recipes import SELF_TEST_IMAGES
    from rnascl_cli.stages.teacher.fetch import fetch_teacher

    fetched = fetch_teacher(
        source,
        out,
        architecture=architecture,
        constants=constants,
        sha256=sha256,
        data=None if data is None else load_data(recipe.data, seed=recipe.seed, training=False),
        limit_test=recipe.data.limit_test or SELF_TEST_IMAGES,
        device=recipe.device,
        seed=recipe.seed,
        force=force,
    )
    _finish_import(fetched, json=json)


@app.command(
    "train", epilog="Example: rnascl teacher train --arch r8 --data digits --epochs 10 --out teachers/r8.safetensors"
)
def train_command(
    architecture: Architecture = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="fgsm-rs|pgd-at|trades", help="Adversarial training by one step, by ten, or TRADES."
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME|FILE", help="Go on from this teacher, also timm:NAME; else from scratch."),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", metavar="8/255", help="Size of the perturbation, L-inf, pixel units.")
    ] = None,
    data: options.Data = None,
    limit_train: options.LimitTrain = None,
    limit_test: options.LimitTest = None,
    recipe: options.RecipeFile = None,
    settings: options.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    out: OutFile = None,
    force: ForceFile = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside --out.")] = False,
    json: options.Json = False,
) -> None:
    """Train a robust teacher; held-out images choose the epoch, the test images are looked at once."""
    resolved = options.build_recipe(
        "teacher_train",
        recipe=recipe,
        settings=settings,
        top={"seed": seed, "device": device, "precision": precision, "deterministic": deterministic},
        data={"spec": data, "limit_train": limit_train, "limit_test": limit_test},
        own={
            "architecture": architecture,
            "start_from": start_from,
            "method": method,
            "epochs": epochs,
            "batch_size": batch_size,
            "perturbation": None if eps is None else {"eps": eps},
        },
    )
    from rnascl_cli.engine.run_directory import RunDirectory, has_checkpoint
    from rnascl_cli.stages.teacher.import_checkpoint import default_file
    from rnascl_cli.stages.teacher.train import check_out, train_teacher, training_folder

    path = out or default_file(_trained_stem(resolved))
    folder = training_folder(path)
    check_out(path, force=force or (resume and has_checkpoint(folder)))  # killed after the file, before the end
    run = RunDirectory.open(folder, force=force, resume=resume, out=path)
    trained = train_teacher(resolved, path, run)
    measured = trained.measured
    console.info(
        f"epoch {trained.best_epoch} was best on the held-out images; on {measured.n} test images: clean "
        f"{measured.clean:.4f}, PGD-20 at {measured.eps} {measured.pgd20:.4f}; wrote {path}"
    )
    shown = {**asdict(trained), "path": str(path)}
    console.print_result(json_format.dumps(shown, indent=2) if json else str(path))


@app.command("measure", epilog="Example: rnascl teacher measure wrt34 --data cifar10 --limit-test 1000")
def measure_command(
    source: Source,
    data: Annotated[
        str, typer.Option("--data", metavar="SPEC", help="Whose test images to use, as of 'rnascl attack'.")
    ],
    attacks: Annotated[
        str | None,
        typer.Option("--attack", metavar="NAME[,NAME...]", help="As of 'rnascl attack'; by default pgd20,aa."),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", metavar="8/255", help="By default the one it was published or trained with.")
    ] = None,
    limit_test: options.LimitTest = None,
    recipe: options.RecipeFile = None,
    settings: options.Set = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier measurement.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted measurement.")] = False,
    json: options.Json = False,
) -> None:
    """Attack a teacher, AutoAttack included, and keep the result where list and show find it.

    The result is an attack.json in NAME.measured/ beside the teacher's file, which itself is not changed.
    """
    from rnascl_cli.stages.teacher.registry import AUTOATTACK, PGD, measure_teacher, usual_eps

    resolved = options.build_recipe(
        "attack",
        recipe=recipe,
        settings=settings,
        top={"seed": seed, "device": device, "precision": precision},
        data={"spec": data, "limit_test": limit_test},
        own={"attacks": attacks or f"{PGD},{AUTOATTACK}", "eps": eps or usual_eps(source), "batch_size": batch_size},
    )
    document, path = measure_teacher(source, resolved, force=force, resume=resume)
    accuracies = [f"{result.attack} at {result.eps} {result.accuracy:.4f}" for result in document.results]
    console.info(f"on {document.n} test images: clean {document.clean_accuracy:.4f}, {', '.join(accuracies)}")
    for warning in document.warnings:
        console.warning(warning)
    print_artifact(document, out=str(path), json=json)


def _trained_stem(recipe: Recipe) -> str:
    """Return the name of a trained teacher's file: what it is of, and the images or the method."""
    settings = recipe.teacher_train
    if settings.start_from is not None:
        path = Path(settings.start_from)
        stem = path.stem if path.suffix in (".safetensors", ".pt", ".pth", ".ckpt") else path.name
        return f"{stem}-{settings.method}".replace(":", "-")
    return f"{settings.architecture or 'r18'}-{recipe.data.spec.partition(':')[0]}".replace(":", "-")


def _self_test_recipe(data: str | None, *, limit_test: int | None, seed: int | None, device: str | None) -> Recipe:
    """Return what the self-test at the end of an import needs to know."""
    from rnascl_cli.recipes import SELF_TEST_IMAGES

    return options.build_recipe(
        None,
        recipe=None,
        settings=None,
        top={"seed": seed, "device": device},
        data={"spec": data, "limit_test": limit_test or SELF_TEST_IMAGES},
    )


def _finish_import(imported: ImportResult, *, json: bool) -> None:
    console.info(
        f"{imported.architecture}, {imported.num_classes} classes; {len(imported.renamed)} tensors renamed, "
        f"{len(imported.dropped)} dropped, {len(imported.missed)} filled in; normalised by mean "
        f"{_plain(imported.mean)}, std {_plain(imported.std)}"
    )
    for theirs, ours in list(imported.renamed.items())[:3]:
        console.info(f"  renamed, e.g. {theirs} to {ours}")
    for theirs, reason in list(imported.dropped.items())[:3]:
        console.info(f"  dropped, e.g. {theirs}: {reason}")
    for name in imported.missed[:3]:
        console.info(f"  filled in, e.g. {name}")
    if imported.measured is not None:
        published = imported.published or {}
        console.info(
            f"self-test on {imported.measured.n} images: clean {imported.measured.clean:.4f}"
            f"{_beside(published.get('clean'), 'published')}, PGD-20 at {imported.measured.eps} "
            f"{imported.measured.pgd20:.4f}{_beside(published.get('autoattack'), 'AutoAttack published')}"
        )
    console.print_result(json_format.dumps(asdict(imported), indent=2) if json else imported.path)


def _constants(mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError("--mean and --std must be given together")
    return _three(mean, "--mean", lowest=0.0), _three(std, "--std", lowest=1e-6)


def _three(text: str, option: str, *, lowest: float) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(lowest <= value <= 1 for value in values):
        raise UserError(f"{option} {text}: write three numbers up to 1, e.g. 0.4914,0.4822,0.4465")
    return values


def _beside(number: float | None, what: str) -> str:
    return "" if number is None else f" ({what}: {number:.4f})"


def _accuracies(numbers: dict[str, Any] | None, *names: str) -> str:
    found = [(numbers or {}).get(name) for name in names]
    if all(number is None for number in found):
        return "-"
    return " / ".join("-" if number is None else f"{number:.4f}" for number in found)


def _plain(value: Any) -> str:
    """Return a fact on one line; fingerprints are for --json."""
    if isinstance(value, dict):
        facts = {key: item for key, item in value.items() if item is not None and key != "fingerprint"}
        nested = {key: f"({_plain(item)})" if isinstance(item, dict) else _plain(item) for key, item in facts.items()}
        return ", ".join(f"{key} {text}" for key, text in nested.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
