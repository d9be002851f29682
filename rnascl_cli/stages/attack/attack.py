"""Robust accuracy of a model, attack by attack and image by image (section 4.1, appendix A.4)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import torch
from torch import nn

from rnascl_cli.artifacts.documents import AttackDocument
from rnascl_cli.artifacts.store import read_document, write_document
from rnascl_cli.attacks.audit import audit_model
from rnascl_cli.attacks.cuda_graph import Captured
from rnascl_cli.attacks.evaluate import Evaluator, exact_float32
from rnascl_cli.attacks.gradient import LogitFunction
from rnascl_cli.attacks.gradient_masking import masking_signs
from rnascl_cli.attacks.protocol import AttackSpace
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import Interrupted, UserError
from rnascl_cli.core.progress import long_progress
from rnascl_cli.core.random_streams import generator
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.lock import Lock, lock_directory
from rnascl_cli.engine.modes import evaluating, frozen
from rnascl_cli.engine.provenance import make_provenance
from rnascl_cli.engine.resume_command import resume_hint
from rnascl_cli.engine.run_directory import JOURNAL, remove_temporary_files
from rnascl_cli.models.batchnorm_folding import folded
from rnascl_cli.stages.attack.document import (
    accuracy,
    confidence,
    result_row,
    setting_warnings,
    verdicts_row,
    worst_case,
)
from rnascl_cli.stages.attack.plan import AttackPlan
from rnascl_cli.stages.attack.target import ATTACK_JSON

SMALL = 5_000_000
"""Parameters up to which launching a network's kernels takes longer than computing them."""
SAMPLE = 16
"""Images on which the folded copy is compared with the model."""


def attack(plan: AttackPlan, *, resume: bool = False) -> AttackDocument:
    """Attack the test images with every attack at every eps, and write ``attack.json``; several ranks share the work.

    Args:
        plan: What to do; from :func:`rnascl_cli.stages.attack.plan.plan`.
        resume: Go on behind the batches that an interrupted run has finished; an attack that had finished
            is left as it is.

    Raises:
        UserError: There is nothing to go on with, or it is of another attack.
    """
    if resume and (document := distributed.from_rank_zero(lambda: _finished(plan))) is not None:
        return document
    recipe, data, settings = plan.recipe, plan.data, plan.recipe.attack
    model = plan.target.loaded.module.to(plan.compute.device)
    model.to(memory_format=_layout(plan.compute))
    domain = plan.attack_space
    lock = _lock(plan, resume=resume) if distributed.is_rank_zero() else None
    with _hint_at_resume(plan), evaluating(model), frozen(model.parameters()):
        journal = _opened(plan, resume=resume)
        evaluator = _evaluator(model, plan, domain, journal)
        right_N = evaluator.clean()
        outcomes = evaluator.evaluate(plan.attacks, plan.epsilons, right_N)
        signs = masking_signs(outcomes, evaluator.gradients(right_N))
        card = None
        if plan.audit_eps is not None:
            card = audit_model(evaluator, right_N, plan.audit_eps, outcomes, limit=settings.audit_images)
    worst_N = worst_case(outcomes)
    document = AttackDocument(
        provenance=make_provenance(
            recipe,
            device=plan.compute.device_name,
            precision=plan.compute.student,
            data=data.reference(),
            teacher=plan.target.provenance.teacher if plan.target.provenance else None,
            inputs=plan.target.inputs,
        ),
        model=plan.target.name,
        model_sha256=plan.target.loaded.sha256,
        protocol=settings.protocol,
        n=len(data.test),
        images=data.test.index_N.tolist(),
        clean_accuracy=accuracy(~right_N),
        clean_confidence_interval=confidence(~right_N, data),
        worst_case_accuracy=None if worst_N is None else accuracy(worst_N),
        worst_case_confidence_interval=None if worst_N is None else confidence(worst_N, data),
        results=[result_row(outcome, settings, data) for outcome in outcomes],
        verdicts=[verdicts_row(outcome, data) for outcome in outcomes],
        warnings=[
            *setting_warnings(plan.attacks, plan.epsilons, domain, settings.norm, data.num_classes),
            *signs,
        ],
        audit=card,
    )
    write_document(plan.directory / ATTACK_JSON, document)
    journal.remove()
    if lock is not None:
        lock.release()
    console.info(f"wrote {plan.directory / ATTACK_JSON}")
    return document


