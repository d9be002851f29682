"""Tables 1 to 6 of the paper, number for number, with footnotes on the numbers that are open to question."""

from __future__ import annotations

from rnascl_cli.reporting.published.rows import PROTOCOL_NOTE, WITH, WITHOUT, Footnote, PublishedRow, PublishedTable
from rnascl_cli.reporting.published.rows import others_row as _other
from rnascl_cli.reporting.published.rows import own_row as _own

_WRT34, _R50, _R18 = ("WRT-34", "wrt34"), ("R50", "r50"), ("R18", "r18")
_SIZES: dict[str, tuple[float, float]] = {
    "S3": (0.11, 6.64),
    "S5": (0.21, 11.02),
    "S7": (0.32, 15.58),
    "M": (3.0, 326.0),
    "L": (11.0, 1210.0),
}

_OWN_WRT34 = tuple(f"RNAS-CL-{space}-WRT-34" for space in _SIZES)

_T1 = ("clean", "fgsm", "pgd20", "mi-fgsm")
_LIU, _XU, _DONG = "Liu et al., 2019", "Xu et al., 2020", "Dong et al., 2020"
_REAL, _ZOPH, _GOLDBLUM = "Real et al., 2019", "Zoph et al., 2018", "Goldblum et al., 2020"
_YUE, _SEHWAG, _YE, _GUO = "Yue et al., 2022", "Sehwag et al., 2020", "Ye et al., 2019", "Guo et al., 2020"
_HUANG, _NING, _XIE, _HAN = "Huang et al., 2021", "Ning et al., 2020", "Xie et al., 2021", "Han et al., 2015"

