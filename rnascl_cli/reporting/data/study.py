"""Read the current results of a study from the artifacts of its finished steps."""

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
from rnascl_cli.core.statistics import wilson_interval
from rnascl_cli.reporting.data.collect import short_spec
from rnascl_cli.spaces import NetworkSpace, space_named

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class StudyStudent:
    """A student of a study and its run directories.

    Attributes:
        space: Search space.
        seed: Training seed.
        arm: Arm of the study.
        stage: ``train``, or the name of a fine-tuning.
        run: Run directory, relative to the study's folder.
        attacks: Run directories of its attacks, by the name of the measurement.
    """

    space: str
    seed: int
    arm: str
    stage: str
    run: str
    attacks: dict[str, str]


def read_rows(
    out: Path, students: Iterable[StudyStudent], *, done: Container[str]
) -> tuple[list[StudyRow], Circumstances]:
    """Return a row for each trained student, and the circumstances of all of them.

    Args:
        out: The study's folder.
        students: Its students.
        done: Names of the finished steps. Results of other steps are ignored, since their inputs may have changed.

    Raises:
        UserError: A document cannot be read.
    """
    rows, documents = [], list[Document]()
    for student in students:
        if student.run not in done:
            continue
        made = _read(out / student.run / "train.json", TrainDocument) or _read(
            out / student.run / "adv-finetune.json", AdvFinetuneDocument
        )
        if made is None:
            continue
        attacks = {
            name: attack
            for name, run in student.attacks.items()
            if run in done and (attack := _read(out / run / "attack.json", AttackDocument))
        }
        documents += [made, *attacks.values()]
        rows.append(
            StudyRow(
                space=student.space,
                seed=student.seed,
                arm=student.arm,
                stage=student.stage,
                run=student.run,
                widths=made.architecture.widths,
                params=made.architecture.params,
                macs=made.architecture.macs,
                clean_accuracy=made.clean_accuracy,
                test_images=made.provenance.data.test_images if made.provenance.data else 0,
                epochs=made.epochs,
                seconds=made.seconds,
                attacks={name: _summary(attack) for name, attack in attacks.items()},
            )
        )
    return rows, _circumstances([document.provenance for document in documents])


def _read(path: Path, kind: type[D]) -> D | None:
    return read_document(path, kind) if path.is_file() else None


def _summary(document: AttackDocument) -> AttackSummary:
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
                interval=wilson_interval(result.accuracy, document.n),
            )
            for result in document.results
        ],
        warnings=document.warnings,
        audit_passed=None if audit is None else sum(check.passed for check in audit),
        audit_failed=None if audit is None else [check.name for check in audit if not check.passed],
    )


def read_searches(out: Path, runs: Iterable[str], *, done: Container[str]) -> list[SearchRow]:
    """Return a row for each search whose network has been derived.

    Args:
        out: The study's folder.
        runs: Run directories of the searches, relative to ``out``: ``SPACE/SEED/ARM/search``.
        done: Names of the finished steps, as in :func:`read_rows`.

    Raises:
        UserError: A document cannot be read.
    """
    rows = []
    for run in runs:
        derived_path = f"{run.rpartition('/')[0]}/derived.json"
        if run not in done or derived_path not in done:
            continue
        search = read_document(out / run / "search.json", SearchDocument)
        derived = read_document(out / derived_path, DerivedDocument)
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
                width_entropy=_clamped(last["width_entropy"]),
                tutor_entropy=None if last.get("tutor_entropy") is None else _clamped(last["tutor_entropy"]),
                macs=derived.architecture.macs,
                smallest_macs=NetworkSpace(space_named(search.space), **sizes).smallest.macs,
            )
        )
    return rows


def _clamped(fraction: float) -> float:
    """Return a fraction within [0, 1], since earlier versions recorded some that rounding had moved outside."""
    return min(max(fraction, 0.0), 1.0)


def _circumstances(provenances: Sequence[Provenance]) -> Circumstances:
    def distinct(read: Callable[[Provenance], str | None]) -> list[str]:
        return list(dict.fromkeys(text for provenance in provenances if (text := read(provenance))))

    days = sorted(provenance.created[:10] for provenance in provenances)
    return Circumstances(
        data=distinct(_data),
        teachers=distinct(_teacher),
        devices=distinct(lambda one: one.device),
        precisions=distinct(lambda one: one.precision),
        torch_versions=distinct(lambda one: one.torch_version),
        tool_versions=distinct(lambda one: f"{one.tool_version}{f' ({one.commit})' if one.commit else ''}"),
        made=(days[0], days[-1]) if days else None,
    )


def _teacher(provenance: Provenance) -> str | None:
    teacher = provenance.teacher
    return f"{teacher.architecture}, sha256 {teacher.sha256}" if teacher else None


def _data(provenance: Provenance) -> str | None:
    data = provenance.data
    if data is None:
        return None
    training = f"{data.train_images} training images, {data.holdout_images} held out, " if data.train_images else ""
    return f"{short_spec(data.spec)} (fingerprint {data.fingerprint[:12]}): {training}{data.test_images} test images"
