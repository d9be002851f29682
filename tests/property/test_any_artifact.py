"""Any artifact survives writing and reading; other files are refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnascl_cli.artifacts.documents import (
    DOCUMENTS,
    AdvFinetuneDocument,
    AnyDocument,
    Architecture,
    AttackDocument,
    AttackResult,
    Baseline,
    BudgetRecord,
    DataReference,
    DerivedDocument,
    FrontPoint,
    Paradigm,
    Provenance,
    SearchDocument,
    TeacherReference,
    TrainDocument,
    TutorMap,
    Verdicts,
)
from rnascl_cli.artifacts.reading import parse_json
from rnascl_cli.artifacts.store import document_json, parse_document, read_any_document, write_document
from rnascl_cli.core.errors import UserError
from tests.property.profile import quick

pytestmark = pytest.mark.unit

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, max_value=1e300)
shares = st.floats(0, 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # all of Unicode but half pairs
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
counts = st.integers(0, 2**63 - 1)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63) + 1, 2**63 - 1), finite, texts)
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=6
)
histories = st.lists(st.dictionaries(texts, plain, max_size=3), max_size=3)
PARADIGMS: tuple[Paradigm, ...] = ("rnas-cl", "icc", "kl", "standard")
paradigms = st.sampled_from(PARADIGMS)

data = st.builds(
    DataReference,
    spec=texts,
    fingerprint=hashes,
    limit_train=st.none() | counts,
    limit_test=st.none() | counts,
    classes=st.lists(texts, max_size=3),
    train_images=counts,
    holdout_images=counts,
    test_images=counts,
)
teachers = st.builds(TeacherReference, source=texts, path=texts, architecture=texts, sha256=hashes)
provenances = st.builds(
    Provenance,
    tool_version=texts,
    created=texts,
    command=st.lists(texts, max_size=3),
    recipe=st.dictionaries(texts, plain, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    data=st.none() | data,
    teacher=st.none() | teachers,
    inputs=st.dictionaries(texts, hashes, max_size=2),
    device=texts,
    precision=texts,
    torch_version=st.none() | texts,
    commit=st.none() | texts,
)
architectures = st.builds(
    Architecture,
    space=texts,
    widths=st.lists(st.integers(1, 2**40), max_size=4),
    num_classes=st.integers(2, 100_000),
    input_size=st.integers(8, 4096),
    params=st.integers(1, 2**63 - 1),
    macs=st.integers(1, 2**63 - 1),
)
limits = st.integers(1, 2**63 - 1)
budgets = st.one_of(
    st.none(),
    st.builds(BudgetRecord, max_macs=limits, max_params=st.none() | limits),
    st.builds(BudgetRecord, max_params=limits),
)
points = st.tuples(st.integers(1, 2**62), st.integers(2, 2**62)).map(
    lambda pair: FrontPoint(index=min(pair), of=max(pair))
)


@st.composite
def tutor_maps(draw: st.DrawFn) -> TutorMap:
    """Indices within the teacher's layers."""
    teacher_layers = draw(st.lists(texts, min_size=1, max_size=3))
    student_layers = draw(st.lists(texts, max_size=3))
    tutor = [draw(st.integers(0, len(teacher_layers) - 1)) for _ in student_layers]
    return TutorMap(teacher=draw(teachers), student_layers=student_layers, teacher_layers=teacher_layers, tutor=tutor)


