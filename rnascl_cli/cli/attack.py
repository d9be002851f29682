"""``rnascl attack``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifacts
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import UserError

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import AttackDocument
    from rnascl_cli.stages.attack.plan import AttackPlan

NAME = "attack"
EPILOG = "Example: rnascl attack runs/s5-trades --attack fgsm,mi-fgsm,pgd20,cw,aa --eps 8/255 --limit-test 500"


@options.with_shared_options
def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Run directories with a student, teacher names or files, or timm:NAME; each gets its own attack.json.",
        ),
    ],
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attack",
            metavar="NAME[,NAME...]",
            help="clean, fgsm, mi-fgsm, pgdN (N steps), cw, aa (standard AutoAttack), apgd-ce, apgd-t, "
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
        str | None, typer.Option("--step-size", metavar="SIZE", help="Step size of PGD and CW; by default eps/4.")
    ] = None,
    restarts: Annotated[
        int | None, typer.Option("--restarts", min=1, help="Number of random starts of PGD and CW.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Also check for gradient masking.")] = False,
    *,
    shared: options.RecipeOptions,
    run: options.RunOptions,
) -> None:
    """Measure robust accuracy, attack by attack and image by image."""
    from rnascl_cli.stages.attack.plan import plan_attack
    from rnascl_cli.stages.attack.target import claim_directory, find_target, folders_in

    root = run.out or options.new_run_directory("attack")
    plans = []
    for name, folder in zip(models, folders_in(root, models) if len(models) > 1 else [root], strict=True):
        target = find_target(name)
        if target.provenance is None and shared.data is None and not _sets_data(shared):
            raise UserError(f"attack {name}: a model file has no associated data set; pass --data, e.g. --data cifar10")
        resolved = options.build_recipe(
            "attack",
            shared,
            inherited=target.provenance,
            attacks=attacks,
            eps=eps,
            norm=norm,
            protocol=protocol,
            step_size=step_size,
            restarts=restarts,
        )
        where = folder if run.out else target.own_directory or folder
        claim_directory(target, where, force=run.force, resume=run.resume)
        out = None if where == target.own_directory else root
        plans.append(plan_attack(target, resolved, where, audit=audit, out=out))
    _run_plans(plans, resume=run.resume, json=run.json)


def _run_plans(plans: Sequence[AttackPlan], *, resume: bool, json: bool) -> None:
    """Run the attacks, one model after the other, and show the results."""
    from rnascl_cli.stages.attack.attack import attack

    documents: list[AttackDocument] = []
    begun = distributed.from_rank_zero(lambda: [plan.begun for plan in plans])
    for plan, was_begun in zip(plans, begun, strict=True):
        # An interrupted command on several models has finished some and not started others.
        documents.append(attack(plan, resume=resume and (was_begun or not any(begun))))
        show_results(documents[-1])
    if len(documents) > 1:
        show_side_by_side(documents)
    print_artifacts(documents, out=[str(plan.directory) for plan in plans], json=json)


def _sets_data(shared: options.RecipeOptions) -> bool:
    """Return whether a recipe or a ``--set`` names the data set."""
    from rnascl_cli.recipes.load import find_recipe, read_recipe_file

    if any(text.replace(" ", "").startswith("data.spec=") for text in shared.settings or ()):
        return True
    table = None if shared.recipe is None else read_recipe_file(find_recipe(shared.recipe)).get("data")
    return isinstance(table, dict) and "spec" in table


def show_results(document: AttackDocument) -> None:
    """Print the results as a table, the audit and the warnings."""
    from rich.table import Table  # --help does without rich

    table = Table(title=f"{document.model}: {_protocol(document)}, {document.n} images", title_justify="left")
    for heading in ("attack", "eps", "steps", "accuracy", "95 % interval", "seconds", "images/s"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    if all(result.attack != "clean" for result in document.results):
        clean = _percent(document.clean_accuracy), _interval(document.clean_confidence_interval)
        table.add_row("clean", "", "", *clean, "", "")
    for result in document.results:
        table.add_row(
            result.attack + ("" if result.standard else " (not standard)"),
            result.eps + ("" if result.norm == "Linf" else f" {result.norm}"),
            "" if result.steps is None else str(result.steps),
            _percent(result.accuracy),
            _interval(result.confidence_interval),
            f"{result.seconds:.1f}",
            f"{result.images_per_second:.1f}",
        )
    if document.worst_case_accuracy is not None:
        largest = max(document.results, key=lambda result: result.eps_value).eps
        worst = _percent(document.worst_case_accuracy), _interval(document.worst_case_confidence_interval)
        table.add_row("worst case", largest, "", *worst, "", "")
    console.stderr.print(table)
    if document.audit is not None:
        for check in document.audit:
            console.info(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
        failed = sum(not check.passed for check in document.audit)
        verdict = f"{failed} of {len(document.audit)} checks failed: do not trust these numbers" if failed else "passed"
        console.info(f"audit: {verdict}")
    for warning in document.warnings:
        console.warning(warning)


def show_side_by_side(documents: Sequence[AttackDocument]) -> None:
    """Print the accuracies of several models, one column per eps, and warn if images or settings differ."""
    from rich.table import Table

    from rnascl_cli.recipes.old_keys import upgraded

    columns = {result.eps_value: result.eps for document in documents for result in document.results}
    table = Table(title=f"accuracy: {_protocol(documents[0])}", title_justify="left")
    for heading in ("model", "attack"):
        table.add_column(heading)
    for _, text in sorted(columns.items()):
        table.add_column(text, justify="right")
    for document in documents:
        for attack in dict.fromkeys(result.attack for result in document.results):
            found = {result.eps_value: result.accuracy for result in document.results if result.attack == attack}
            cells = [_percent(found[eps]) if eps in found else "" for eps in sorted(columns)]
            table.add_row(document.model, attack, *cells)
    console.stderr.print(table)
    first = documents[0]
    for document in documents[1:]:
        if _images(document) != _images(first):
            console.warning(f"{document.model} and {first.model} were attacked on different images; pass --data")
        if upgraded(document.provenance.recipe).get("attack") != upgraded(first.provenance.recipe).get("attack"):
            console.warning(f"{document.model} and {first.model} were attacked with different settings")


def _images(document: AttackDocument) -> tuple[object, ...]:
    data = document.provenance.data
    return (None if data is None else data.fingerprint, *document.images)


def _protocol(document: AttackDocument) -> str:
    units = "pixels in [0, 1]" if document.protocol == "pixel" else "normalised inputs"
    return f"protocol {document.protocol} (eps in {units})"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
