"""The published tables, against the paper where it is at hand, and against numbers copied by hand where not."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from rnascl_cli.reporting.published import TABLE_1, TABLE_2, TABLE_6, TABLES, PublishedRow, PublishedTable

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper" / "rnas-cl.md"


def test_every_table_has_its_rows() -> None:
    assert {table.number: len(table.rows) for table in TABLES} == {1: 38, 2: 12, 3: 8, 4: 7, 5: 2, 6: 3}


# Numbers, and their total, of each printed column: added up from the paper's text on its own, not from the data here.
CHECKSUMS: dict[int, dict[str, tuple[int, str]]] = {
    1: {
        "clean": (38, "3189.83"),
        "fgsm": (28, "1503.39"),
        "pgd20": (38, "1444.68"),
        "mi-fgsm": (23, "869.59"),
        "params": (38, "115.28"),
        "macs": (28, "9536.44"),
    },
    2: {"clean": (12, "1079.12"), "pgd20": (12, "353.42")},
    3: {"clean": (8, "613.95"), "pgd20": (8, "163.72"), "params": (8, "26.02"), "macs": (8, "3884.22")},
    4: {"cw": (7, "349.02"), "aa": (7, "296.38")},
    5: {"clean": (2, "110.02"), "pgd10": (2, "55.23")},
    6: {"clean": (3, "257.69"), "pgd20": (3, "163.12")},
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table-{table.number}")
def test_columns_add_up(table: PublishedTable) -> None:
    columns = {name: [row.measures.get(name) for row in table.rows] for name in table.measures}
    if table.sizes:
        columns |= {"params": [row.params_m for row in table.rows], "macs": [row.macs_m for row in table.rows]}
    found = {}
    for name, values in columns.items():
        numbers = [Decimal(str(value)) for value in values if value is not None]
        found[name] = (len(numbers), f"{sum(numbers):.2f}")
    assert found == CHECKSUMS[table.number]


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
    words = " ".join(TABLE_6.notes)
    assert "AutoAttack" in words
    assert "Sehwag2021Proxy_R18" in words
    for table in TABLES[:5]:
        assert any("consistent with" in note for note in table.notes), table.number
    assert not any("proves" in note for table in TABLES for note in table.notes)


def row(table: PublishedTable, method: str, finetuned: str | None = None) -> PublishedRow:
    return next(found for found in table.rows if (found.method, found.finetuned) == (method, finetuned))


def test_the_letter_of_a_footnote_stands_at_the_number_it_is_about() -> None:
    def about(table: PublishedTable, mark: str) -> str:
        return next(note for note in table.notes if note.startswith(f"{mark} "))

    assert "RobustBench lists for Sehwag2021Proxy_R18" in about(
        TABLE_6, TABLE_6.marks("pgd20", row(TABLE_6, "ResNet 18"))
    )
    assert "85.34" in about(TABLE_6, TABLE_6.marks("clean", row(TABLE_6, "WRT-34")))
    assert "about 0 %" in about(TABLE_2, TABLE_2.marks("pgd20", row(TABLE_2, "Standard-S3")))
    assert TABLE_2.marks("pgd20", row(TABLE_2, "RNAS-CL-S3-R18")) == ""
    assert TABLE_1.marks("pgd20", row(TABLE_1, "RNAS-CL-S3-WRT-34", "trades")) == ""
    masked = TABLE_1.marks("pgd20", row(TABLE_1, "RNAS-CL-S3-WRT-34"))
    assert "gradient-masking" in about(TABLE_1, masked)
    assert "FSGM" in about(TABLE_1, TABLE_1.marks("fgsm")[0])
    assert "whole millions" in about(TABLE_1, TABLE_1.marks("params", row(TABLE_1, "RNAS-CL-L-WRT-34")))
    for table in TABLES:
        assert len(table.notes) == len(table.footnotes) > 0
        methods = {found.method for found in table.rows}
        for note in table.footnotes:
            assert set(note.methods) <= methods
            assert set(note.measures) <= {*table.measures, "params", "macs"}


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not beside this checkout")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table-{table.number}")
def test_every_number_is_the_papers(table: PublishedTable) -> None:
    """Each printed row is found in the paper with these cells, in this order."""
    printed = [_cells(line) for line in PAPER.read_text(encoding="utf-8").splitlines() if "\t" in line]
    for one in table.rows:
        cells = [one.measures.get(name) for name in table.measures]
        expected = [*cells, one.params_m, one.macs_m] if table.sizes else cells
        method = one.method.replace("S²_8/255", "S_{8/255}^2")
        found = [values for name, values in printed if _same_name(name, method, one.source) and values == expected]
        assert found, f"{one.method}: {expected}"


def _same_name(printed: str, method: str, source: str | None) -> bool:
    plain = printed.replace("$", "").strip()
    if source is not None:
        return plain == f"{method} ({source})"
    return plain == method or plain.replace(" ", "") == f"{method}(Our)".replace(" ", "")


def _cells(line: str) -> tuple[str, list[float | None]]:
    name, *values = line.split("\t")
    return name, [_value(value) for value in values if value.strip()]


def _value(text: str) -> float | None:
    plain = re.sub(r"[$*^{} ]", "", text)
    try:
        return float(plain)
    except ValueError:
        return None
