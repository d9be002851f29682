"""Tables 1 to 6 of the paper as data, number for number, with what is known about how each was measured.

Accuracies are in per cent, as printed; params and MACs in millions. A measure the paper leaves out is absent
from a row. Measures carry the names that ``attack`` gives them: ``clean``, ``fgsm``, ``pgd20``, ``mi-fgsm``,
``cw``, ``aa``, and ``pgd10`` for Table 5 (eps 4/255 there, 8/255 elsewhere).
"""

from rnascl_cli.reporting.published.cifar10 import TABLE_1, TABLE_2, TABLE_4, TABLE_6
from rnascl_cli.reporting.published.imagenet import TABLE_3, TABLE_5
from rnascl_cli.reporting.published.rows import (
    PUBLISHED_PROTOCOL,
    WITH,
    WITHOUT,
    Dataset,
    Footnote,
    PublishedRow,
    PublishedTable,
)

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
