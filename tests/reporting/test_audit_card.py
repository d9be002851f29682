"""The audit card: who passed, who failed, who was never audited, and that a failure is never hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.data.comparable_groups import ComparableGroup, groups
from rnascl_cli.reporting.data.lineage import models
from rnascl_cli.reporting.page import build_page, html, markdown
from rnascl_cli.reporting.tables.audit import audit_cards, audit_cell, unaudited, verdict
from rnascl_cli.reporting.tables.missing_runs import find_caveats, masking_warnings, shortened
from rnascl_cli.reporting.tables.summary import tiles
from tests.reporting import factories as make
from tests.reporting.test_report_stage import read, undrawn


def grouped(folder: Path) -> list[ComparableGroup]:
    return groups(models(collect([folder])))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three attacked models: one passed its audit, one failed it, one was not audited."""
    make.write_attack(tmp_path / "good", student="a", model="good", audit=make.card())
    make.write_attack(tmp_path / "masked", student="b", model="masked", audit=make.card("gradients are there"))
    make.write_attack(tmp_path / "plain", student="c", model="plain")
    return tmp_path


def test_verdicts(runs: Path) -> None:
    cells = {found.model.name: audit_cell(found) for found in grouped(runs)[0].measurements}
    assert [(name, cell.text, cell.alert, cell.tone) for name, cell in cells.items()] == [
        ("good", "passed 3 of 3", False, "good"),
        ("masked", "failed 1 of 3", True, ""),
        ("plain", "not audited", False, "faint"),
    ]
    assert cells["masked"].note == "gradients are there: measured: gradients are there"
    # Sorted by this column: failed, not audited, passed.
    assert [cells[name].value for name in ("masked", "plain", "good")] == [0.0, 0.5, 1.0]
    assert verdict(make.card()) == "passed 3 of 3"


def test_cards_with_the_failed_ones_first(runs: Path) -> None:
    cards = audit_cards(grouped(runs))
    assert [(card.model, card.passed) for card in cards] == [("masked", False), ("good", True)]
    assert all(card.open for card in cards)
    assert unaudited(grouped(runs)) == ["plain"]


def test_many_cards_show_the_failed_ones_open(tmp_path: Path) -> None:
    for index in range(5):
        card = make.card("gradients are there") if index == 3 else make.card()
        make.write_attack(tmp_path / f"m{index}", student=f"{index}", model=f"m{index}", audit=card)
    assert [(card.model, card.open) for card in audit_cards(grouped(tmp_path))] == [
        ("m3", True),
        *((f"m{index}", False) for index in (0, 1, 2, 4)),
    ]


def test_a_failed_audit_is_a_warning_and_a_missing_one_a_caveat(runs: Path) -> None:
    found = models(collect([runs]))
    measured = groups(found)
    assert masking_warnings(measured) == [
        "masked (pixel, unknown origin): audit failed 1 of 3: gradients are there (measured: gradients are there)"
    ]
    assert "no gradient-masking audit (attack --audit): plain" in find_caveats(collect([runs]), found, measured)
    tile = tiles(found, measured)[-1]
    assert (tile.value, tile.note, tile.alert) == ("1 of 2", "1 model not audited", True)


def test_of_two_audits_of_a_model_the_failed_one_is_shown(tmp_path: Path) -> None:
    make.write_attack(tmp_path / "a", student="a", model="m", audit=make.card())
    make.write_attack(tmp_path / "b", student="a", model="m", audit=make.card("AutoAttack is close to PGD"))
    make.write_attack(tmp_path / "c", student="a", model="m")
    ((found,),) = [group.measurements for group in grouped(tmp_path)]
    assert audit_cell(found).text == "failed 1 of 3"


def test_no_audit_under_paper_code_is_no_gap_where_pixel_has_one(tmp_path: Path) -> None:
    make.write_attack(tmp_path / "a", student="a", model="m", audit=make.card())
    make.write_attack(tmp_path / "b", student="a", model="m", protocol="paper-code")
    assert unaudited(grouped(tmp_path)) == []


def test_the_page_shows_every_check(runs: Path) -> None:
    page = build_page(collect([runs]), draw=undrawn)
    words = read(html(page)).words
    text = markdown(page)
    for check in make.card():
        assert words.count(check.name) >= 2
        assert text.count(check.name) >= 2
    assert "### Gradient-masking audit: masked, failed 1 of 3" in text
    assert "- ✗ **gradients are there**: measured: gradients are there" in text


def test_long_lists_of_names_are_shortened() -> None:
    assert shortened(["a", "b"]) == "a, b"
    many = [str(index) for index in range(11)]
    assert shortened(many) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more, which are marked in the tables"
