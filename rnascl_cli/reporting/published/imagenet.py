"""Tables 3 and 5 of the paper: ImageNet-100 and ImageNet."""

from __future__ import annotations

from rnascl_cli.reporting.published.rows import PROTOCOL_WORDS, WITH, Footnote, PublishedRow, PublishedTable
from rnascl_cli.reporting.published.rows import others_row as _other
from rnascl_cli.reporting.published.rows import own_row as _own

_SEHWAG, _HAN = "Sehwag et al., 2020", "Han et al., 2015"

_T3 = ("clean", "pgd20")
_I18, _I50, _IW50 = (3.94, 241.98), (3.96, 244.76), (4.01, 255.37)
TABLE_3 = PublishedTable(
    3,
    "Efficient and robust methods on ImageNet-100",
    "imagenet100",
    _T3,
    (
        _other(_T3, "Hydra (ResNet-18) - 90%", _SEHWAG, WITH, (59.96, 29.79), (1.1, 1200)),
        _other(_T3, "LWM (ResNet-18) - 90%", _HAN, WITH, (59.02, 27.67), (1.1, 1200)),
        _own(_T3, "I", ("R-18", "r18"), (85.22, 8.3), size=_I18),
        _own(_T3, "I", ("R-50", "r50"), (85.98, 5.08), size=_I50),
        _own(_T3, "I", ("WRT-50", "wrt50"), (85.46, 3.36), size=_IW50),
        _own(
            _T3,
            "I",
            ("R-18", "r18"),
            (78.94, 29.02),
            finetuned="trades",
            method="RNAS-CL-I-R-18 + TRADES",
            size=_I18,
        ),
        _own(
            _T3,
            "I",
            ("R-50", "r50"),
            (79.95, 32.44),
            finetuned="trades",
            method="RNAS-CL-I-R-50 + TRADES",
            size=_I50,
        ),
        _own(
            _T3,
            "I",
            ("WRT-50", "wrt50"),
            (79.42, 28.06),
            finetuned="trades",
            method="RNAS-CL-I-WRT-50 + TRADES",
            size=_IW50,
        ),
    ),
    sizes=True,
    footnotes=(
        Footnote(PROTOCOL_WORDS, ("pgd20",)),
        Footnote(
            "Trained with TRADES (appendix A.3).", ("pgd20",), ("Hydra (ResNet-18) - 90%", "LWM (ResNet-18) - 90%")
        ),
        Footnote(
            "The size fits a network with FBNetV2's 1984-channel head and a 1000-way classifier, though the data have "
            "100 classes: inferred, not stated.",
            ("params", "macs"),
            tuple(f"RNAS-CL-I-{teacher}{more}" for teacher in ("R-18", "R-50", "WRT-50") for more in ("", " + TRADES")),
        ),
    ),
)

_T5 = ("clean", "pgd10")
TABLE_5 = PublishedTable(
    5,
    "ImageNet, after FastAT",
    "imagenet",
    _T5,
    (
        PublishedRow(
            "Standard",
            None,
            "with adversarial training (FastAT)",
            {"clean": 53.92, "pgd10": 25.45},
            paradigm="standard",
            finetuned="fast-at",
        ),
        PublishedRow(
            "RNAS-CL-WRT-50",
            None,
            "with adversarial training (FastAT)",
            {"clean": 56.1, "pgd10": 29.78},
            teacher="wrt50",
            paradigm="rnas-cl",
            finetuned="fast-at",
        ),
    ),
    eps="4/255",
    footnotes=(
        Footnote("PGD-10 at eps 4/255.", ("pgd10",)),
        Footnote(PROTOCOL_WORDS, ("pgd10",)),
        Footnote("The search space of these models is not given."),
    ),
)
