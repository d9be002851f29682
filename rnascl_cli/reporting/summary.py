"""The tables at the top: models, and their accuracy under attack. Unlike measurements never share a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnascl_cli.artifacts.documents import AttackDocument, AttackResult, Protocol
from rnascl_cli.reporting.collect import Artifact
from rnascl_cli.reporting.lineage import Model
from rnascl_cli.reporting.tables import (
    NOTHING,
    Cell,
    Column,
    Table,
    accuracy,
    data_words,
    number,
    ranges,
    teacher_words,
    text,
    wilson,
)
from rnascl_cli.units import parse_epsilon

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
DEPARTED = "†"
PAPER_EPS = 8 / 255
SAME = 1e-9


@dataclass(frozen=True)
class Measured:
    """One model under one attack document."""

    model: Model
    attack: Artifact[AttackDocument]

    @property
    def largest(self) -> AttackResult | None:
        """A result of the largest eps, for which the worst case is told."""
        return max(self.attack.document.results, key=lambda result: result.eps_value, default=None)

    @property
    def worst_case(self) -> float | None:
        """The share of images that no attack of the largest eps broke; from the verdicts when not recorded."""
        document = self.attack.document
        if document.worst_case_accuracy is not None or self.largest is None:
            return document.worst_case_accuracy
        verdicts = [verdict for verdict in document.verdicts if verdict.eps == self.largest.eps]
        if not verdicts:
            return None
        broken = {index for verdict in verdicts for index in verdict.broken}
        return 1 - len(broken & set(document.images)) / document.n

    def interval(self, fraction: float) -> tuple[float, float] | None:
        """Return an interval where the attack document gives any: where a subset was attacked."""
        document = self.attack.document
        subset = any(result.confidence_interval is not None for result in document.results)
        return wilson(fraction, document.n) if subset else None


@dataclass(frozen=True)
class Group:
    """Measurements that may share a column: same images, same protocol."""

    letter: str
    protocol: Protocol
    measured: tuple[Measured, ...]

    @property
    def n(self) -> int:
        """How many test images."""
        return self.measured[0].attack.document.n

    @property
    def words(self) -> str:
        """Which images and which protocol."""
        document = self.measured[0].attack.document
        return f"{document.n:,} test images of {data_words(document.provenance)}; {PROTOCOL_WORDS[self.protocol]}"


def groups(models: Iterable[Model]) -> list[Group]:
    """Sort all measurements by the images attacked and the protocol, the largest group first."""
    sorted_in: dict[tuple[str, Protocol, frozenset[int]], list[Measured]] = {}
    for model in models:
        for attack in model.attacks:
            document = attack.document
            data = document.provenance.data
            key = (data.fingerprint if data else "", document.protocol, frozenset(document.images))
            sorted_in.setdefault(key, []).append(Measured(model, attack))
    # Pixel first: it is the community's meaning of eps.
    ordered = sorted(sorted_in.items(), key=lambda item: (item[0][1] != "pixel", -len(item[1]), item[0][0]))
    return [Group(chr(65 + index), key[1], tuple(found)) for index, (key, found) in enumerate(ordered)]


def attack_name(attack: str) -> str:
    """Return the usual spelling of an attack's name."""
    return ATTACK_NAMES.get(attack, attack)


Setting = tuple[str, float, str, int | None, float | None, int]


def _setting(result: AttackResult) -> Setting:
    """Return what makes two results comparable: the attack and everything it was run with."""
    step = None if result.step_size is None else round(result.step_size, 9)
    return (result.attack, result.eps_value, result.norm, result.steps, step, result.restarts)


def _heading(result: AttackResult, crowded: bool) -> Column:
    step = f", step {result.step_size:.4g}" if result.step_size is not None else ""
    how = f"{result.steps} steps{step}, {result.restarts} restart{'s' * (result.restarts != 1)}"
    norm = "" if result.norm == "Linf" else f" {result.norm}"
    label = f"{attack_name(result.attack)}{norm} {result.eps}"
    return Column(f"{label} ({how})" if crowded else label, True, how if result.steps is not None else "")


def usual_eps(group: Group) -> AttackResult | None:
    """Return a result of the eps that most attacks of the group were run with, 8/255 among equals."""
    results = [result for found in group.measured for result in _perturbed(found)]
    times = Counter(result.eps_value for result in results)
    return max(results, key=lambda result: (times[result.eps_value], -abs(result.eps_value - PAPER_EPS)), default=None)


