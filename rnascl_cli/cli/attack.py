"""``rnascl attack``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from rnascl_cli import console
from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.cli import options
from rnascl_cli.errors import UserError
from rnascl_cli.recipes import find_recipe, read_recipe_file

NAME = "attack"
EPILOG = "Example: rnascl attack runs/s5-trades --attack fgsm,mi-fgsm,pgd20,cw,aa --eps 8/255 --limit-test 500"


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run directory with a student, a teacher's name or file, or timm:NAME."),
    ],
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attack",
            metavar="NAME[,NAME...]",
            help="clean, fgsm, mi-fgsm, pgdN (any number of steps), cw, aa (AutoAttack standard), apgd-ce, apgd-t, "
            "fab-t, square, aa-rand.",
        ),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option("--eps", metavar="EPS[,EPS...]", help="Perturbation sizes, e.g. 8/255 or 0,2/255,8/255."),
    ] = None,
    norm: Annotated[str | None, typer.Option("--norm", metavar="Linf|L2", help="Norm of the perturbation.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="pixel|paper-code",
            help="pixel: eps in units of pixels in [0, 1]. paper-code: eps on normalised inputs, as in the authors' "
            "code, to compare with the published tables.",
        ),
    ] = None,
    step_size: Annotated[
        str | None, typer.Option("--step-size", metavar="SIZE", help="Of PGD and CW; by default a quarter of eps.")
    ] = None,
    restarts: Annotated[int | None, typer.Option("--restarts", min=1, help="Random starts of PGD and CW.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Also run the gradient-masking checks as a card.")] = False,
    data: options.Data = None,
    limit_test: options.LimitTest = None,
    recipe: options.RecipeFile = None,
    settings: options.Set = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Measure robust accuracy, attack by attack and image by image."""
    from rnascl_cli.stages import attack as stage

    target = stage.find_target(model)
    if target.provenance is None and data is None and not _names_data(recipe, settings or []):
        raise UserError(f"attack {model}: says nothing about images; name them with --data, e.g. --data cifar10")
    resolved = options.build_recipe(
        "attack",
        recipe=recipe,
        settings=settings,
        inherited=target.provenance,
        top={"seed": seed, "device": device, "precision": precision},
        data={"spec": data, "limit_test": limit_test},
        own={
            "attacks": attacks,
            "eps": eps,
            "norm": norm,
            "protocol": protocol,
            "step_size": step_size,
            "restarts": restarts,
            "batch_size": batch_size,
        },
    )
    where = out or (target.loaded.run if target.provenance else None) or options.new_run_directory("attack")
    directory = stage.claim_directory(target, where, force=force, resume=resume)
    document = stage.attack(target, resolved, directory, audit=audit, resume=resume)
    _show(document)
    console.say(f"wrote {directory / stage.ATTACK_JSON}")
    console.finish(document, out=str(directory), json=json)


def _show(document: AttackDocument) -> None:
    """Print the results as a table on stderr, with the protocol, the audit's card and the warnings."""
    units = "pixels in [0, 1]" if document.protocol == "pixel" else "normalised inputs"
    table = Table(title=f"protocol {document.protocol} (eps in {units}), {document.n} images", title_justify="left")
    for heading in ("attack", "eps", "steps", "accuracy", "95 % interval", "seconds", "images/s"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    if all(result.attack != "clean" for result in document.results):
        table.add_row("clean", "", "", _percent(document.clean_accuracy), "", "", "")
    for result in document.results:
        interval = result.confidence_interval
        table.add_row(
            result.attack + ("" if result.standard else " (not standard)"),
            result.eps + ("" if result.norm == "Linf" else f" {result.norm}"),
            "" if result.steps is None else str(result.steps),
            _percent(result.accuracy),
            "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}",
            f"{result.seconds:.1f}",
            f"{result.images_per_second:.1f}",
        )
    if document.worst_case_accuracy is not None:
        table.add_row("worst case", "", "", _percent(document.worst_case_accuracy), "", "", "")
    console.stderr.print(table)
    for check in document.audit or []:
        console.say(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
    for warning in document.warnings:
        console.warn(warning)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _names_data(recipe: str | None, settings: Sequence[str]) -> bool:
    """Return whether a recipe or a ``--set`` says which images to use."""
    if any(text.replace(" ", "").startswith("data.spec=") for text in settings):
        return True
    table = read_recipe_file(find_recipe(recipe)).get("data") if recipe is not None else None
    return isinstance(table, dict) and "spec" in table
