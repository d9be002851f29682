"""Provenance of each document: command, seed, commit, teacher, device, data and non-default settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AnyDocument, AttackDocument, TrainDocument
from rnascl_cli.artifacts.store import sha256_bytes
from rnascl_cli.recipes.old_keys import upgraded
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.reporting.data.collect import Artifact, describe_data, describe_teacher, short_spec
from rnascl_cli.reporting.tables.table import Cell, Column, Table, number, text

RECIPE_TABLE = {
    "search": "search",
    "derived": "search",
    "train": "train",
    "adv-finetune": "adv_finetune",
    "attack": "attack",
}
"""The recipe table of each kind of document."""
AVERAGES = {"ema": "moving average of the weights", "swa": "mean over the last epochs"}


@dataclass(frozen=True)
class ProvenanceEntry:
    """Provenance of one document.

    Attributes:
        anchor: Anchor on the page.
        run: Run name.
        file: File name.
        command: Command line, quoted for a shell.
        facts: Further facts by name.
    """

    anchor: str
    run: str
    file: str
    command: str
    facts: tuple[tuple[str, str], ...]


def provenance_anchor(artifact: Artifact[Any]) -> str:
    """Return the link to the provenance of a document."""
    # A hash, because different run names can give the same slug, and copies of a document have the same sha256.
    return f"#made-{sha256_bytes(f'{artifact.run}/{artifact.file}'.encode())[:10]}"


def provenance_entry(artifact: Artifact[AnyDocument]) -> ProvenanceEntry:
    """Return the provenance of a document."""
    document, provenance = artifact.document, artifact.document.provenance
    inputs = [f"{name} {sha256[:12]}" for name, sha256 in sorted(provenance.inputs.items())]
    commit = f"commit {provenance.commit}" if provenance.commit else "no commit recorded"
    facts = [
        ("seed", str(provenance.seed)),
        ("created", provenance.created),
        ("rnascl", f"{provenance.tool_version}, {commit}"),
        ("torch", provenance.torch_version or "not used or not recorded"),
        ("device", f"{provenance.device}, precision {provenance.precision}"),
        ("teacher", describe_teacher(provenance.teacher) if provenance.teacher else "none"),
        *_data_facts(document),
        *_stage_facts(document),
        ("inputs", ", ".join(inputs) or "none"),
        ("sha256", artifact.sha256),
    ]
    if changed := changed_settings(provenance.recipe, document.kind):
        facts.append(("non-default settings", ", ".join(changed)))
    anchor = provenance_anchor(artifact)[1:]
    return ProvenanceEntry(anchor, artifact.run, artifact.file, shlex.join(provenance.command), tuple(facts))


def _data_facts(document: AnyDocument) -> list[tuple[str, str]]:
    data = document.provenance.data
    if data is None:
        return [("data", "not recorded")]
    limits = [
        f"--limit-{split} {limit:,}"
        for split, limit in (("train", data.limit_train), ("test", data.limit_test))
        if limit is not None
    ]
    images = (
        f"{data.train_images:,} training images, {data.holdout_images:,} held out, {data.test_images:,} test images"
    )
    return [
        ("data", f"{short_spec(data.spec)}, {len(data.classes)} classes; {images}"),
        ("limits", ", ".join(limits) or "none"),
        ("data fingerprint", data.fingerprint),
    ]


def _stage_facts(document: AnyDocument) -> Iterator[tuple[str, str]]:
    """Yield the time, the protocol of an attack, and the weights of a training unless they are those of the end."""
    if isinstance(document, AttackDocument):
        seconds = sum(result.seconds for result in document.results)
        yield "time", f"{seconds:,.0f} s for {len(document.results)} attacks"
        yield "protocol", document.protocol
    if isinstance(document, TrainDocument | AdvFinetuneDocument):
        yield "time", f"{document.seconds:,.0f} s for {document.epochs} epochs"
        weights = [AVERAGES[document.average]] if document.average else []
        if document.best_epoch and (best := document.validation):
            epoch = f"epoch {document.best_epoch} of {document.epochs}, best on held-out images"
            weights.append(f"{epoch} (clean {best.clean:.1%}, PGD {best.robust:.1%})")
        if weights:
            yield "saved weights", "; ".join(weights)


def provenance_table(artifacts: Sequence[Artifact[AnyDocument]]) -> Table:
    """Return the provenance of all documents, one per row."""
    columns = ["Document", "Command", "Commit", "Teacher (sha256)", "Device", "Data (fingerprint)", "Created"]
    return Table(
        "makings",
        "Documents",
        [Column(columns[0]), Column("Seed", True), *map(Column, columns[1:])],
        [_row(artifact) for artifact in artifacts],
        intro="Every number in this report comes from one of these documents. The links lead to the full command and "
        "settings.",
    )


def _row(artifact: Artifact[AnyDocument]) -> list[Cell]:
    provenance = artifact.document.provenance
    teacher = provenance.teacher
    return [
        text(f"{artifact.run}/{artifact.file}", href=provenance_anchor(artifact)),
        number(provenance.seed, "d"),
        text(" ".join(provenance.command[:2]), note=shlex.join(provenance.command)),
        text(provenance.commit),
        text(f"{teacher.architecture} ({teacher.sha256[:12]})" if teacher else None),
        text(provenance.device),
        text(describe_data(provenance.data) if provenance.data else None),
        text(provenance.created),
    ]


def changed_settings(recipe: Mapping[str, Any], kind: str) -> list[str]:
    """Return the non-default settings of a document's stage as ``key=value``."""
    table = RECIPE_TABLE[kind]
    return list(_changed(Recipe().model_dump(mode="json").get(table, {}), upgraded(recipe).get(table, {}), table))


def _changed(default: Any, value: Any, key: str) -> Iterator[str]:
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        for name in value:
            yield from _changed(default.get(name), value[name], f"{key}.{name}")
    elif default != value:
        yield f"{key}={value}"
