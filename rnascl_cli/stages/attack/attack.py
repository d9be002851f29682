"""Robust accuracy of a model, per attack and per image (section 4.1, appendix A.4)."""

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
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import Interrupted, UserError
from rnascl_cli.core.file_lock import DirectoryLock, lock_directory
from rnascl_cli.core.progress import long_progress
from rnascl_cli.core.random_streams import generator
from rnascl_cli.engine.device import DeviceConfig
from rnascl_cli.engine.modes import evaluating, frozen
from rnascl_cli.engine.resume_command import resume_hint
from rnascl_cli.engine.run_directory import JOURNAL, remove_temporary_files
from rnascl_cli.models.batchnorm_folding import folded
from rnascl_cli.recipes.old_keys import upgraded
from rnascl_cli.stages.attack.document import attack_document
from rnascl_cli.stages.attack.plan import AttackPlan
from rnascl_cli.stages.attack.target import ATTACK_JSON

SMALL = 5_000_000
"""Parameters up to which launching a network's kernels takes longer than computing them."""
SAMPLE = 16
"""Images on which the folded copy is compared with the model."""


def attack(plan: AttackPlan, *, resume: bool = False) -> AttackDocument:
    """Attack the test images with every attack at every eps, and write ``attack.json``; ranks share the work.

    Args:
        plan: From :func:`rnascl_cli.stages.attack.plan.plan_attack`.
        resume: Resume after the finished batches of an interrupted run; a finished attack is returned as it is.

    Raises:
        UserError: There is nothing to resume, or it is of another attack.
    """
    if resume and (document := distributed.from_rank_zero(lambda: _finished(plan))) is not None:
        return document
    model = plan.target.loaded.module.to(plan.compute.device)
    model.to(memory_format=_layout(plan.compute))
    lock = _lock(plan, resume=resume) if distributed.is_rank_zero() else None
    with _resume_hint(plan), evaluating(model), frozen(model.parameters()):
        journal = plan.journal()
        if resume:
            console.info(f"resuming after {journal.load()} finished batches")
        else:
            journal.start()
        evaluator = _evaluator(model, plan, journal)
        right_N = evaluator.clean()
        outcomes = evaluator.evaluate(plan.attacks, plan.epsilons, right_N)
        signs = masking_signs(outcomes, evaluator.gradients(right_N))
        audit = None
        if plan.audit_eps is not None:
            audit = audit_model(evaluator, right_N, plan.audit_eps, outcomes, limit=plan.settings.audit_images)
    document = attack_document(plan, right_N, outcomes, signs=signs, audit=audit)
    write_document(plan.directory / ATTACK_JSON, document)
    journal.remove()
    if lock is not None:
        lock.release()
    console.info(f"wrote {plan.directory / ATTACK_JSON}")
    return document


def _finished(plan: AttackPlan) -> AttackDocument | None:
    """Return the result if this attack has finished; None if there is something to do."""
    path = plan.directory / ATTACK_JSON
    if not path.is_file() or (plan.directory / JOURNAL).exists():
        return None
    document = read_document(path, AttackDocument)
    then = document.provenance
    same = {
        "model_sha256": document.model_sha256 == plan.target.loaded.sha256,
        "data": then.data == plan.data.reference(),
        "seed": then.seed == plan.recipe.seed,
        "precision": then.precision == plan.compute.student,
        "settings": upgraded(then.recipe).get("attack") == plan.settings.model_dump(mode="json"),
        "audit": (document.audit is not None) == (plan.audit_eps is not None),
    }
    if others := [name for name, equal in same.items() if not equal]:
        raise UserError(
            f"--resume: {path} is of a finished attack with another {', '.join(others)}; replace it with --force, or "
            "name another --out"
        )
    console.info(f"{plan.directory}: already finished; left unchanged")
    return document


def _lock(plan: AttackPlan, *, resume: bool) -> DirectoryLock:
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


def _evaluator(model: nn.Module, plan: AttackPlan, journal: Journal) -> Evaluator:
    seed, compute = plan.recipe.seed, plan.compute
    return Evaluator(
        model=model,
        images=plan.data.test,
        num_classes=plan.data.num_classes,
        streams=lambda purpose, restart, index: generator(seed, "attack", purpose, restart, index),
        device=compute.device,
        seed=seed,
        attack_space=plan.attack_space,
        norm=plan.settings.norm,
        batch_size=plan.batch_size,
        autocast=compute.student_autocast,
        layout=_layout(compute),
        watch=long_progress,
        journal=journal,
        attacked_model=_accelerated(model, plan),
    )


def _accelerated(model: nn.Module, plan: AttackPlan) -> LogitFunction:
    """Return the model's function for attacks to use: with folded BatchNorm, and as CUDA graphs if it is small."""
    compute = plan.compute
    sample_BCHW = plan.data.test.pixels(slice(SAMPLE)).to(compute.device).float() / 255
    with exact_float32():
        attacked_model = folded(model, sample_BCHW) or model
    attacked_model.to(memory_format=_layout(compute))
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    if compute.device.type == "cuda" and small:
        return Captured(attacked_model, batch_size=plan.batch_size)
    return attacked_model


def _layout(compute: DeviceConfig) -> torch.memory_format:
    """Return the fastest memory layout for convolutions: 1.2 to 1.5 times faster on the CPUs measured."""
    fast = compute.device.type == "cpu" or compute.student == "bf16"
    return torch.channels_last if fast else torch.contiguous_format


@contextlib.contextmanager
def _resume_hint(plan: AttackPlan) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, which end an attack at once, say what is kept and how to resume."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        kept = plan.directory / JOURNAL
        if not kept.is_file():
            raise
        signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
        again = resume_hint(out=plan.out)
        raise Interrupted(signum, f"attack: finished batches are kept in {kept}; {again}") from None
