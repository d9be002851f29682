"""What was measured, sorted so that only comparable numbers share a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, AuditCheck, Protocol
from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.data.merge_attacks import MergedAttack, norm_of
from rnascl_cli.reporting.tables.table import data_words, wilson

ATTACK_NAMES = {
    "fgsm": "FGSM",
    "mi-fgsm": "MI-FGSM",
    "pgd20": "PGD-20",
    "pgd10": "PGD-10",
    "cw": "CW",
    "aa": "AutoAttack",
}
PROTOCOL_WORDS: dict[Protocol, str] = {
    "pixel": "protocol pixel (eps in units of a pixel range of [0, 1])",
    "paper-code": "protocol paper-code (eps in units of normalised inputs; not comparable with pixel)",
}
EPS_UNITS: dict[Protocol, str] = {"pixel": "1/255 of the pixel range", "paper-code": "1/255 in normalised units"}
PAPER_EPS = 8 / 255
SAME = 1e-9


@dataclass(frozen=True)
class ComparableResult:
    """One model on one set of images under one protocol."""

    model: ReportModel
    attack: MergedAttack

    @property
    def largest(self) -> AttackResult | None:
        """A result of the largest eps."""
        return max(self.attack.document.results, key=lambda result: result.eps_value, default=None)

    @property
    def worst_case(self) -> float | None:
        """The share of images that no attack of the largest eps broke."""
        return self.worst_case_at(self.largest.eps_value) if self.largest else None

    def worst_case_at(self, eps: float) -> float | None:
        """Return the share of images that no attack of this eps broke, from the verdicts; None where unknown."""
        document = self.attack.document
        texts = {result.eps for result in document.results if abs(result.eps_value - eps) < SAME}
        verdicts = [verdict for verdict in document.verdicts if verdict.eps in texts]
        if verdicts:
            broken = {index for verdict in verdicts for index in verdict.broken}
            return 1 - len(broken & set(document.images)) / document.n
        # Without verdicts, what the attack run recorded, which is of its largest eps.
        known = self.largest is not None and abs(self.largest.eps_value - eps) < SAME
        return document.worst_case_accuracy if known else None

    @property
    def card(self) -> list[AuditCheck] | None:
        """The gradient-masking audit; None where there was none."""
        return self.attack.document.audit

    def interval(self, fraction: float) -> tuple[float, float] | None:
        """Return an interval where the attack document gives any: where a subset was attacked."""
        document = self.attack.document
        intervals = [document.clean_confidence_interval, *(found.confidence_interval for found in document.results)]
        subset = any(interval is not None for interval in intervals)
        return wilson(fraction, document.n) if subset else None

    def at(self, attack: str, eps: float) -> AttackResult | None:
        """Return the result of an attack at an eps."""
        results = self.attack.document.results
        return next((found for found in results if found.attack == attack and abs(found.eps_value - eps) < SAME), None)


@dataclass(frozen=True)
class ComparableGroup:
    """Measurements that may share a column: same images, same protocol, same norm."""

    letter: str
    protocol: Protocol
    norm: str
    measured: tuple[ComparableResult, ...]

    @property
    def n(self) -> int:
        """How many test images."""
        return self.measured[0].attack.document.n

    @property
    def fingerprint(self) -> str | None:
        """Of the data."""
        data = self.measured[0].attack.document.provenance.data
        return data.fingerprint if data else None

    @property
    def words(self) -> str:
        """Which images, which protocol, which norm."""
        document = self.measured[0].attack.document
        norm = "" if self.norm == "Linf" else f", norm {self.norm}"
        return f"{document.n:,} test images of {data_words(document.provenance)}; {PROTOCOL_WORDS[self.protocol]}{norm}"


def groups(models: Iterable[ReportModel]) -> list[ComparableGroup]:
    """Sort all measurements by the images attacked, the protocol and the norm, the largest group first."""
    sorted_in: dict[tuple[str, Protocol, str, frozenset[int]], list[ComparableResult]] = {}
    for model in models:
        for attack in model.attacks:
            document = attack.document
            data = document.provenance.data
            images = frozenset(document.images)
            key = (data.fingerprint if data else "", document.protocol, norm_of(document), images)
            sorted_in.setdefault(key, []).append(ComparableResult(model, attack))
    # Pixel and L-inf first: they are the community's meaning of eps.
    ordered = sorted(
        sorted_in.items(), key=lambda item: (item[0][1] != "pixel", item[0][2] != "Linf", -len(item[1]), item[0][0])
    )
    return [ComparableGroup(_letter(index), key[1], key[2], tuple(found)) for index, (key, found) in enumerate(ordered)]


def _letter(index: int) -> str:
    """Return A to Z, then A2 to Z2, and so on."""
    return chr(65 + index % 26) + (str(index // 26 + 1) if index >= 26 else "")


def attack_name(attack: str) -> str:
    """Return the usual spelling of an attack's name."""
    return ATTACK_NAMES.get(attack, attack)


def usual_eps(group: ComparableGroup) -> AttackResult | None:
    """Return a result of the eps that most attacks of the group were run with, 8/255 among equals."""
    results = [result for found in group.measured for result in perturbed(found)]
    times = Counter(result.eps_value for result in results)
    return max(results, key=lambda result: (times[result.eps_value], -abs(result.eps_value - PAPER_EPS)), default=None)


def perturbed(measured: ComparableResult) -> list[AttackResult]:
    """Return the results at any eps above zero; at zero an attack measures clean accuracy, which has its column."""
    return [result for result in measured.attack.document.results if result.eps_value > 0]


def missing(attack: MergedAttack) -> list[tuple[str, float]]:
    """Return each attack and eps that one of the attack runs was asked for and none has a result of."""
    # Sizes are compared as numbers, since 8/255 may be written otherwise.
    done = [(result.attack, result.eps_value) for result in attack.document.results]
    wanted = dict.fromkeys(pair for part in attack.parts for pair in _asked(part.document))
    return [
        (name, eps)
        for name, eps in wanted
        if not any(name == other and abs(eps - value) < SAME for other, value in done)
    ]


def _asked(document: AttackDocument) -> list[tuple[str, float]]:
    asked = document.provenance.recipe.get("attack", {})
    names, sizes = asked.get("attacks", ()), asked.get("eps", ())
    norm = asked.get("norm", "Linf")
    return [
        (str(name), parse_epsilon(str(size), norm=norm).value) for name in names if name != "clean" for size in sizes
    ]


def missing_results(attack: MergedAttack) -> list[str]:
    """Name each attack at each eps that was asked for and has no result."""
    return [f"{attack_name(name)} at eps {eps:.4g}" for name, eps in missing(attack)]