@st.composite
def searches(draw: st.DrawFn) -> SearchDocument:
    """Logits of the shapes that belong together."""
    blocks = draw(st.lists(st.lists(st.tuples(st.integers(), finite), min_size=1, max_size=3), max_size=3))
    student_layers, teacher_layers = (draw(st.lists(texts, min_size=1, max_size=3)) for _ in range(2))
    row = st.lists(finite, min_size=len(teacher_layers), max_size=len(teacher_layers))
    return SearchDocument(
        provenance=draw(provenances),
        space=draw(texts),
        paradigm=draw(paradigms),
        num_classes=draw(st.integers(2, 100_000)),
        input_size=draw(st.integers(8, 4096)),
        width_choices=[[max(-(2**62), min(width, 2**62)) for width, _ in block] for block in blocks],
        width_logits=[[logit for _, logit in block] for block in blocks],
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        tutor_logits=draw(st.just([]) | st.lists(row, min_size=len(student_layers), max_size=len(student_layers))),
        temperature=draw(positive),
        expected_macs=draw(positive),
        budget=draw(budgets),
        pareto=draw(st.none() | st.integers(2, 100)),
        history=draw(histories),
    )


trained: dict[str, Any] = {
    "provenance": provenances,
    "paradigm": paradigms,
    "distill": st.none() | st.sampled_from(get_args(Baseline)),
    "architecture": architectures,
    "student_sha256": hashes,
    "clean_accuracy": shares,
    "epochs": st.integers(1, 2**63 - 1),
    "seconds": st.floats(0, 1e300),
    "history": histories,
}
results = st.builds(
    AttackResult,
    attack=texts,
    eps=texts,
    eps_value=shares,
    steps=st.none() | counts,
    step_size=st.none() | finite,
    restarts=counts,
    accuracy=shares,
    confidence_interval=st.none() | st.tuples(shares, shares),
    seconds=st.floats(0, 1e300),
    images_per_second=st.floats(0, 1e300),
    attacked=st.none() | counts,
    standard=st.booleans(),
)
attacks = st.builds(
    AttackDocument,
    provenance=provenances,
    model=texts,
    model_sha256=hashes,
    protocol=st.sampled_from(["pixel", "paper-code"]),
    n=st.integers(1, 2**63 - 1),
    images=st.lists(counts, max_size=3),
    clean_accuracy=shares,
    worst_case_accuracy=st.none() | shares,
    results=st.lists(results, max_size=2),
    verdicts=st.lists(st.builds(Verdicts, attack=texts, eps=texts, broken=st.lists(counts, max_size=3)), max_size=2),
    warnings=st.lists(texts, max_size=2),
)
DOCUMENTS_OF: dict[str, st.SearchStrategy[AnyDocument]] = {
    "search": searches(),
    "derived": st.builds(
        DerivedDocument,
        provenance=provenances,
        paradigm=paradigms,
        architecture=architectures,
        tutors=st.none() | tutor_maps(),
        budget=budgets,
        point=st.none() | points,
    ),
    "train": st.builds(TrainDocument, **trained),
    "adv-finetune": st.builds(AdvFinetuneDocument, **trained, method=texts),
    "attack": attacks,
}


def test_all_kinds_are_here() -> None:
    assert list(DOCUMENTS_OF) == list(DOCUMENTS)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_through_the_disk_and_back(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.json"

    @quick(60)
    @given(DOCUMENTS_OF[kind])
    def round_trip(document: AnyDocument) -> None:
        write_document(path, document)
        again = read_any_document(path)
        assert again == document
        assert document_json(again).encode() == path.read_bytes()

    round_trip()


@quick(200)
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60), plain.map(json.dumps)), st.sampled_from(list(DOCUMENTS)))
def test_any_text_is_refused_in_a_line(text: str | bytes, kind: str) -> None:
    with pytest.raises(UserError, match=r"^here: "):
        parse_document(text, DOCUMENTS[kind], where="here")


@quick(300)
@given(plain)
def test_json_that_documents_may_hold_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text, where="here") == value
    assert parse_json(text.encode(), where="here") == value


@quick(100)
@given(st.one_of(st.integers(2**63, 10**400), st.integers(-(10**400), -(2**63))))
def test_numbers_beyond_64_bits_are_refused(value: int) -> None:
    with pytest.raises(UserError, match="more than 64 bits"):
        parse_json(f'{{"seed": {value}}}', where="here")
