"""Robust accuracy of a model, attack by attack and image by image (section 4.1, appendix A.4)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from rnascl_cli import console
from rnascl_cli.artifacts.documents import (
    AdvFinetuneDocument,
    AttackDocument,
    AttackResult,
    Provenance,
    TrainDocument,
    Verdicts,
)
from rnascl_cli.artifacts.store import read_document, sha256_file, write_document
from rnascl_cli.attacks.audit import audit_model
from rnascl_cli.attacks.catalogue import Options, build_attacks
from rnascl_cli.attacks.domain import PIXEL, Domain, normalised_domain
from rnascl_cli.attacks.evaluate import Advance, Evaluator, Outcome
from rnascl_cli.attacks.journal import Journal
from rnascl_cli.attacks.masking import masking_signs
from rnascl_cli.attacks.problem import Attack
from rnascl_cli.attacks.verdicts import wilson_interval
from rnascl_cli.data import Data, load_data
from rnascl_cli.engine.compute import Compute, resolve_compute
from rnascl_cli.engine.modes import evaluating, frozen
from rnascl_cli.engine.progress import progress
from rnascl_cli.engine.provenance import make_provenance
from rnascl_cli.engine.run_directory import JOURNAL
from rnascl_cli.engine.seeds import generator
from rnascl_cli.errors import UserError
from rnascl_cli.models.files import LoadedModel, resolve_model
from rnascl_cli.models.normalise import Normalise
from rnascl_cli.models.seeing import check_sees
from rnascl_cli.recipes import AttackSettings, Recipe
from rnascl_cli.units import Epsilon, parse_epsilon

ATTACK_JSON = "attack.json"
SECONDS_BETWEEN_LINES = 60.0
CUSTOMARY_EPS = {"Linf": 8 / 255, "L2": 0.5}


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        name: As given.
        loaded: The model.
        provenance: How it was made, where it is a run's student; its data and seed are used again.
        inputs: sha256 of what was read, by file name.
    """

    name: str
    loaded: LoadedModel
    provenance: Provenance | None
    inputs: dict[str, str]


def find_target(name: str) -> Target:
    """Read the model to attack.

    Args:
        name: A run directory with a student, a teacher's name, or a file.

    Raises:
        UserError: There is no such model, or the run's document is of another student.
    """
    loaded = resolve_model(name)
    inputs = {loaded.path.name: loaded.sha256}
    if loaded.run is None:
        return Target(name, loaded, None, inputs)
    document: TrainDocument | AdvFinetuneDocument
    if (loaded.run / "adv-finetune.json").is_file():
        document = read_document(loaded.run / "adv-finetune.json", AdvFinetuneDocument)
    elif (loaded.run / "train.json").is_file():
        document = read_document(loaded.run / "train.json", TrainDocument)
    else:
        return Target(name, loaded, None, inputs)
    if document.student_sha256 != loaded.sha256:
        raise UserError(
            f"{loaded.path}: not the student that {document.kind}.json beside it describes (other sha256); "
            "attack the file itself with --data, or make the run again"
        )
    source = loaded.run / f"{document.kind}.json"
    return Target(name, loaded, document.provenance, {**inputs, source.name: sha256_file(source)})


def claim_directory(target: Target, out: Path, *, force: bool, resume: bool) -> Path:
    """Check that ``attack.json`` may be written to ``out``, without touching anything.

    The model's own run directory takes it beside its other artifacts. No file but ``attack.json`` is ever
    replaced.

    Raises:
        UserError: The result, or somebody else's folder, is there already.
    """
    if force and resume:
        raise UserError("--force and --resume exclude each other")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if force or resume or not out.is_dir():
        return out
    if (out / JOURNAL).exists():
        raise UserError(f"{out}: holds an interrupted attack; go on with --resume, or start over with --force")
    if (out / ATTACK_JSON).exists():
        raise UserError(f"{out / ATTACK_JSON}: already exists; name another --out, or replace it with --force")
    own = target.loaded.run is not None and out.resolve() == target.loaded.run.resolve()
    if not own and any(out.iterdir()):
        raise UserError(f"--out {out}: already exists; use another name or --force")
    return out


