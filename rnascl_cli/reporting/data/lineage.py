"""Link each model to its search, derived document, training, teacher and attacks, by sha256 only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rnascl_cli.artifacts.documents import (
    TUTORED,
    AdvFinetuneDocument,
    Architecture,
    Baseline,
    DerivedDocument,
    SearchDocument,
    TeacherReference,
    TrainDocument,
    TutorMap,
)
from rnascl_cli.artifacts.store import STUDENT, sha256_file
from rnascl_cli.reporting.data.collect import Artifact, D, RunSet
from rnascl_cli.reporting.data.merge_attacks import MergedAttack, merged_attacks

UNKNOWN_ORIGIN = "unknown origin"
TUTOR_NAMES: dict[str, str] = {
    "searched": "learned",
    "random": "random",
    "same-depth": "same relative depth",
    "last-layer": "last layer only",
    "by-hand": "fixed by hand",
}

StudentArtifact = Artifact[TrainDocument] | Artifact[AdvFinetuneDocument]


@dataclass(frozen=True)
class ReportModel:
    """A network that was trained or attacked.

    Attributes:
        name: Run that produced it; for a teacher or a model of unknown origin, the name of the attacked file.
        kind: Trained by one of the runs, a teacher of one of the runs, or neither.
        sha256: Hash of the model file.
        artifact: Document of the training or fine-tuning that produced it.
        source: Training that an adversarial fine-tuning started from.
        derived: Document with its architecture and tutors.
        search: Search that the derived document comes from.
        attacks: Attacks on the model.
        teacher: Teacher of the student; for a teacher, the model itself.
    """

    name: str
    kind: Literal["student", "teacher", "unknown"]
    sha256: str
    artifact: StudentArtifact | None = None
    source: Artifact[TrainDocument] | None = None
    derived: Artifact[DerivedDocument] | None = None
    search: Artifact[SearchDocument] | None = None
    attacks: tuple[MergedAttack, ...] = ()
    teacher: TeacherReference | None = None

    @property
    def architecture(self) -> Architecture | None:
        """Widths, parameters and MACs; None unless a run trained the model."""
        return self.artifact.document.architecture if self.artifact else None

    @property
    def finetuned(self) -> str | None:
        """Adversarial fine-tuning method; None if not fine-tuned or unknown."""
        if self.artifact and isinstance(self.artifact.document, AdvFinetuneDocument):
            return self.artifact.document.method
        return None

    @property
    def from_scratch(self) -> str | None:
        """Method of adversarial training from scratch; None if trained on clean images."""
        training = self.source or self.artifact
        return training.document.method if training and isinstance(training.document, TrainDocument) else None

    @property
    def robust_search(self) -> str | None:
        """Adversarial training method of the search; None for a search on clean images, or if unknown."""
        return self.search.document.robust if self.search else None

    @property
    def distill(self) -> Baseline | None:
        """Distillation baseline the model was trained with, if any."""
        return self.artifact.document.distill if self.artifact else None

    @property
    def tutors(self) -> TutorMap | None:
        """Tutor map the model was trained with; None without tutors, or if unknown."""
        if self.artifact is None or self.artifact.document.paradigm not in TUTORED or self.derived is None:
            return None
        return self.derived.document.tutors

    @property
    def trained(self) -> str:
        """Training method in words."""
        if self.artifact is None:
            return "robust teacher" if self.kind == "teacher" else UNKNOWN_ORIGIN
        paradigm = self.artifact.document.paradigm
        words: str = self.distill or paradigm
        if self.distill and paradigm != "standard":  # fine-tuned with other teacher terms
            words += f", then {paradigm}"
        if self.tutors and self.tutors.origin != "searched":
            words += f", tutors: {TUTOR_NAMES[self.tutors.origin]}"
        if self.robust_search:
            words += f", robust search ({self.robust_search})"
        if self.from_scratch:
            words += f", {self.from_scratch} from scratch"
        return f"{words} + {self.finetuned}" if self.finetuned else words

    @property
    def origin(self) -> str:
        """Chain of stages that produced the model, in words."""
        if self.kind == "teacher":
            return "teacher file"
        if self.artifact is None:
            return f"{UNKNOWN_ORIGIN}: the file was not produced by any given run"
        stages: list[tuple[str, Artifact[Any] | None]] = [("search", self.search), ("derive", self.derived)]
        if self.finetuned:
            stages.append(("train", self.source))
        stages.append(("adv-finetune" if self.finetuned else "train", self.artifact))
        return " → ".join(f"{stage} ({artifact.run if artifact else UNKNOWN_ORIGIN})" for stage, artifact in stages)


def models(runs: RunSet) -> list[ReportModel]:
    """Return all models that the runs trained or attacked: students by run name, then teachers, then others."""
    # Byte-identical copies of a document are one model.
    trained: list[StudentArtifact] = [*runs.trainings, *runs.finetunings]
    artifacts = {artifact.sha256: artifact for artifact in reversed(trained)}
    students = [_student(runs, artifact) for artifact in artifacts.values()]
    known = {model.sha256 for model in students}
    attacked = {attack.document.model_sha256: attack for attack in reversed(runs.attacks)}
    others = [
        _attacked_file(runs, sha256, attack.document.model.rstrip("/").rsplit("/", 1)[-1] or attack.run)
        for sha256, attack in attacked.items()
        if sha256 not in known
    ]
    students.sort(key=lambda model: model.name)
    others.sort(key=lambda model: (model.kind != "teacher", model.name))
    return students + others


def _student(runs: RunSet, artifact: StudentArtifact) -> ReportModel:
    source = _source(runs, artifact) if isinstance(artifact.document, AdvFinetuneDocument) else None
    derived = _derived(runs, [artifact, *([source] if source else [])])
    # The teacher of a distillation baseline is also that of its fine-tuning, which may not use one.
    chain = (artifact, source if source and source.document.distill else None, derived)
    teachers = (link.document.provenance.teacher for link in chain if link)
    return ReportModel(
        name=artifact.run,
        kind="student",
        sha256=artifact.document.student_sha256,
        artifact=artifact,
        source=source,
        derived=derived,
        search=_input(runs.searches, derived) if derived else None,
        attacks=_attacks(runs, artifact.document.student_sha256),
        teacher=next((teacher for teacher in teachers if teacher), None),
    )


def _attacked_file(runs: RunSet, sha256: str, name: str) -> ReportModel:
    teachers = [artifact.document.provenance.teacher for artifact in runs.artifacts]
    teachers += [artifact.document.tutors.teacher for artifact in runs.derivations if artifact.document.tutors]
    teacher = next((teacher for teacher in teachers if teacher and teacher.sha256 == sha256), None)
    kind: Literal["teacher", "unknown"] = "teacher" if teacher else "unknown"
    return ReportModel(name, kind, sha256, attacks=_attacks(runs, sha256), teacher=teacher)


def _attacks(runs: RunSet, sha256: str) -> tuple[MergedAttack, ...]:
    attacks = {attack.sha256: attack for attack in reversed(runs.attacks) if attack.document.model_sha256 == sha256}
    return merged_attacks(sorted(attacks.values(), key=lambda attack: attack.run))


def _input(candidates: list[Artifact[D]], artifact: StudentArtifact | Artifact[DerivedDocument]) -> Artifact[D] | None:
    """Return the candidate whose hash is an input of ``artifact``; of equal copies, the one in the same folder."""
    hashes = set(artifact.document.provenance.inputs.values())
    inputs = [candidate for candidate in candidates if candidate.sha256 in hashes]
    return min(inputs, key=lambda candidate: candidate.folder != artifact.folder, default=None)


def _source(runs: RunSet, artifact: StudentArtifact) -> Artifact[TrainDocument] | None:
    """Return the training whose document or weights are an input of the fine-tuning."""
    hashes = set(artifact.document.provenance.inputs.values())
    sources = (one for one in runs.trainings if one.sha256 in hashes or one.document.student_sha256 in hashes)
    return next(sources, None)


def _derived(runs: RunSet, chain: list[StudentArtifact]) -> Artifact[DerivedDocument] | None:
    """Return the derived document by hash; otherwise the one in the same folder, if the architectures agree."""
    for link in chain:
        if by_hash := _input(runs.derivations, link):
            return by_hash
    for link in chain:
        for derived in runs.derivations:
            if derived.folder == link.folder and derived.document.architecture == link.document.architecture:
                return derived
    return None


def changed_students(models: Sequence[ReportModel]) -> list[str]:
    """Return a warning for each student file that has changed since its document was written.

    The reported numbers are those of the original file. Missing files are fine: weights are often stored elsewhere.
    """
    warnings = []
    for model in models:
        if model.artifact is None or not (path := model.artifact.folder / STUDENT).is_file():
            continue
        sha256 = sha256_file(path)
        if sha256 != model.sha256:
            warnings.append(
                f"{model.name}: {STUDENT} has changed since {model.artifact.file} was written (sha256 expected "
                f"{model.sha256[:12]}..., found {sha256[:12]}...); the numbers below are those of the original file. "
                "Copy it again, or repeat the run"
            )
    return warnings