TABLE_1 = PublishedTable(
    1,
    "Efficient and robust methods on CIFAR-10",
    "cifar10",
    _T1,
    (
        _other(_T1, "DARTS", _LIU, WITHOUT, (97.03, 42.48, 7.09, 0.28), (3.3, 500), approximate=True),
        _other(_T1, "PC-DARTS", _XU, WITHOUT, (97.05, 49.18, 9.84, 1.21), (3.6, 600), approximate=True),
        _other(_T1, "RACL", _DONG, WITHOUT, (97.44, 50.53, 1.93, 4.68), (3.6, 500), approximate=True),
        _other(_T1, "AmoebaNet", _REAL, WITHOUT, (97.39, 44.79, 0.25, 0.80), (3.2, 500), approximate=True),
        _other(_T1, "NasNet", _ZOPH, WITHOUT, (97.37, 47.53, 0.42, 1.01), (3.8, 600), approximate=True),
        _other(_T1, "MVV2-ARD", _GOLDBLUM, WITHOUT, (76.13, None, 38.21, None), (3.4, 300)),
        _other(_T1, "E2RNAS-C16", _YUE, WITHOUT, (93.97, None, 6.76, None), (0.44, None)),
        _own(_T1, "S3", _WRT34, (89.4, 44.95, 34.3, 38.92), size=_SIZES["S3"]),
        _own(_T1, "S5", _WRT34, (90.4, 46.72, 35.59, 40.57), size=_SIZES["S5"]),
        _own(_T1, "S7", _WRT34, (90.62, 48.93, 37.24, 42.27), size=_SIZES["S7"]),
        _own(_T1, "M", _WRT34, (92.46, 50.51, 39.84, 44.54), size=_SIZES["M"]),
        _own(_T1, "L", _WRT34, (92.6, 52.37, 41.9, 46.66), size=_SIZES["L"]),
        _other(_T1, "Hydra ResNet 18", _SEHWAG, WITH, (69, None, 41.6, None), (0.11, 37.63)),
        _other(_T1, "Hydra ResNet 34", _SEHWAG, WITH, (71.8, None, 44.4, None), (0.21, 75.43)),
        _other(_T1, "Hydra ResNet 50", _SEHWAG, WITH, (73.9, None, 45.3, None), (0.25, 85.92)),
        _other(_T1, "ADV-ADMM ResNet 18", _YE, WITH, (58.7, None, 36.1, None), (0.11, 37.63)),
        _other(_T1, "ADV-ADMM ResNet 34", _YE, WITH, (68.8, None, 41.5, None), (0.21, 75.43)),
        _other(_T1, "ADV-ADMM ResNet 50", _YE, WITH, (69.1, None, 42.2, None), (0.25, 85.92)),
        _other(_T1, "RobNet-Small", _GUO, WITH, (78.05, 53.93, 48.32, 48.98), (4.41, None)),
        _other(_T1, "RobNet-Medium", _GUO, WITH, (78.33, 54.55, 49.13, 49.34), (5.66, None)),
        _other(_T1, "RobNet-Large", _GUO, WITH, (78.57, 54.98, 49.44, 49.92), (6.89, None)),
        _other(_T1, "AmoebaNet", _REAL, WITH, (83.41, 56.40, 39.47, 47.60), (3.2, 500), approximate=True),
        _other(_T1, "NasNet", _ZOPH, WITH, (83.66, 55.67, 48.02, 53.05), (3.8, 600), approximate=True),
        _other(_T1, "DARTS", _LIU, WITH, (83.75, 55.75, 44.91, 51.63), (3.3, 500), approximate=True),
        _other(_T1, "PC-DARTS", _XU, WITH, (83.94, 52.67, 41.92, 49.09), (3.6, 600), approximate=True),
        _other(_T1, "RACL", _DONG, WITH, (83.89, 57.44, 49.34, 54.73), (3.6, 500), approximate=True),
        _other(_T1, "VGG-11-R", _HUANG, WITH, (79.63, 57.35, 43.93, None), (5.83, None)),
        _other(_T1, "DN-121-R", _HUANG, WITH, (87.22, 67.12, 52.52, None), (6, None)),
        _other(_T1, "DARTS-R", _HUANG, WITH, (87.2, 66.74, 52.36, None), (2.53, None)),
        _other(_T1, "MVV2-ARD", _GOLDBLUM, WITH, (84.70, None, 46.28, None), (3.4, 300)),
        _other(_T1, "MSRobNet-1000", _NING, WITH, (84.5, 59.6, 52.7, None), (3.16, None)),
        _other(_T1, "MSRobNet-2000", _NING, WITH, (85.7, 60.6, 53.6, None), (6.46, None)),
        _other(_T1, "S²_8/255", _XIE, WITH, (76.54, None, 31.83, None), (1.68, None)),
        _own(_T1, "S3", _WRT34, (83.45, 50.67, 43.07, 43.98), finetuned="trades", size=_SIZES["S3"]),
        _own(_T1, "S5", _WRT34, (84.75, 51.99, 44.68, 46.3), finetuned="trades", size=_SIZES["S5"]),
        _own(_T1, "S7", _WRT34, (85.81, 49.11, 43.24, 45.53), finetuned="trades", size=_SIZES["S7"]),
        _own(_T1, "M", _WRT34, (87.29, 59.71, 51.76, 53.43), finetuned="trades", size=_SIZES["M"]),
        _own(_T1, "L", _WRT34, (86.28, 61.12, 53.69, 55.07), finetuned="trades", size=_SIZES["L"]),
    ),
    sizes=True,
    footnotes=(
        Footnote("The paper's heading is 'FSGM'.", ("fgsm",)),
        Footnote(PROTOCOL_NOTE, ("fgsm", "pgd20", "mi-fgsm")),
        Footnote(
            "Networks without adversarial training have no CW or AutoAttack numbers anywhere in the paper, so robust "
            "and gradient-masking ones cannot be distinguished by it.",
            ("fgsm", "pgd20", "mi-fgsm"),
            _OWN_WRT34,
            WITHOUT,
        ),
        Footnote(
            "A few per cent above the MACs of convolutions and linear layers, as a counter that also counts BatchNorm "
            "would give.",
            ("macs",),
            _OWN_WRT34,
        ),
        Footnote("Rounded to whole millions in the paper.", ("params",), ("RNAS-CL-M-WRT-34", "RNAS-CL-L-WRT-34")),
        Footnote("* marks what the paper calls approximate."),
    ),
)