def attack_tables(group: Group) -> list[Table]:
    """Return the accuracies of one group: a row a measurement, a column an attack, its eps and its settings.

    The usual eps comes with sizes and the worst case; other sizes of perturbation follow in a table of their own.
    """
    headings = _headings(group)
    usual = usual_eps(group)
    first = [key for key in headings if usual is not None and key[1] == usual.eps_value]
    rest = [key for key in headings if key not in first]
    name, title = f"robustness-{group.letter.lower()}", f"Accuracy under attack ({group.letter})"
    worst = sorted({found.largest.eps_value: found.largest.eps for found in group.measured if found.largest}.items())
    tables = [
        Table(
            name,
            title,
            [
                Column("Model"),
                Column("Trained with"),
                Column("Params (M)", True),
                Column("MACs (M)", True),
                Column("Warnings", True),
                Column("Clean", True, f"accuracy in % on the same {group.n} images, unperturbed"),
                *(Column(f"Worst case {eps}", True, "share that no attack of this eps broke") for _, eps in worst),
                *(headings[key] for key in first),
            ],
            [
                [
                    *_model_cells(found),
                    *(_worst_cell(found, value) for value, _ in worst),
                    *(_result_cell(found, key) for key in first),
                ]
                for found in group.measured
            ],
            intro=f"In % of {group.words}.",
            notes=_attack_notes(group),
        )
    ]
    if rest:
        swept = [found for found in group.measured if any(_result(found, key) for key in rest)]
        columns = [Column("Model"), *(headings[key] for key in rest)]
        rows = [[_name_cell(found), *(_result_cell(found, key) for key in rest)] for found in swept]
        words = f"In % of {group.words}."
        tables.append(Table(f"{name}-other", f"{title}: other sizes of perturbation", columns, rows, intro=words))
    return tables


def _headings(group: Group) -> dict[Setting, Column]:
    """Return a column heading for each setting, by eps and then in the attacks' usual order."""
    by_setting: dict[Setting, AttackResult] = {}
    for measured in group.measured:
        for result in _perturbed(measured):
            by_setting.setdefault(_setting(result), result)
    order = {name: index for index, name in enumerate(ATTACK_NAMES)}
    settings = sorted(by_setting, key=lambda key: (key[1], order.get(key[0], len(order)), repr(key)))
    labels = Counter(key[:3] for key in settings)
    return {key: _heading(by_setting[key], labels[key[:3]] > 1) for key in settings}


def _perturbed(measured: Measured) -> list[AttackResult]:
    """Return the results at any eps above zero; at zero an attack measures clean accuracy, which has its column."""
    return [result for result in measured.attack.document.results if result.eps_value > 0]


def _name_cell(measured: Measured) -> Cell:
    return text(measured.model.name, note=f"attack run {measured.attack.run}")


def _model_cells(measured: Measured) -> list[Cell]:
    document, built = measured.attack.document, measured.model.architecture
    count = len(document.warnings)
    return [
        _name_cell(measured),
        text(measured.model.trained),
        number(built.params / 1e6 if built else None, ".3f"),
        number(built.macs / 1e6 if built else None, ".2f"),
        Cell(f"⚠ {count}" if count else "none", float(count), "; ".join(document.warnings), bool(count)),
        accuracy(document.clean_accuracy, document.n, interval=measured.interval(document.clean_accuracy)),
    ]


def _worst_cell(measured: Measured, eps: float) -> Cell:
    if measured.largest is None or measured.largest.eps_value != eps or measured.worst_case is None:
        return Cell(NOTHING)
    share = measured.worst_case
    return accuracy(share, measured.attack.document.n, interval=measured.interval(share))


def _result(measured: Measured, key: Setting) -> AttackResult | None:
    return next((result for result in measured.attack.document.results if _setting(result) == key), None)


def _result_cell(measured: Measured, key: Setting) -> Cell:
    document, result = measured.attack.document, _result(measured, key)
    if result is not None:
        return accuracy(
            result.accuracy,
            document.n,
            interval=result.confidence_interval,
            mark="" if result.standard else DEPARTED,
            note=f"{result.seconds:.1f} s, {result.images_per_second:.0f} images/s",
        )
    if any(name == key[0] and abs(eps - key[1]) < SAME for name, eps in _missing(document)):
        return Cell("no result", None, "asked for, not in attack.json", True)
    return Cell(NOTHING)


