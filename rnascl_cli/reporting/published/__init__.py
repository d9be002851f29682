"""Tables 1 to 6 of the paper as data.

Accuracies are in percent, as printed; params and MACs in millions. Measures have the names of the attacks: ``clean``,
``fgsm``, ``pgd20``, ``mi-fgsm``, ``cw``, ``aa``, and ``pgd10`` for Table 5 (eps 4/255 there, 8/255 elsewhere). A row
has no entry for a measure that the paper does not give.
"""

from rnascl_cli.reporting.published.rows import (
    PUBLISHED_PROTOCOL,
    WITH,
    WITHOUT,
    Dataset,
    Footnote,
    PublishedRow,
    PublishedTable,
)
from rnascl_cli.reporting.published.tables import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6)

__all__ = [
    "PUBLISHED_PROTOCOL",
    "TABLES",
    "TABLE_1",
    "TABLE_2",
    "TABLE_3",
    "TABLE_4",
    "TABLE_5",
    "TABLE_6",
    "WITH",
    "WITHOUT",
    "Dataset",
    "Footnote",
    "PublishedRow",
    "PublishedTable",
]