_T2 = ("clean", "pgd20")
TABLE_2 = PublishedTable(
    2,
    "RNAS-CL with various robust teachers on CIFAR-10",
    "cifar10",
    _T2,
    (
        _own(_T2, "S3", None, (89.92, 17.69)),
        _own(_T2, "S5", None, (90.76, 18.44)),
        _own(_T2, "S7", None, (90.98, 19.3)),
        _own(_T2, "S3", _WRT34, (89.4, 34.3)),
        _own(_T2, "S5", _WRT34, (90.4, 35.59)),
        _own(_T2, "S7", _WRT34, (90.62, 37.24)),
        _own(_T2, "S3", _R50, (89.39, 35.76)),
        _own(_T2, "S5", _R50, (90.53, 37.32)),
        _own(_T2, "S7", _R50, (90.41, 37.98)),
        _own(_T2, "S3", _R18, (88.47, 26.35)),
        _own(_T2, "S5", _R18, (88.77, 25.49)),
        _own(_T2, "S7", _R18, (89.47, 27.96)),
    ),
    footnotes=(
        Footnote(PROTOCOL_NOTE, ("pgd20",)),
        Footnote(
            "At 8/255 in pixels a network trained with plain cross-entropy is known to keep about 0 % under PGD-20.",
            ("pgd20",),
            ("Standard-S3", "Standard-S5", "Standard-S7"),
        ),
        Footnote(
            "Appendix A.2 discusses this table under a heading that says CIFAR-100; the numbers are for CIFAR-10. Its "
            "remark that the ResNet-50 teacher has the lowest PGD accuracy compares unlike numbers: see Table 6."
        ),
    ),
)

_T4 = ("cw", "aa")
_T4_TRADES = "with adversarial training (TRADES; not said in A.4, inferred)"
TABLE_4 = PublishedTable(
    4,
    "CW and AutoAttack on CIFAR-10",
    "cifar10",
    _T4,
    (
        _other(_T4, "VGG-R", _HUANG, WITH, (46.49, 38.44)),
        _other(_T4, "DN-121-R", _HUANG, WITH, (53.07, 47.75)),
        _own(_T4, "S3", _WRT34, (47.07, 37.17), finetuned="trades", trained=_T4_TRADES),
        _own(_T4, "S5", _WRT34, (48.33, 39.28), finetuned="trades", trained=_T4_TRADES),
        _own(_T4, "S7", _WRT34, (47.91, 38.36), finetuned="trades", trained=_T4_TRADES),
        _own(_T4, "M", _WRT34, (53.52, 46.89), finetuned="trades", trained=_T4_TRADES),
        _own(_T4, "L", _WRT34, (52.63, 48.49), finetuned="trades", trained=_T4_TRADES),
    ),
    footnotes=(
        Footnote("The L-inf version optimised by PGD, eps 8/255.", ("cw",)),
        Footnote(PROTOCOL_NOTE, ("cw", "aa")),
        Footnote("The paper gives CW and AutoAttack for its fine-tuned models only."),
    ),
)

_T6 = ("clean", "pgd20")
_TEACHER = "robust teacher"
TABLE_6 = PublishedTable(
    6,
    "Robust teachers on CIFAR-10",
    "cifar10",
    _T6,
    (
        PublishedRow("WRT-34", None, _TEACHER, {"clean": 86.07, "pgd20": 58.33}, teacher="wrt34"),
        PublishedRow("ResNet 18", None, _TEACHER, {"clean": 84.59, "pgd20": 55.54}, teacher="r18"),
        PublishedRow("ResNet 50", None, _TEACHER, {"clean": 87.03, "pgd20": 49.25}, teacher="r50"),
    ),
    footnotes=(
        Footnote(
            "The column is headed PGD-20, yet 84.59 / 55.54 (ResNet 18) and 87.03 / 49.25 (ResNet 50) are, digit for "
            "digit, the clean and AutoAttack accuracies that RobustBench lists for Sehwag2021Proxy_R18 and "
            "Engstrom2019Robustness. They are no PGD-20 numbers to compare others with.",
            ("clean", "pgd20"),
            ("ResNet 18", "ResNet 50"),
        ),
        Footnote(
            "RobustBench lists Rice2020Overfitting as a WideResNet-34-20 with clean 85.34 and AutoAttack 53.42.",
            ("clean", "pgd20"),
            ("WRT-34",),
        ),
    ),
)

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
        Footnote(PROTOCOL_NOTE, ("pgd20",)),
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
        Footnote(PROTOCOL_NOTE, ("pgd10",)),
        Footnote("The search space of these models is not given."),
    ),
)
