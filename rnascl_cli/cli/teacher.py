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
    from rnascl_cli.recipes.settings import Recipe
    from rnascl_cli.stages.teacher.import_checkpoint import ImportResult
    from rnascl_cli.stages.teacher.self_test import SelfTestSettings
    from rnascl_cli.teachers.public_checkpoints import NormalisationConstants

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
    str | None, typer.Option("--mean", metavar="R,G,B", help="Normalization mean, replacing the file's own.")
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Normalization standard deviation; requires --mean.")
]
OutFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Teacher file; by default in the teacher cache.")
]
Source = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A teacher in the cache, a file, or timm:NAME.", show_default=False)
]
ForceFile = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]


@app.command("list", epilog="Example: rnascl teacher list")
def list_command(json: options.Json = False) -> None:
    """List the teachers in the cache and the public ones that can be fetched."""
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
def show_command(source: Source, json: options.Json = False) -> None:
    """Show a teacher's source, its accuracies, and its convolutions with their channels and map sizes."""
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
@options.with_shared_options
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint: .pt, .pth, .ckpt or .safetensors.")],
    architecture: Architecture = None,
    public: Annotated[
        str | None,
        typer.Option("--public", metavar="NAME", help="Which public checkpoint it is: r18, r50, wrt34, wrt50, ..."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    out: OutFile = None,
    force: ForceFile = False,
    json: options.Json = False,
    *,
    shared: options.DataOptions,
) -> None:
    """Convert a public checkpoint to a teacher file and test it on a few hundred images.

    Without --data it is tested on CIFAR-10 if that is in the cache; nothing is downloaded.
    """
    constants = _constants(mean, std)
    from rnascl_cli.stages.teacher.import_checkpoint import import_teacher
    from rnascl_cli.teachers.files import default_file

    imported = import_teacher(
        file,
        out or default_file(public or file.stem),
        architecture=architecture,
        public=public,
        constants=constants,
        settings=_self_test(shared),
        force=force,
    )
    _finish_import(imported, json=json)


@app.command("fetch", epilog="Example: rnascl teacher fetch wrt34")
@options.with_shared_options
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
        str | None, typer.Option("--sha256", metavar="HEX", help="Expected sha256 of the checkpoint.")
    ] = None,
    out: OutFile = None,
    force: Annotated[bool, typer.Option("--force", help="Download again and overwrite an existing file.")] = False,
    json: options.Json = False,
    *,
    shared: options.DataOptions,
) -> None:
    """Download a robust checkpoint and import it; interrupted downloads are resumed.

    A name stands for a RobustBench checkpoint. Nothing is downloaded if the teacher is in the cache.
    """
    constants = _constants(mean, std)
    from rnascl_cli.stages.teacher.fetch import fetch_teacher

    fetched = fetch_teacher(
        source,
        out,
        architecture=architecture,
        constants=constants,
        sha256=sha256,
        settings=_self_test(shared),
        force=force,
    )
    _finish_import(fetched, json=json)


@app.command(
    "train", epilog="Example: rnascl teacher train --arch r8 --data digits --epochs 10 --out teachers/r8.safetensors"
)
@options.with_shared_options
def train_command(
    architecture: Architecture = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="fgsm-rs|pgd-at|trades", help="Adversarial training objective."),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|FILE",
            help="Initialize from this teacher (also timm:NAME) instead of training from scratch.",
        ),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", metavar="8/255", help="Size of the perturbation, L-inf, pixel units.")
    ] = None,
    out: OutFile = None,
    force: ForceFile = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint next to --out.")] = False,
    json: options.Json = False,
    *,
    shared: options.TrainingOptions,
) -> None:
    """Train a robust teacher; the epoch is selected on held-out images, never on the test set."""
    resolved = options.build_recipe(
        "teacher_train", shared, architecture=architecture, method=method, start_from=start_from, eps=eps
    )
    from rnascl_cli.engine.run_directory import RunDirectory, has_checkpoint
    from rnascl_cli.stages.teacher.train import check_out, train_teacher, training_folder
    from rnascl_cli.teachers.files import default_file

    path = out or default_file(_trained_stem(resolved))
    folder = training_folder(path)
    check_out(path, force=force or (resume and has_checkpoint(folder)))  # killed after the file, before the end
    run = RunDirectory.open(folder, force=force, resume=resume, out=path)
    trained = train_teacher(resolved, path, run)
    measured = trained.measured
    console.info(
        f"best epoch on held-out images: {trained.best_epoch}; on {measured.n} test images: clean "
        f"{measured.clean:.4f}, PGD-20 at {measured.eps} {measured.pgd20:.4f}; wrote {path}"
    )
    shown = {**asdict(trained), "path": str(path)}
    console.print_result(json_format.dumps(shown, indent=2) if json else str(path))


