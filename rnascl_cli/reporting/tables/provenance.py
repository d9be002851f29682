"""How each number was made: command, seed, commit, teacher, device, data; and which settings were not the defaults."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AnyDocument, AttackDocument, TrainDocument
from rnascl_cli.artifacts.store import sha256_bytes
from rnascl_cli.recipes import Recipe
from rnascl_cli.reporting.data.collect import Artifact
from rnascl_cli.reporting.tables.table import Cell, Column, Table, number, short_spec, teacher_words, text

STAGE_TABLES = {
    "search": ("search",),
    "derived": ("search",),
    "train": ("train",),
    "adv-finetune": ("adv_finetune",),
    "attack": ("attack",),
}


@dataclass(frozen=True)
class ProvenanceEntry:
    """How one document was made.

    Attributes:
        anchor: Where the page tells it.
        run: Its run directory.
        file: Its file name.
        command: The command line, quoted for a shell.
        facts: What else there is to know, by name.
    """

    anchor: str
    run: str
    file: str
    command: str
    facts: tuple[tuple[str, str], ...]


def provenance_anchor(found: Artifact[Any]) -> str:
    """Return the link to where the page tells how a document was made."""
    # Runs of unlike names may look alike as anchors, and copies of a document have one sha256.
    return f"#made-{sha256_bytes(f'{found.run}/{found.file}'.encode())[:10]}"


def provenance_entry(found: Artifact[AnyDocument]) -> ProvenanceEntry:
    """Return how a document was made."""
    document = found.document
    made = document.provenance
    facts = [
        ("seed", str(made.seed)),
        ("made", made.created),
        ("rnascl", f"{made.tool_version}" + (f", commit {made.commit}" if made.commit else ", no commit recorded")),
        ("torch", made.torch_version or "not used or not recorded"),
        ("device", f"{made.device}, precision {made.precision}"),
        ("teacher", teacher_words(made.teacher) or "none"),
        *_data(document),
        *_time(document),
        *_kept(document),
        ("inputs", ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(made.inputs.items())) or "none"),
        ("sha256", found.sha256),
    ]
    if changed := changed_settings(made.recipe, document.kind):
        facts.append(("settings away from the defaults", ", ".join(changed)))
    return ProvenanceEntry(provenance_anchor(found)[1:], found.run, found.file, shlex.join(made.command), tuple(facts))


def _data(document: AnyDocument) -> list[tuple[str, str]]:
    data = document.provenance.data
    if data is None:
        return [("data", "not recorded")]
    limits = [
        f"--limit-{split} {limit:,}"
        for split, limit in (("train", data.limit_train), ("test", data.limit_test))
        if limit is not None
    ]
    counts = f"{data.train_images:,} to train on, {data.holdout_images:,} held out, {data.test_images:,} to test on"
    return [
        ("data", f"{short_spec(data.spec)}, {len(data.classes)} classes; {counts}"),
        ("limits", ", ".join(limits) or "none"),
        ("fingerprint of the data", data.fingerprint),
    ]


def _time(document: AnyDocument) -> list[tuple[str, str]]:
    if isinstance(document, TrainDocument | AdvFinetuneDocument):
        return [("time", f"{document.seconds:,.0f} s for {document.epochs} epochs")]
    if isinstance(document, AttackDocument):
        seconds = sum(result.seconds for result in document.results)
        return [("time", f"{seconds:,.0f} s for {len(document.results)} attacks"), ("protocol", document.protocol)]
    return []


AVERAGES = {"ema": "moving average of the weights", "swa": "mean over the last epochs"}


def _kept(document: AnyDocument) -> list[tuple[str, str]]:
    """Say which weights of a training were kept, where they are not simply the last ones."""
    if not isinstance(document, TrainDocument | AdvFinetuneDocument):
        return []
    words = [AVERAGES[document.average]] if document.average else []
    if document.best_epoch and (found := document.validation):
        chosen = f"epoch {document.best_epoch} of {document.epochs}, best on held-out images"
        words.append(f"{chosen} (clean {found.clean:.1%}, PGD {found.robust:.1%})")
    return [("weights kept", "; ".join(words))] if words else []


def provenance_table(found: Sequence[Artifact[AnyDocument]]) -> Table:
    """Return how every document was made, in a row each; the page's details tell the rest."""
    columns = ["Document", "Command", "Commit", "Teacher (sha256)", "Device", "Data (fingerprint)", "Made"]
    return Table(
        "makings",
        "Documents",
        [Column(columns[0]), Column("Seed", True), *map(Column, columns[1:])],
        [_row(artifact) for artifact in found],
        intro="Every number of this report comes from one of these; the links lead to the whole command and settings.",
    )


def _row(found: Artifact[AnyDocument]) -> list[Cell]:
    made = found.document.provenance
    teacher, data = made.teacher, made.data
    return [
        text(f"{found.run}/{found.file}", href=provenance_anchor(found)),
        number(made.seed, "d"),
        text(" ".join(made.command[:2]), note=shlex.join(made.command)),
        text(made.commit),
        text(f"{teacher.architecture} ({teacher.sha256[:12]})" if teacher else None),
        text(made.device),
        text(f"{short_spec(data.spec)} ({data.fingerprint[:12]})" if data else None),
        text(made.created),
    ]


def changed_settings(recipe: Mapping[str, Any], kind: str) -> list[str]:
    """Name the settings of the document's stage that are not the defaults, as ``key=value``."""
    defaults = Recipe().model_dump(mode="json")
    changed: list[str] = []
    for table in STAGE_TABLES[kind]:
        given = recipe.get(table)
        if isinstance(given, Mapping):
            _compare(defaults.get(table, {}), given, table, changed)
    return changed


def _compare(default: Any, given: Any, key: str, changed: list[str]) -> None:
    if isinstance(default, Mapping) and isinstance(given, Mapping):
        for name in given:
            _compare(default.get(name), given[name], f"{key}.{name}", changed)
    elif default != given:
        changed.append(f"{key}={given}")