def attack(
    target: Target, recipe: Recipe, directory: Path, *, audit: bool = False, resume: bool = False
) -> AttackDocument:
    """Attack the test images with every attack at every eps, and write ``attack.json``.

    Args:
        target: The model.
        recipe: Data, seed, device, and the attack table.
        directory: Where ``attack.json`` goes.
        audit: Also run the gradient-masking card.
        resume: Go on behind the batches that an interrupted run has finished.

    Raises:
        UserError: A setting, the data or the model do not fit.
    """
    settings = recipe.attack
    # Verdicts are float32 in any case; so are the attacks unless bf16 is asked for, as they are then strongest.
    compute = resolve_compute(recipe.device, "fp32" if recipe.precision == "auto" else recipe.precision)
    attacks = _attacks(settings)
    epsilons = _epsilons(settings)
    audit_eps = _audit_eps(settings, epsilons) if audit else None
    model = target.loaded.module.to(compute.device)
    model.to(memory_format=_layout(compute))
    domain = _domain(model, settings, target)
    data = load_data(recipe.data, seed=recipe.seed, training=False)
    _check_classes(target, data, attacks)
    check_sees(model, target.name, input_size=data.input_size)
    journal = _journal(target, recipe, data, directory, resume=resume)
    with evaluating(model), frozen(model.parameters()):
        evaluator = _evaluator(model, data, recipe, compute, domain, journal)
        right_N = evaluator.clean()
        with _hint_at_resume(journal):
            outcomes = evaluator.sweep(attacks, epsilons, right_N)
            signs = masking_signs(outcomes, evaluator.gradients(right_N))
            card = None
            if audit_eps is not None:
                card = audit_model(evaluator, right_N, audit_eps, outcomes, limit=settings.audit_images)
    document = AttackDocument(
        provenance=_provenance(target, recipe, compute, data),
        model=target.name,
        model_sha256=target.loaded.sha256,
        protocol=settings.protocol,
        n=len(data.test),
        images=data.test.index_N.tolist(),
        clean_accuracy=int(right_N.sum()) / len(right_N),
        worst_case_accuracy=_worst_case(outcomes),
        results=[_result(outcome, settings, data) for outcome in outcomes],
        verdicts=[_verdicts(outcome, data) for outcome in outcomes],
        warnings=[*_setting_warnings(attacks, epsilons, domain, data.num_classes), *signs],
        audit=card,
    )
    write_document(directory / ATTACK_JSON, document)
    journal.remove()
    return document


def _provenance(target: Target, recipe: Recipe, compute: Compute, data: Data) -> Provenance:
    return make_provenance(
        recipe,
        device=compute.device_name,
        precision=compute.student,
        data=data.reference(),
        teacher=target.provenance.teacher if target.provenance else None,
        inputs=target.inputs,
    )


def _attacks(settings: AttackSettings) -> list[Attack]:
    options = Options(
        step_size=settings.step_size,
        restarts=settings.restarts,
        mi_steps=settings.mi_steps,
        mi_decay=settings.mi_decay,
        cw_steps=settings.cw_steps,
        cw_kappa=settings.cw_kappa,
    )
    return build_attacks(
        settings.attacks, options=options, norm=settings.norm, paper_code=settings.protocol == "paper-code"
    )


def _epsilons(settings: AttackSettings) -> list[Epsilon]:
    epsilons = sorted((parse_epsilon(text) for text in settings.eps), key=lambda eps: eps.value)
    if not epsilons:
        raise UserError("--eps: name at least one, e.g. 8/255")
    for smaller, larger in pairwise(epsilons):
        if smaller.value == larger.value:
            raise UserError(f"--eps: {smaller.text} and {larger.text} are the same; name each once")
    return epsilons


def _audit_eps(settings: AttackSettings, epsilons: Sequence[Epsilon]) -> Epsilon:
    """Return the eps nearest to the customary one: at much larger ones no model is left with any accuracy."""
    if settings.protocol != "pixel":
        raise UserError("--audit: works on pixels; use --protocol pixel")
    above_zero = [eps for eps in epsilons if eps.value > 0]
    if not above_zero:
        raise UserError("--audit: needs an --eps above 0, e.g. 8/255")
    customary = CUSTOMARY_EPS[settings.norm]
    return min(above_zero, key=lambda eps: abs(eps.value - customary))


def _domain(model: nn.Module, settings: AttackSettings, target: Target) -> Domain:
    if settings.protocol == "pixel":
        return PIXEL
    layers = [module for module in model.modules() if isinstance(module, Normalise)]
    if len(layers) != 1:
        raise UserError(f"--protocol paper-code: {target.name} has no normalisation layer; use --protocol pixel")
    return normalised_domain(layers[0].mean, layers[0].std, clamp_to_unit=settings.paper_code_clamp)


def _check_classes(target: Target, data: Data, attacks: Sequence[Attack]) -> None:
    if target.loaded.num_classes != data.num_classes:
        raise UserError(
            f"{target.name}: has {target.loaded.num_classes} classes and --data {data.spec} has {data.num_classes}; "
            "name the data it was trained on"
        )
    for item in attacks:
        item.standard(data.num_classes)  # refuses an attack that so few classes do not allow


