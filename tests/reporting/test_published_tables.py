"""The published tables, against the paper where it is at hand, and against numbers copied by hand where not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rnascl_cli.reporting.published import TABLE_1, TABLE_2, TABLE_6, TABLES, PublishedTable

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper" / "rnas-cl.md"


def test_every_table_has_its_rows() -> None:
    assert {table.number: len(table.rows) for table in TABLES} == {1: 38, 2: 12, 3: 8, 4: 7, 5: 2, 6: 3}


def test_rows_copied_by_hand() -> None:
    trades_s5 = next(row for row in TABLE_1.rows if row.space == "S5" and row.finetuned == "trades")
    assert trades_s5.measures == {"clean": 84.75, "fgsm": 51.99, "pgd20": 44.68, "mi-fgsm": 46.3}
    assert (trades_s5.params_m, trades_s5.macs_m, trades_s5.approximate_macs) == (0.21, 11.02, False)
    ard = next(row for row in TABLE_1.rows if row.method == "MVV2-ARD")
    assert "fgsm" not in ard.measures
    assert [row.macs_m for row in TABLE_1.rows if row.approximate_macs] == [
        500,
        600,
        500,
        500,
        600,
        500,
        600,
        500,
        600,
        500,
    ]
    assert next(row for row in TABLE_2.rows if row.method == "RNAS-CL-S7-R18").measures == {
        "clean": 89.47,
        "pgd20": 27.96,
    }


def test_doubtful_numbers_carry_a_footnote() -> None:
    words = " ".join(TABLE_6.footnotes)
    assert "AutoAttack" in words
    assert "Sehwag2021Proxy_R18" in words
    for table in TABLES[:5]:
        assert any("consistent with" in note for note in table.footnotes), table.number
    assert not any("proves" in note for table in TABLES for note in table.footnotes)


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not beside this checkout")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table-{table.number}")
def test_every_number_is_the_papers(table: PublishedTable) -> None:
    """Each printed row is found in the paper with these cells, in this order."""
    printed = [_cells(line) for line in PAPER.read_text(encoding="utf-8").splitlines() if "\t" in line]
    for row in table.rows:
        cells = [row.measures.get(name) for name in table.measures]
        expected = [*cells, row.params_m, row.macs_m] if table.sizes else cells
        method = row.method.replace("S²_8/255", "S_{8/255}^2")
        found = [values for name, values in printed if _same_name(name, method) and values == expected]
        assert found, f"{row.method}: {expected}"


def _same_name(printed: str, method: str) -> bool:
    plain = printed.replace("$", "").strip()
    return plain == method or plain.startswith((f"{method} (", f"{method}("))


def _cells(line: str) -> tuple[str, list[float | None]]:
    name, *values = line.split("\t")
    return name, [_value(value) for value in values if value.strip()]


def _value(text: str) -> float | None:
    plain = re.sub(r"[$*^{} ]", "", text)
    try:
        return float(plain)
    except ValueError:
        return None