def _asked(document: AttackDocument) -> list[tuple[str, float]]:
    """Return the attacks and sizes the recipe asked for; what is not in the results was not done."""
    asked = document.provenance.recipe.get("attack", {})
    names, sizes = asked.get("attacks", ()), asked.get("eps", ())
    norm = asked.get("norm", "Linf")
    return [
        (str(name), parse_epsilon(str(size), norm=norm).value) for name in names if name != "clean" for size in sizes
    ]


def _missing(document: AttackDocument) -> list[tuple[str, float]]:
    """Return each attack and eps that the recipe asked for and the document has no result of."""
    # Sizes are compared as numbers, since 8/255 may be written otherwise.
    done = [(result.attack, result.eps_value) for result in document.results]
    return [
        (name, eps)
        for name, eps in _asked(document)
        if not any(name == other and abs(eps - value) < SAME for other, value in done)
    ]


def missing_results(document: AttackDocument) -> list[str]:
    """Name each attack at each eps that the recipe asked for and the document has no result of."""
    return [f"{attack_name(name)} at eps {eps:.4g}" for name, eps in _missing(document)]


def _attack_notes(group: Group) -> list[str]:
    notes = []
    if any(measured.attack.document.results and measured.interval(0.5) for measured in group.measured):
        notes.append(
            "In brackets: the 95 % Wilson interval for the images drawn; it says nothing about the seed of training."
        )
    if any(not result.standard for found in group.measured for result in found.attack.document.results):
        notes.append(f"{DEPARTED} departs from the attack's published setting.")
    notes.append("Worst case: an image counts only if it withstood every attack of that eps.")
    return notes


def model_tables(models: Sequence[Model]) -> list[Table]:
    """Return the students' sizes and clean accuracies: one table for each set of data they were trained on."""
    by_data: dict[str, list[Model]] = {}
    for model in models:
        if model.made:
            data = model.made.document.provenance.data
            by_data.setdefault(data.fingerprint if data else "", []).append(model)
    return [_model_table(index, found, len(by_data)) for index, found in enumerate(by_data.values(), 1)]


def _model_table(index: int, models: Sequence[Model], of: int) -> Table:
    columns = [
        Column("Model"),
        Column("Space"),
        Column("Paradigm"),
        Column("Fine-tuned with"),
        Column("Teacher"),
        Column("Widths", note="output channels of each block; 16×3 is three blocks of 16"),
        Column("Params (M)", True),
        Column("MACs (M)", True),
        Column("Epochs", True),
        Column("Seed", True),
        Column("Clean, the run's test images", True),
        Column("Made from"),
    ]
    first = models[0].made
    assert first is not None
    data = first.document.provenance.data
    counts = (
        f"; {data.train_images:,} images to train on, {data.holdout_images:,} held out, {data.test_images:,} to test on"
        if data
        else ""
    )
    return Table(
        f"models-{index}",
        "Models" if of == 1 else f"Models, data {index} of {of}",
        columns,
        [_model_row(model) for model in models],
        intro=f"Students trained on {data_words(first.document.provenance)}{counts}. Clean accuracy in %.",
    )


def _teacher_cell(model: Model) -> Cell:
    if model.teacher is None:
        return Cell(NOTHING)
    return text(f"{model.teacher.architecture} ({model.teacher.sha256[:12]})", note=teacher_words(model.teacher) or "")


def _model_row(model: Model) -> list[Cell]:
    assert model.made is not None
    document = model.made.document
    data = document.provenance.data
    built = document.architecture
    return [
        text(model.name),
        text(built.space),
        text(document.paradigm),
        text(model.finetuned),
        _teacher_cell(model) if document.paradigm != "standard" else Cell(NOTHING),
        Cell(ranges(built.widths), float(sum(built.widths))),
        number(built.params / 1e6, ".3f"),
        number(built.macs / 1e6, ".2f"),
        number(document.epochs, "d"),
        number(document.provenance.seed, "d"),
        accuracy(document.clean_accuracy, data.test_images if data else 0),
        text(model.origin),
    ]
