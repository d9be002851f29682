"""Group measurements so that only comparable numbers share a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, AuditCheck, Protocol
from rnascl_cli.core.statistics import wilson_interval
from rnascl_cli.core.units import parse_epsilon
from rnascl_cli.reporting.data.collect import describe_data
from rnascl_cli.reporting.data.lineage import ReportModel
from rnascl_cli.reporting.data.merge_attacks import AttackSetting, Conditions, MergedAttack, conditions, setting

ATTACK_NAMES = {
    "fgsm": "FGSM",
    "mi-fgsm": "MI-FGSM",
    "pgd20": "PGD-20",
    "pgd10": "PGD-10",
    "cw": "CW",
    "aa": "AutoAttack",
}
PROTOCOLS: dict[Protocol, str] = {
    "pixel": "protocol pixel (eps in units of a pixel range of [0, 1])",
    "paper-code": "protocol paper-code (eps in units of normalized inputs; not comparable with pixel)",
}
EPS_UNITS: dict[Protocol, str] = {"pixel": "1/255 of the pixel range", "paper-code": "1/255 in normalized units"}
PAPER_EPS = 8 / 255
TOLERANCE = 1e-9
"""Two eps closer than this are the same, however they are written."""


@dataclass(frozen=True)
class ComparableResult:
    """Accuracies of one model on one set of images under one protocol and norm."""

    model: ReportModel
    attack: MergedAttack

    @property
    def largest(self) -> AttackResult | None:
        """A result at the largest eps."""
        return max(self.attack.document.results, key=lambda result: result.eps_value, default=None)

    @property
    def worst_case(self) -> float | None:
        """Worst-case accuracy at the largest eps."""
        return self.worst_case_at(self.largest.eps_value) if self.largest else None

    def worst_case_at(self, eps: float) -> float | None:
        """Return the fraction of images that no attack at this eps fools; None if unknown."""
        document = self.attack.document
        written = {result.eps for result in document.results if abs(result.eps_value - eps) < TOLERANCE}
        verdicts = [verdict for verdict in document.verdicts if verdict.eps in written]
        if verdicts:
            broken = {index for verdict in verdicts for index in verdict.broken}
            return 1 - len(broken & set(document.images)) / document.n
        # Without verdicts, only the recorded value is known, which is that of the largest eps.
        known = self.largest is not None and abs(self.largest.eps_value - eps) < TOLERANCE
        return document.worst_case_accuracy if known else None

    @property
    def audit(self) -> list[AuditCheck] | None:
        """Gradient-masking audit, if there was one."""
        return self.attack.document.audit

    @property
    def passed_audit(self) -> bool:
        """Whether no check failed; also True without an audit."""
        return all(check.passed for check in self.audit or ())

    def interval(self, fraction: float) -> tuple[float, float] | None:
        """Return the Wilson interval of an accuracy if a subset of the test set was attacked, otherwise None."""
        document = self.attack.document
        intervals = [document.clean_confidence_interval, *(result.confidence_interval for result in document.results)]
        return wilson_interval(fraction, document.n) if any(intervals) else None

    def result_at(self, attack: str, eps: float) -> AttackResult | None:
        """Return the result of an attack at an eps."""
        results = self.attack.document.results
        return next((one for one in results if one.attack == attack and abs(one.eps_value - eps) < TOLERANCE), None)

    def result_with(self, key: AttackSetting) -> AttackResult | None:
        """Return the result with exactly these hyperparameters."""
        return next((result for result in self.attack.document.results if setting(result) == key), None)

    @property
    def perturbed(self) -> list[AttackResult]:
        """Results at eps above zero; at eps 0 an attack measures clean accuracy, which has its own column."""
        return [result for result in self.attack.document.results if result.eps_value > 0]

    @property
    def missing(self) -> list[tuple[str, float]]:
        """Attacks and eps that were requested and have no result."""
        done = [(result.attack, result.eps_value) for result in self.attack.document.results]
        requested = dict.fromkeys(pair for part in self.attack.parts for pair in _requested(part.document))
        return [
            (name, eps)
            for name, eps in requested
            if not any(name == other and abs(eps - value) < TOLERANCE for other, value in done)
        ]


def _requested(document: AttackDocument) -> list[tuple[str, float]]:
    settings = document.provenance.recipe.get("attack", {})
    norm = settings.get("norm", "Linf")
    return [
        (str(name), parse_epsilon(str(eps), norm=norm).value)
        for name in settings.get("attacks", ())
        if name != "clean"
        for eps in settings.get("eps", ())
    ]


@dataclass(frozen=True)
class ComparableGroup:
    """Measurements on the same images, under the same protocol and norm."""

    letter: str
    protocol: Protocol
    norm: str
    measurements: tuple[ComparableResult, ...]

    @property
    def n(self) -> int:
        """Number of test images."""
        return self.measurements[0].attack.document.n

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the data."""
        data = self.measurements[0].attack.document.provenance.data
        return data.fingerprint if data else None

    @property
    def settings(self) -> dict[AttackSetting, AttackResult]:
        """A result for each attack setting of the group, by eps and then in the usual order of attacks."""
        by_setting: dict[AttackSetting, AttackResult] = {}
        for measurement in self.measurements:
            for result in measurement.perturbed:
                by_setting.setdefault(setting(result), result)
        order = {name: index for index, name in enumerate(ATTACK_NAMES)}
        keys = sorted(by_setting, key=lambda key: (key[1], order.get(key[0], len(order)), repr(key)))
        return {key: by_setting[key] for key in keys}

    @property
    def norm_suffix(self) -> str:
        """``", norm L2"``; empty for L-inf."""
        return "" if self.norm == "Linf" else f", norm {self.norm}"

    @property
    def description(self) -> str:
        """Images, protocol and norm, in words."""
        data = describe_data(self.measurements[0].attack.document.provenance.data)
        return f"{self.n:,} test images of {data}; {PROTOCOLS[self.protocol]}{self.norm_suffix}"


def groups(models: Iterable[ReportModel]) -> list[ComparableGroup]:
    """Group all measurements by images, protocol and norm; pixel and L-inf first, then the largest group first."""
    by_conditions: dict[Conditions, list[ComparableResult]] = {}
    for model in models:
        for attack in model.attacks:
            by_conditions.setdefault(conditions(attack.document), []).append(ComparableResult(model, attack))
    ordered = sorted(
        by_conditions.items(), key=lambda item: (item[0][1] != "pixel", item[0][2] != "Linf", -len(item[1]), item[0][0])
    )
    return [
        ComparableGroup(_letter(index), protocol, norm, tuple(measurements))
        for index, ((_, protocol, norm, _), measurements) in enumerate(ordered)
    ]


def _letter(index: int) -> str:
    """Return A to Z, then A2 to Z2, and so on."""
    return chr(65 + index % 26) + (str(index // 26 + 1) if index >= 26 else "")


def attack_name(attack: str) -> str:
    """Return the usual spelling of an attack's name."""
    return ATTACK_NAMES.get(attack, attack)


def common_eps(group: ComparableGroup) -> AttackResult | None:
    """Return a result at the eps with the most results in the group; of equally many, the one closest to 8/255."""
    results = [result for measurement in group.measurements for result in measurement.perturbed]
    counts = Counter(result.eps_value for result in results)
    return max(results, key=lambda result: (counts[result.eps_value], -abs(result.eps_value - PAPER_EPS)), default=None)
