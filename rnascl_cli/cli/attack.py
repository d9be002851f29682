"""``rnascl attack``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifacts
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import AttackDocument
    from rnascl_cli.stages.attack.plan import AttackPlan

NAME = "attack"
EPILOG = "Example: rnascl attack runs/s5-trades --attack fgsm,mi-fgsm,pgd20,cw,aa --eps 8/255 --limit-test 500"


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A run directory with a student, a teacher's name or file, or timm:NAME. Of several, each gets an "
            "attack.json.",
        ),
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
    deterministic: options.Deterministic = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Measure robust accuracy, attack by attack and image by image."""
    from rnascl_cli.stages.attack.plan import plan_attack
    from rnascl_cli.stages.attack.target import claim_directory, find_target, folders_in

    several = len(models) > 1
    root = out or options.new_run_directory("attack")
    assaults = []
    for name, folder in zip(models, folders_in(root, models) if several else [root], strict=True):
        target = find_target(name)
        if target.provenance is None and data is None and not _names_data(recipe, settings or []):
            raise UserError(f"attack {name}: says nothing about images; name them with --data, e.g. --data cifar10")
        resolved = options.build_recipe(
            "attack",
            recipe=recipe,
            settings=settings,
            inherited=target.provenance,
            top={"seed": seed, "device": device, "precision": precision, "deterministic": deterministic},
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
        where = folder if out else target.own_directory or folder
        claim_directory(target, where, force=force, resume=resume)
        named = None if where == target.own_directory else root
        assaults.append(plan_attack(target, resolved, where, audit=audit, out=named))
    _carry_out(assaults, resume=resume, json=json)


def _carry_out(assaults: Sequence[AttackPlan], *, resume: bool, json: bool) -> None:
    """Run the attacks, one model after the other, and show what they found."""
    from rnascl_cli.cli import attack_tables  # it reads rich, which --help can do without
    from rnascl_cli.stages.attack.attack import attack

    documents: list[AttackDocument] = []
    begun = distributed.from_rank_zero(lambda: [plan.begun for plan in assaults])
    for plan, was_begun in zip(assaults, begun, strict=True):
        # Of several models, an interrupted command has finished some and not come to others.
        documents.append(attack(plan, resume=resume and (was_begun or not any(begun))))
        attack_tables.show(documents[-1])
    if len(documents) > 1:
        attack_tables.show_side_by_side(documents)
    print_artifacts(documents, out=[str(plan.directory) for plan in assaults], json=json)


def _names_data(recipe: str | None, settings: Sequence[str]) -> bool:
    """Return whether a recipe or a ``--set`` says which images to use."""
    from rnascl_cli.recipes import find_recipe, read_recipe_file

    if any(text.replace(" ", "").startswith("data.spec=") for text in settings):
        return True
    table = read_recipe_file(find_recipe(recipe)).get("data") if recipe is not None else None
    return isinstance(table, dict) and "spec" in table