def _journal(target: Target, recipe: Recipe, data: Data, directory: Path, *, resume: bool) -> Journal:
    settings = recipe.attack.model_dump(mode="json", exclude={"attacks", "eps", "audit_images"})
    header = {
        "model_sha256": target.loaded.sha256,
        "data_fingerprint": data.fingerprint,
        "images": data.test.index_N.tolist(),
        "seed": recipe.seed,
        "precision": recipe.precision,
        "settings": settings,
    }
    journal = Journal(directory / JOURNAL, header)
    if resume:
        console.say(f"going on behind {journal.load()} finished batches")
    else:
        try:
            journal.start()
        except OSError as error:
            raise UserError(f"--out {directory}: {error.strerror}") from None
    return journal


def _evaluator(
    model: nn.Module, data: Data, recipe: Recipe, compute: Compute, domain: Domain, journal: Journal
) -> Evaluator:
    return Evaluator(
        model=model,
        images=data.test,
        num_classes=data.num_classes,
        streams=lambda purpose, restart, index: generator(recipe.seed, "attack", purpose, restart, index),
        device=compute.device,
        seed=recipe.seed,
        domain=domain,
        norm=recipe.attack.norm,
        batch_size=recipe.attack.batch_size,
        autocast=compute.student_autocast,
        layout=_layout(compute),
        watch=_watch,
        journal=journal,
    )


def _layout(compute: Compute) -> torch.memory_format:
    """Return the memory layout that convolutions are fastest in: 1.2 to 1.5 times on the CPUs measured."""
    fast = compute.device.type == "cpu" or compute.student == "bf16"
    return torch.channels_last if fast else torch.contiguous_format


@contextlib.contextmanager
def _hint_at_resume(journal: Journal) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.say(f"finished batches are kept in {journal.path}; the same command with --resume goes on behind them")
        raise


@contextlib.contextmanager
def _watch(label: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left; where stderr is no terminal, a line a minute."""
    started = last = time.monotonic()
    done = 0
    with progress(label, total) as bar:

        def advance(steps: int) -> None:
            nonlocal done, last
            done += steps
            bar(steps)
            now = time.monotonic()
            if not console.stderr.is_terminal and now - last > SECONDS_BETWEEN_LINES and done:
                last = now
                left = (now - started) * (total - done) / done
                console.say(f"{label}: {100 * done / total:.0f} % done, about {left / 60:.0f} min left")

        yield advance


def _setting_warnings(
    attacks: Sequence[Attack], epsilons: Sequence[Epsilon], domain: Domain, num_classes: int
) -> list[str]:
    warnings = []
    if domain.protocol == "paper-code" and torch.all(torch.as_tensor(domain.std) == 1):
        warnings.append("the model does not rescale its input: protocols paper-code and pixel coincide")
    for item in attacks:
        if not item.standard(num_classes):
            warnings.append(
                f"{item.name}: not AutoAttack's standard setting: {num_classes} classes give at most {num_classes - 1} "
                "targets"
            )
        for eps in epsilons:
            step = item.step_size_at(eps.value)
            if not eps.value or step is None or item.steps is None:
                continue
            if step > eps.value * (1 + 1e-9):
                warnings.append(f"{item.name} at eps {eps.text}: a step of {step:.4g} is longer than eps")
            if step * item.steps < eps.value * (1 - 1e-9):
                warnings.append(f"{item.name} at eps {eps.text}: {item.steps} steps of {step:.4g} do not reach eps")
    return warnings


def _worst_case(outcomes: Sequence[Outcome]) -> float | None:
    largest = max(outcome.eps.value for outcome in outcomes)
    if largest == 0:
        return None
    broken_N = torch.stack([outcome.broken_N for outcome in outcomes if outcome.eps.value == largest]).any(dim=0)
    return int((~broken_N).sum()) / len(broken_N)


def _result(outcome: Outcome, settings: AttackSettings, data: Data) -> AttackResult:
    ran = outcome.eps.value > 0
    return AttackResult(
        attack=outcome.attack.name,
        eps=outcome.eps.text,
        eps_value=outcome.eps.value,
        norm=settings.norm,
        steps=outcome.attack.steps if ran else 0,
        step_size=outcome.attack.step_size_at(outcome.eps.value) if ran else None,
        restarts=outcome.attack.restarts,
        accuracy=outcome.accuracy,
        confidence_interval=_confidence(outcome, data),
        seconds=round(outcome.seconds, 3),
        images_per_second=round(outcome.attacked / outcome.seconds, 3) if outcome.seconds else 0.0,
        attacked=outcome.attacked,
        standard=outcome.attack.standard(data.num_classes),
    )


def _confidence(outcome: Outcome, data: Data) -> tuple[float, float] | None:
    n = len(data.test)
    subset = data.limit_test is not None and int(data.test.index_N[-1]) >= n
    return wilson_interval(int((~outcome.broken_N).sum()), n) if subset else None


def _verdicts(outcome: Outcome, data: Data) -> Verdicts:
    broken = data.test.index_N[outcome.broken_N].tolist()
    return Verdicts(attack=outcome.attack.name, eps=outcome.eps.text, broken=sorted(broken))