def _finished(plan: AttackPlan) -> AttackDocument | None:
    """Return the result of an attack that had ended, if it is this one; None where there is something to do."""
    path = plan.directory / ATTACK_JSON
    if not path.is_file() or (plan.directory / JOURNAL).exists():
        return None
    document = read_document(path, AttackDocument)
    then, now = document.provenance, plan.recipe
    same = {
        "model_sha256": document.model_sha256 == plan.target.loaded.sha256,
        "data": then.data == plan.data.reference(),
        "seed": then.seed == now.seed,
        "precision": then.precision == plan.compute.student,
        "settings": then.recipe.get("attack") == now.attack.model_dump(mode="json"),
        "audit": (document.audit is not None) == (plan.audit_eps is not None),
    }
    if others := [name for name, equal in same.items() if not equal]:
        raise UserError(
            f"--resume: {path} is of a finished attack with another {', '.join(others)}; replace it with --force, or "
            "name another --out"
        )
    console.info(f"{plan.directory}: had finished already; left as it is")
    return document


def _lock(plan: AttackPlan, *, resume: bool) -> Lock:
    directory = plan.directory
    if resume and not (directory / JOURNAL).is_file():
        raise UserError(f"--resume: no interrupted attack in {directory}; start without --resume")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {directory}: {error.strerror}") from None
    lock = lock_directory(directory)
    remove_temporary_files(directory)
    return lock


def _opened(plan: AttackPlan, *, resume: bool) -> Journal:
    journal = plan.journal()
    if resume:
        console.info(f"going on behind {journal.load()} finished batches")
    else:
        journal.start()
    return journal


def _evaluator(model: nn.Module, plan: AttackPlan, domain: AttackSpace, journal: Journal) -> Evaluator:
    recipe, compute = plan.recipe, plan.compute
    return Evaluator(
        model=model,
        images=plan.data.test,
        num_classes=plan.data.num_classes,
        streams=lambda purpose, restart, index: generator(recipe.seed, "attack", purpose, restart, index),
        device=compute.device,
        seed=recipe.seed,
        attack_space=domain,
        norm=recipe.attack.norm,
        batch_size=plan.batch_size,
        autocast=compute.student_autocast,
        layout=_layout(compute),
        watch=long_progress,
        journal=journal,
        attacked_model=_attacked_model(model, plan),
    )


def _attacked_model(model: nn.Module, plan: AttackPlan) -> LogitFunction | None:
    """Return what attacks run on: the model's function, made faster where that is to be had."""
    settings, compute = plan.recipe.attack, plan.compute
    worker: nn.Module = model
    if settings.fold:
        sample_BCHW = plan.data.test.pixels(slice(SAMPLE)).to(compute.device).float() / 255
        with exact_float32():
            worker = folded(model, sample_BCHW) or model
        worker.to(memory_format=_layout(compute))
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    if settings.capture == "on" or (settings.capture == "auto" and compute.device.type == "cuda" and small):
        return Captured(worker, batch_size=plan.batch_size)
    return worker


def _layout(compute: DeviceConfig) -> torch.memory_format:
    """Return the memory layout that convolutions are fastest in: 1.2 to 1.5 times on the CPUs measured."""
    fast = compute.device.type == "cpu" or compute.student == "bf16"
    return torch.channels_last if fast else torch.contiguous_format


@contextlib.contextmanager
def _hint_at_resume(plan: AttackPlan) -> Iterator[None]:
    """Say at Ctrl-C or SIGTERM, which end an attack at once, what is kept and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        kept = plan.directory / JOURNAL
        if not kept.is_file():
            raise
        signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
        again = resume_hint(out=plan.out)
        raise Interrupted(signum, f"attack: finished batches are kept in {kept}; {again}") from None
