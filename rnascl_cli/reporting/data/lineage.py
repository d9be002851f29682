"""Which search, derived document and training a model comes from, and which attacks it met: by sha256 alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rnascl_cli.artifacts.documents import (
    TUTORED,
    AdvFinetuneDocument,
    Architecture,
    AttackDocument,
    Baseline,
    DerivedDocument,
    SearchDocument,
    TeacherReference,
    TrainDocument,
    TutorMap,
    TutorOrigin,
)
from rnascl_cli.artifacts.store import STUDENT, sha256_file
from rnascl_cli.reporting.data.collect import Artifact, D, RunSet
from rnascl_cli.reporting.data.merge_attacks import MergedAttack, merged_attacks

UNKNOWN_ORIGIN = "unknown origin"
TUTOR_WORDS: dict[TutorOrigin, str] = {
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
        name: The run it was made in; for a teacher or a model of unknown origin, what was attacked.
        kind: Trained here, a teacher of one of the runs, or neither.
        sha256: Of its file.
        made: The document of the stage that made it.
        source: The training that an adversarial fine-tuning started from.
        derived: The document its architecture and tutors come from.
        search: The search behind that.
        attacks: What it was attacked with.
        teacher: The teacher it learned from, or that it is.
    """

    name: str
    kind: Literal["student", "teacher", "unknown"]
    sha256: str
    made: StudentArtifact | None = None
    source: Artifact[TrainDocument] | None = None
    derived: Artifact[DerivedDocument] | None = None
    search: Artifact[SearchDocument] | None = None
    attacks: tuple[MergedAttack, ...] = ()
    teacher: TeacherReference | None = None

    @property
    def architecture(self) -> Architecture | None:
        """Widths, params and MACs; None for a model that was not trained here."""
        return self.made.document.architecture if self.made else None

    @property
    def finetuned(self) -> str | None:
        """The adversarial fine-tuning method; None where there was none, or none is known."""
        if self.made and isinstance(self.made.document, AdvFinetuneDocument):
            return self.made.document.method
        return None

    @property
    def from_scratch(self) -> str | None:
        """The method by which it was trained on perturbed images from the first epoch on; None on clean ones."""
        trained = self.source.document if self.source else self.made.document if self.made else None
        return trained.method if isinstance(trained, TrainDocument) else None

    @property
    def robust_search(self) -> str | None:
        """The method that perturbed images while its network was searched; None where none did, or none is known."""
        return self.search.document.robust if self.search else None

    @property
    def distill(self) -> Baseline | None:
        """The rival distillation loss that it was trained with; None where there was none."""
        return self.made.document.distill if self.made else None

    @property
    def tutors(self) -> TutorMap | None:
        """Who taught its layers; None where nobody did, or none is known."""
        if self.made is None or self.made.document.paradigm not in TUTORED or self.derived is None:
            return None
        return self.derived.document.tutors

    @property
    def trained(self) -> str:
        """How it was trained, in words."""
        if self.made is None:
            return "robust teacher" if self.kind == "teacher" else UNKNOWN_ORIGIN
        paradigm = self.made.document.paradigm
        words: str = self.distill or paradigm
        if self.distill and paradigm != "standard":  # a fine-tuning that went on with other teacher terms
            words += f", then {paradigm}"
        if self.tutors and self.tutors.origin != "searched":
            words += f", tutors: {TUTOR_WORDS[self.tutors.origin]}"
        if self.robust_search:
            words += f", robust search ({self.robust_search})"
        if self.from_scratch:
            words += f", {self.from_scratch} from scratch"
        return f"{words} + {self.finetuned}" if self.finetuned else words

    @property
    def origin(self) -> str:
        """The chain of stages behind the model, in words."""
        if self.kind == "teacher":
            return "teacher file"
        if self.made is None:
            return f"{UNKNOWN_ORIGIN}: no given run made this file"
        links = [
            _link("search", self.search),
            _link("derive", self.derived),
            *([_link("train", self.source)] if self.finetuned else []),
            f"{'adv-finetune' if self.finetuned else 'train'} ({self.made.run})",
        ]
        return " → ".join(links)


def _link(
    stage: str, found: Artifact[SearchDocument] | Artifact[DerivedDocument] | Artifact[TrainDocument] | None
) -> str:
    return f"{stage} ({found.run})" if found else f"{stage} ({UNKNOWN_ORIGIN})"


