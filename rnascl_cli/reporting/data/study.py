"""What a study has measured so far, read off the artifacts that its steps have left."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rnascl_cli.artifacts.documents import (
    AdvFinetuneDocument,
    AttackDocument,
    DerivedDocument,
    Document,
    Provenance,
    SearchDocument,
    TrainDocument,
)
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.artifacts.study import AttackSummary, Circumstances, MeasuredAttack, SearchRow, StudyRow
from rnascl_cli.reporting.tables.table import short_spec, wilson
from rnascl_cli.spaces import NetworkSpace, space_named

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Place:
    """Where a student of a study lies.

    Attributes:
        space: Its search space.
        seed: Of its training.
        arm: Its arm.
        stage: ``train``, or the name of a fine-tuning.
        run: Its run directory below the study's folder.
        attacks: Those of the attacks on it, by the name of the measurement.
    """

    space: str
    seed: int
    arm: str
    stage: str
    run: str
    attacks: dict[str, str]


def read_rows(out: Path, places: Iterable[Place], *, done: Container[str]) -> tuple[list[StudyRow], Circumstances]:
    """Return a row for every student that has been trained, and what all of them depend on.

    Args:
        out: The study's folder.
        places: Its students.
        done: Names of the steps whose results count: what was made from something that has changed since does not.

    Raises:
        UserError: A document cannot be read.
    """
    rows, documents = [], list[Document]()
    for place in places:
        if place.run not in done:
            continue
        made = _read(out / place.run / "train.json", TrainDocument) or _read(
            out / place.run / "adv-finetune.json", AdvFinetuneDocument
        )
        if made is None:
            continue
        attacks = {
            name: found
            for name, run in place.attacks.items()
            if run in done and (found := _read(out / run / "attack.json", AttackDocument))
        }
        documents += [made, *attacks.values()]
        architecture = made.architecture
        rows.append(
            StudyRow(
                space=place.space,
                seed=place.seed,
                arm=place.arm,
                stage=place.stage,
                run=place.run,
                widths=architecture.widths,
                params=architecture.params,
                macs=architecture.macs,
                clean_accuracy=made.clean_accuracy,
                test_images=made.provenance.data.test_images if made.provenance.data else 0,
                epochs=made.epochs,
                seconds=made.seconds,
                attacks={name: _attacked(found) for name, found in attacks.items()},
            )
        )
    return rows, _circumstances([document.provenance for document in documents])


def read_searches(out: Path, runs: Iterable[str], *, done: Container[str]) -> list[SearchRow]:
    """Return a row for every search whose network has been derived.

    Args:
        out: The study's folder.
        runs: The searches' run directories below it, ``SPACE/SEED/ARM/search``.
        done: As in :func:`read_rows`.

    Raises:
        UserError: A document cannot be read.
    """
    rows = []
    for run in runs:
        beside = f"{run.rpartition('/')[0]}/derived.json"
        if run not in done or beside not in done:
            continue
        search = read_document(out / run / "search.json", SearchDocument)
        derived = read_document(out / beside, DerivedDocument)
        sizes = {"num_classes": search.num_classes, "input_size": search.input_size}
        last = search.history[-1]
        rows.append(
            SearchRow(
                space=search.space,
                seed=search.provenance.seed,
                arm=run.split("/")[-2],
                run=run,
                epochs=len(search.history),
                seconds=sum(entry["seconds"] for entry in search.history),
                width_entropy=_share(last["width_entropy"]),
                tutor_entropy=None if last.get("tutor_entropy") is None else _share(last["tutor_entropy"]),
                macs=derived.architecture.macs,
                smallest_macs=NetworkSpace(space_named(search.space), **sizes).smallest.macs,
            )
        )
    return rows


def _share(recorded: float) -> float:
    """Return a share as searches of earlier versions recorded it, which may be rounded to beyond 0 or 1."""
    return min(max(recorded, 0.0), 1.0)


def _read(path: Path, kind: type[D]) -> D | None:
    return read_document(path, kind) if path.is_file() else None


def _attacked(document: AttackDocument) -> AttackSummary:
    audit = document.audit
    return AttackSummary(
        protocol=document.protocol,
        n=document.n,
        clean_accuracy=document.clean_accuracy,
        results=[
            MeasuredAttack(
                attack=result.attack,
                eps=result.eps,
                accuracy=result.accuracy,
                interval=wilson(result.accuracy, document.n),
            )
            for result in document.results
        ],
        warnings=document.warnings,
        audit_passed=None if audit is None else sum(check.passed for check in audit),
        audit_failed=None if audit is None else [check.name for check in audit if not check.passed],
    )


def _circumstances(made: Sequence[Provenance]) -> Circumstances:
    def all_of(read: Callable[[Provenance], str | None]) -> list[str]:
        return list(dict.fromkeys(text for provenance in made if (text := read(provenance))))

    days = sorted(provenance.created[:10] for provenance in made)
    return Circumstances(
        data=all_of(_data),
        teachers=all_of(_teacher),
        devices=all_of(lambda one: one.device),
        precisions=all_of(lambda one: one.precision),
        torch_versions=all_of(lambda one: one.torch_version),
        tool_versions=all_of(lambda one: f"{one.tool_version}{f' ({one.commit})' if one.commit else ''}"),
        made=(days[0], days[-1]) if days else None,
    )


def _data(provenance: Provenance) -> str | None:
    data = provenance.data
    if data is None:
        return None
    trained = f"{data.train_images} images to train on, {data.holdout_images} held out, " if data.train_images else ""
    return f"{short_spec(data.spec)} (fingerprint {data.fingerprint[:12]}): {trained}{data.test_images} to test on"


def _teacher(provenance: Provenance) -> str | None:
    teacher = provenance.teacher
    return f"{teacher.architecture}, sha256 {teacher.sha256}" if teacher else None
