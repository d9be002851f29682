"""Every document through the disk and back, and every damage said in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rnascl_cli.artifacts.documents import DOCUMENTS, DerivedDocument, Provenance, SearchDocument, TutorMap
from rnascl_cli.artifacts.store import (
    document_json,
    parse_document,
    read_any_document,
    read_document,
    write_document,
)
from rnascl_cli.core.errors import UserError
from tests.artifacts.examples import TEACHER, every_document

pytestmark = pytest.mark.unit

KINDS = ["search", "derived", "train", "adv-finetune", "attack"]


def refusal(text: str | bytes, kind: str = "search") -> str:
    """The one line that reading ``text`` gives."""
    with pytest.raises(UserError) as error:
        parse_document(text, DOCUMENTS[kind], where="runs/x/a.json")
    message = str(error.value)
    assert message.startswith("runs/x/a.json: ")
    assert "\n" not in message
    assert len(message) < 1000
    return message


def plain(provenance: Provenance, kind: str) -> dict[str, Any]:
    """The example as JSON data."""
    loaded: dict[str, Any] = json.loads(document_json(every_document(provenance)[kind]))
    return loaded


def test_all_kinds_are_known(provenance: Provenance) -> None:
    assert list(DOCUMENTS) == KINDS == list(every_document(provenance))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_the_disk(tmp_path: Path, provenance: Provenance, kind: str) -> None:
    document = every_document(provenance)[kind]
    path = tmp_path / f"{kind}.json"
    write_document(path, document)
    assert read_document(path, type(document)) == document
    assert read_any_document(path) == document
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["kind"], raw["schema_version"]) == (kind, 1)
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_refused(provenance: Provenance, kind: str) -> None:
    assert "depth: Extra inputs are not permitted" in refusal(json.dumps(plain(provenance, kind) | {"depth": 3}), kind)
    nested = plain(provenance, kind)
    nested["provenance"]["host"] = "x"
    assert "provenance.host: Extra inputs" in refusal(json.dumps(nested), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_is_refused_by_name(provenance: Provenance, kind: str) -> None:
    other = KINDS[KINDS.index(kind) - 1]
    message = refusal(json.dumps(plain(provenance, other)), kind)
    assert message == f"runs/x/a.json: a '{kind}' document is needed; it is a '{other}' document"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [2, 0, None, "1", [1], 1.5])
def test_another_schema_version_is_refused(provenance: Provenance, kind: str, version: Any) -> None:
    message = refusal(json.dumps(plain(provenance, kind) | {"schema_version": version}), kind)
    assert "schema_version" in message


def test_the_schema_version_message_says_what_to_do(provenance: Provenance) -> None:
    message = refusal(json.dumps(plain(provenance, "search") | {"schema_version": 2}))
    assert "schema_version is '2', this rnascl reads 1; make the document again or use the matching release" in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_field_is_named(provenance: Provenance, kind: str) -> None:
    raw = plain(provenance, kind)
    del raw["provenance"]
    assert "provenance: Field required" in refusal(json.dumps(raw), kind)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_refused(provenance: Provenance, word: str) -> None:
    text = document_json(every_document(provenance)["search"]).replace("6640000.0", word)
    assert f"{word} is not a number that JSON knows" in refusal(text)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_cannot_be_put_in_a_field(provenance: Provenance, value: float) -> None:
    fields = every_document(provenance)["train"].model_dump()
    with pytest.raises(ValidationError):
        DOCUMENTS["train"](**(fields | {"seconds": value}))


def test_overflowing_numbers_are_refused(provenance: Provenance) -> None:
    text = document_json(every_document(provenance)["search"]).replace("6640000.0", "1e999")
    assert "the number 1e999 is infinite" in refusal(text)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_json(tmp_path: Path, provenance: Provenance, share: float) -> None:
    text = document_json(every_document(provenance)["search"])
    path = tmp_path / "search.json"
    path.write_text(text[: int(len(text) * share)])
    reads: list[Callable[[Path], Any]] = [lambda path: read_document(path, SearchDocument), read_any_document]
    for read in reads:
        with pytest.raises(UserError, match="not a JSON document") as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"kind": ' * 100_000,
        '{"kind": "search", "schema_version": 1, "x": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
    ids=["lists", "objects", "inside"],
)
def test_deep_nesting(tmp_path: Path, text: str) -> None:
    refusal(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError):
        read_any_document(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not an rnascl document (no 'kind')"),
        ("3", "not an rnascl document (no 'kind')"),
        ("{}", "not an rnascl document (no 'kind')"),
        ('{"kind": null}', "a 'search' document is needed"),
        ('{"kind": {"a": 1}}', "a 'search' document is needed"),
        ('{"kind": "report"}', "it is a 'report' document"),
        (b"\xff\xfe\x00", "not a JSON document"),
        (b"\x80abc", "not a JSON document"),
        ("9" * 5000, "not a JSON document"),
    ],
)
def test_things_that_are_no_document(text: str | bytes, message: str) -> None:
    assert message in refusal(text)


def test_an_endless_kind_does_not_make_an_endless_line() -> None:
    refusal(json.dumps({"kind": "x" * 100_000}))


@pytest.mark.parametrize("text", ["[]", '{"kind": 3}', '{"kind": "report"}', '{"kind": ["search"]}'])
def test_reading_any_kind_refuses_others(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="not an rnascl document"):
        read_any_document(tmp_path / "a.json")


def test_an_absent_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: No such file"):
        read_document(tmp_path / "gone.json", SearchDocument)
    with pytest.raises(UserError, match="Is a directory"):
        read_document(tmp_path, SearchDocument)


def test_a_file_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("{}" + " " * 100)
    monkeypatch.setattr("rnascl_cli.artifacts.store.MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(UserError, match="larger than any rnascl document"):
        read_document(tmp_path / "a.json", SearchDocument)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "blocks": ("search", {"width_logits": [[0.0, 1.0]]}, "different numbers of blocks"),
    "choices": ("search", {"width_logits": [[0.0, 1.0], [0.0]]}, "block 1: 1 width_logits for 3 width_choices"),
    "no choice": ("search", {"width_logits": [[], []], "width_choices": [[], []]}, "block 0: 0 width_logits"),
    "rows": ("search", {"tutor_logits": [[0.0, 1.0, 2.0]]}, "one row for each of student_layers"),
    "columns": ("search", {"tutor_logits": [[0.0], [1.0]]}, "one number for each of teacher_layers"),
    "paradigm": ("search", {"paradigm": "rnas"}, "paradigm"),
    "temperature": ("search", {"temperature": 0.0}, "temperature"),
    "accuracy": ("train", {"clean_accuracy": 50.0}, "clean_accuracy"),
    "sha256": ("train", {"student_sha256": "D" * 64}, "student_sha256"),
    "n": ("attack", {"n": 0}, "n: "),
    "protocol": ("attack", {"protocol": "normalised"}, "protocol"),
}


@pytest.mark.parametrize("case", WRONG)
def test_fields_that_do_not_agree(provenance: Provenance, case: str) -> None:
    kind, change, message = WRONG[case]
    assert message in refusal(json.dumps(plain(provenance, kind) | change), kind)


@pytest.mark.parametrize(("tutor", "message"), [([0], "one index for each"), ([0, 2], "beyond"), ([0, -1], "greater")])
def test_tutors_out_of_range(tutor: list[int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TutorMap(teacher=TEACHER, student_layers=["a", "b"], teacher_layers=["x", "y"], tutor=tutor)


def test_many_problems_stay_one_line(provenance: Provenance) -> None:
    raw = plain(provenance, "search") | {f"extra{index}": 1 for index in range(9)}
    assert refusal(json.dumps(raw)).endswith("(and 6 more)")


def test_documents_are_frozen(provenance: Provenance) -> None:
    document = every_document(provenance)["train"]
    with pytest.raises(ValidationError):
        document.epochs = 3  # type: ignore[union-attr]


finite = st.floats(allow_nan=False, allow_infinity=False)
blocks = st.lists(st.lists(st.tuples(st.integers(1, 512), finite), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=blocks,
    layers=st.lists(st.text(max_size=8), min_size=1, max_size=3),
    row=st.lists(finite, min_size=1, max_size=4),
    macs=st.floats(min_value=1e-6, max_value=1e15),
    history=st.lists(
        st.dictionaries(st.text(max_size=5), st.one_of(st.integers(-(2**53), 2**53), finite, st.none()), max_size=3),
        max_size=3,
    ),
)
def test_any_search_document_survives_the_disk(
    tmp_path: Path, provenance: Provenance, blocks: Any, layers: Any, row: Any, macs: float, history: Any
) -> None:
    document = SearchDocument(
        provenance=provenance,
        space="S3",
        paradigm="kl",
        num_classes=10,
        input_size=32,
        width_choices=[[width for width, _ in block] for block in blocks],
        width_logits=[[logit for _, logit in block] for block in blocks],
        student_layers=layers,
        teacher_layers=[str(index) for index in range(len(row))],
        tutor_logits=[row] * len(layers),
        temperature=macs,
        expected_macs=macs,
        history=history,
    )
    write_document(tmp_path / "search.json", document)
    assert read_document(tmp_path / "search.json", SearchDocument) == document


def test_a_derived_document_may_lack_tutors_but_must_say_so(provenance: Provenance) -> None:
    raw = plain(provenance, "derived") | {"tutors": None}
    assert parse_document(json.dumps(raw), DerivedDocument, where="x").tutors is None
    del raw["tutors"]
    assert "tutors: Field required" in refusal(json.dumps(raw), "derived")
