"""What ``rnascl attack`` shows on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.core import console


def show(document: AttackDocument) -> None:
    """Print the results as a table, with the protocol, the audit's card and the warnings."""
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
    """Print several models' accuracies, a column an eps, and warn where they were not attacked on the same images."""
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
            console.warning(
                f"{document.model} and {first.model} were attacked on different images; name them with --data"
            )
        if document.provenance.recipe.get("attack") != first.provenance.recipe.get("attack"):
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