def models(runs: RunSet) -> list[ReportModel]:
    """Return every model that the runs made or attacked: students by run name, then teachers, then others."""
    made: list[StudentArtifact] = _once([*runs.trainings, *runs.finetunings])
    students = [_student(runs, artifact) for artifact in made]
    known = {model.sha256 for model in students}
    attacked = {attack.document.model_sha256: attack for attack in reversed(runs.attacks)}
    others = [_other(runs, attack) for sha256, attack in attacked.items() if sha256 not in known]
    students.sort(key=lambda model: model.name)
    others.sort(key=lambda model: (model.kind != "teacher", model.name))
    return students + others


def _once(found: Iterable[StudentArtifact]) -> list[StudentArtifact]:
    """Drop byte-identical copies of a document, which would be the same model twice."""
    return list({artifact.sha256: artifact for artifact in reversed(list(found))}.values())


def _student(runs: RunSet, made: StudentArtifact) -> ReportModel:
    source = _source(runs, made) if isinstance(made.document, AdvFinetuneDocument) else None
    derived = _derived(runs, [made, *([source] if source else [])])
    return ReportModel(
        name=made.run,
        kind="student",
        sha256=made.document.student_sha256,
        made=made,
        source=source,
        derived=derived,
        search=_input(runs.searches, derived) if derived else None,
        attacks=_attacks(runs, made.document.student_sha256),
        teacher=_teacher(made, source, derived),
    )


def _teacher(
    made: StudentArtifact, source: Artifact[TrainDocument] | None, derived: Artifact[DerivedDocument] | None
) -> TeacherReference | None:
    """Return the teacher of a student; that of a rival loss holds for the fine-tuning too, which does without one."""
    chain = [made, source if source and source.document.distill else None, derived]
    return next((link.document.provenance.teacher for link in chain if link and link.document.provenance.teacher), None)


def _other(runs: RunSet, attack: Artifact[AttackDocument]) -> ReportModel:
    sha256 = attack.document.model_sha256
    teacher = next((found for found in _teachers(runs) if found.sha256 == sha256), None)
    # A path says which machine it was on, and no more than its name about the model.
    name = attack.document.model.rstrip("/").rsplit("/", 1)[-1] or attack.run
    attacks = _attacks(runs, sha256)
    return ReportModel(name, "teacher" if teacher else "unknown", sha256, attacks=attacks, teacher=teacher)


def _teachers(runs: RunSet) -> list[TeacherReference]:
    referred = [found.document.provenance.teacher for found in runs.artifacts]
    mapped = [found.document.tutors.teacher for found in runs.derivations if found.document.tutors]
    return [teacher for teacher in [*referred, *mapped] if teacher is not None]


def _attacks(runs: RunSet, sha256: str) -> tuple[MergedAttack, ...]:
    found = {attack.sha256: attack for attack in reversed(runs.attacks) if attack.document.model_sha256 == sha256}
    return merged_attacks(sorted(found.values(), key=lambda attack: attack.run))


def _input(
    candidates: list[Artifact[D]], of: Artifact[TrainDocument] | Artifact[DerivedDocument] | StudentArtifact
) -> Artifact[D] | None:
    """Return the candidate that ``of`` names among its inputs by hash; of equal copies the one beside it."""
    hashes = set(of.document.provenance.inputs.values())
    found = [candidate for candidate in candidates if candidate.sha256 in hashes]
    return min(found, key=lambda candidate: candidate.folder != of.folder, default=None)


def _source(runs: RunSet, made: StudentArtifact) -> Artifact[TrainDocument] | None:
    """Return the training whose document or whose weights the fine-tuning read."""
    hashes = set(made.document.provenance.inputs.values())
    for found in runs.trainings:
        if found.sha256 in hashes or found.document.student_sha256 in hashes:
            return found
    return None


def _derived(runs: RunSet, chain: list[StudentArtifact]) -> Artifact[DerivedDocument] | None:
    """Return the derived document by hash; else the one in the same folder, when the architectures agree."""
    for link in chain:
        if by_hash := _input(runs.derivations, link):
            return by_hash
    for link in chain:
        for found in runs.derivations:
            if found.folder == link.folder and found.document.architecture == link.document.architecture:
                return found
    return None


def changed_students(models: Sequence[ReportModel]) -> list[str]:
    """Say which students' files have changed since their documents were written.

    The numbers reported are still those of the file that was measured, so this is a warning and no error. A student
    that is not there is none: weights are often kept elsewhere.
    """
    words = []
    for model in models:
        if model.made is None or not (path := model.made.folder / STUDENT).is_file():
            continue
        found = sha256_file(path)
        if found != model.sha256:
            words.append(
                f"{model.name}: {STUDENT} has changed since {model.made.file} was written (sha256 expected "
                f"{model.sha256[:12]}..., found {found[:12]}...); the numbers here are of the file before. Copy it "
                "again, or make the run again"
            )
    return words