@app.command("measure", epilog="Example: rnascl teacher measure wrt34 --data cifar10 --limit-test 1000")
@options.with_shared_options
def measure_command(
    source: Source,
    attacks: Annotated[
        str | None,
        typer.Option("--attack", metavar="NAME[,NAME...]", help="As in 'rnascl attack'; by default pgd20,aa."),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option("--eps", metavar="8/255", help="By default the eps that it was published or trained with."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier measurement.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted measurement.")] = False,
    json: options.Json = False,
    *,
    shared: options.RecipeOptions,
) -> None:
    """Attack a teacher, with AutoAttack, and store the result where list and show find it; requires --data.

    The result is an attack.json in NAME.measured/ next to the teacher's file, which is not changed.
    """
    if shared.data is None:
        raise UserError("teacher measure: a teacher has no associated data set; pass --data, e.g. --data cifar10")
    from rnascl_cli.stages.teacher.registry import AUTOATTACK, PGD, measure_teacher, usual_eps

    resolved = options.build_recipe(
        "attack", shared, attacks=attacks or f"{PGD},{AUTOATTACK}", eps=eps or usual_eps(source)
    )
    document, path = measure_teacher(source, resolved, force=force, resume=resume)
    accuracies = [f"{result.attack} at {result.eps} {result.accuracy:.4f}" for result in document.results]
    console.info(f"on {document.n} test images: clean {document.clean_accuracy:.4f}, {', '.join(accuracies)}")
    for warning in document.warnings:
        console.warning(warning)
    print_artifact(document, out=str(path), json=json)


def _trained_stem(recipe: Recipe) -> str:
    """Return the default file name of a trained teacher: its architecture or origin, and the data set or method."""
    settings = recipe.teacher_train
    if settings.start_from is not None:
        path = Path(settings.start_from)
        stem = path.stem if path.suffix in (".safetensors", ".pt", ".pth", ".ckpt") else path.name
        return f"{stem}-{settings.robust.method}".replace(":", "-")
    return f"{settings.architecture or 'r18'}-{recipe.data.spec.partition(':')[0]}".replace(":", "-")


def _self_test(shared: options.DataOptions) -> SelfTestSettings:
    """Return the settings of the self-test after an import, with the images of ``--data``."""
    from rnascl_cli.recipes.settings import SELF_TEST_IMAGES

    limit_test = shared.limit_test or SELF_TEST_IMAGES
    recipe = options.build_recipe(None, shared, limit_test=limit_test)
    from rnascl_cli.data import load_data
    from rnascl_cli.stages.teacher.self_test import SelfTestSettings

    images = None if shared.data is None else load_data(recipe.data, seed=recipe.seed, training=False)
    return SelfTestSettings(data=images, limit_test=limit_test, device=recipe.device, seed=recipe.seed)


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
            f"{_published(published.get('clean'), 'published')}, PGD-20 at {imported.measured.eps} "
            f"{imported.measured.pgd20:.4f}{_published(published.get('autoattack'), 'AutoAttack published')}"
        )
    console.print_result(json_format.dumps(asdict(imported), indent=2) if json else imported.path)


def _constants(mean: str | None, std: str | None) -> NormalisationConstants | None:
    from rnascl_cli.teachers.public_checkpoints import NormalisationConstants

    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError("--mean and --std must be given together")
    return NormalisationConstants(_three(mean, "--mean", lowest=0.0), _three(std, "--std", lowest=1e-6))


def _three(text: str, option: str, *, lowest: float) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(lowest <= value <= 1 for value in values):
        raise UserError(f"{option} {text}: write three numbers up to 1, e.g. 0.4914,0.4822,0.4465")
    return values


def _published(number: float | None, what: str) -> str:
    return "" if number is None else f" ({what}: {number:.4f})"


def _accuracies(numbers: dict[str, Any] | None, *names: str) -> str:
    found = [(numbers or {}).get(name) for name in names]
    if all(number is None for number in found):
        return "-"
    return " / ".join("-" if number is None else f"{number:.4f}" for number in found)


def _plain(value: Any) -> str:
    """Return a value on one line, without fingerprints."""
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
