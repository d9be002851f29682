"""Resuming after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rnascl_cli.attacks.autoattack import AutoAttack
from rnascl_cli.attacks.interface import Attack
from rnascl_cli.attacks.resume import FinishedBatch, Journal
from rnascl_cli.core.errors import UserError
from rnascl_cli.core.units import parse_epsilons
from tests.attacks import tiny
from tests.attacks.tiny import Interrupting

HEADER = {"model_sha256": "a" * 64, "settings": {"batch_size": 8}}
DONE = FinishedBatch(broken=[3], out_of_ball=0, seconds=1.5, notes=[])
pytestmark = pytest.mark.unit


@pytest.mark.parametrize("passes", [3, 60, 300])
def test_a_resumed_evaluation_gives_the_same_verdicts(robust: nn.Module, tmp_path: Path, passes: int) -> None:
    data = tiny.images(30, seed=3, noise=0.18)
    attacks: list[Attack] = [
        *tiny.attacks("fgsm", "pgd3", restarts=2),
        AutoAttack("aa", iterations=5, queries=10),
    ]
    epsilons = parse_epsilons("4/255,8/255")
    right_N = tiny.evaluator(robust, data).clean()
    whole = tiny.evaluator(robust, data, batch_size=8).evaluate(attacks, epsilons, right_N)

    first = Journal(tmp_path / "partial.jsonl", HEADER)
    first.start()
    with pytest.raises(KeyboardInterrupt):
        tiny.evaluator(Interrupting(robust, passes), data, batch_size=8, journal=first).evaluate(
            attacks, epsilons, right_N
        )
    second = Journal(tmp_path / "partial.jsonl", HEADER)
    found = second.load()
    counting = Interrupting(robust, 10**6)
    resumed = tiny.evaluator(counting, data, batch_size=8, journal=second).evaluate(attacks, epsilons, right_N)
    assert [torch.equal(one.broken_N, other.broken_N) for one, other in zip(whole, resumed, strict=True)] == [
        True
    ] * len(whole)
    assert found > 0 or passes == 3
    assert len((tmp_path / "partial.jsonl").read_text().splitlines()) > found  # and it went on writing

    third = Journal(tmp_path / "partial.jsonl", HEADER)
    third.load()
    idle = Interrupting(robust, 12)  # AutoAttack's look at the first batch is all that is left to compute
    again = tiny.evaluator(idle, data, batch_size=8, journal=third).evaluate(attacks[:2], epsilons, right_N)
    assert idle.left == 12
    assert [one.seconds for one in again] == pytest.approx([one.seconds for one in resumed[:4]])


def test_a_truncated_line_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "partial.jsonl", HEADER)
    journal.start()
    journal.record(("pgd20", "8/255", 0), [1, 3], DONE)
    journal.record(("pgd20", "8/255", 0), [4, 5], DONE)
    text = journal.path.read_bytes()
    journal.path.write_bytes(text[:-10])
    again = Journal(journal.path, HEADER)
    assert again.load() == 1
    assert again.find(("pgd20", "8/255", 0), [1, 3]) == DONE
    assert again.find(("pgd20", "8/255", 0), [4, 5]) is None
    again.record(("pgd20", "8/255", 0), [4, 5], DONE)
    assert journal.path.read_bytes() == text


def test_another_evaluation_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "partial.jsonl"
    with pytest.raises(UserError, match="start without --resume"):
        Journal(path, HEADER).load()
    Journal(path, HEADER).start()
    with pytest.raises(UserError, match="another model_sha256"):
        Journal(path, {**HEADER, "model_sha256": "b" * 64}).load()
    for damage in (b"", b"[]\n", b"{}\n", b"\xff\n", path.read_bytes() + b'{"attack": 1}\n'):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="start without --resume"):
            Journal(path, HEADER).load()
