"""The plain step and ours are the same mathematics: else their times could not be compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.reference import PlainSearch
from benchmarks.search_step import FLOAT32, first_batch
from benchmarks.workload import Workload, our_search, plain_search
from rnascl_cli.distill.architecture_parameters import ArchitectureParameters
from rnascl_cli.distill.gumbel import sample_noise

pytestmark = pytest.mark.unit


def replay_noise(plain: PlainSearch, choices: ArchitectureParameters, seed: int) -> None:
    """Let the plain step draw the noise that ours draws from ``seed``."""
    stream = torch.Generator().manual_seed(seed)
    assert choices.tutor_logits is not None
    tutors = choices.tutor_logits.shape

    def noise() -> tuple[list[Tensor], Tensor]:
        widths_DN = sample_noise(choices.width_logits.shape, generator=stream)
        return choices.rows(widths_DN), sample_noise(tutors, generator=stream)

    plain.noise = noise


@pytest.mark.parametrize("hoisted", [False, True], ids=["plain", "hoisted"])
def test_one_step_has_the_same_loss_and_moves_the_same_numbers(work: Workload, hoisted: bool) -> None:
    batch = first_batch(work)
    plain = plain_search(work, hoisted=hoisted)
    with our_search(work, compute=FLOAT32) as task:
        task.start_epoch(0, torch.Generator().manual_seed(5))
        replay_noise(plain, task.architecture, 5)
        ours = task.step(batch)
        theirs = plain.step(batch.x_BCHW.contiguous(), batch.y_B)
        assert ours["loss"].item() == pytest.approx(theirs[0], rel=1e-6)
        # The second loss is that of weights which have taken a step of lr 0.1, each with its own rounding.
        assert ours["gumbel_loss"].item() == pytest.approx(theirs[1], rel=1e-5)
        assert ours["attention"].item() > 0
        started = dict(plain_search(work).supernet.named_parameters())
        moved = torch.cat([(each - started[name]).flatten() for name, each in task.supernet.named_parameters()])
        theirs_moved = torch.cat([(each - started[name]).flatten() for name, each in plain.supernet.named_parameters()])
        assert (moved - theirs_moved).norm() < 1e-2 * moved.norm()
        assert task.architecture.tutor_logits is not None
        for mine, other in (
            (torch.cat(task.architecture.rows(task.architecture.width_logits)), torch.cat(list(plain.width_logits))),
            (task.architecture.tutor_logits, plain.tutor_logits),
        ):
            assert other.any()
            assert (mine - other).norm() < 1e-2 * other.norm()


def test_the_loss_would_tell_another_noise(work: Workload) -> None:
    batch = first_batch(work)
    plain = plain_search(work, hoisted=True)
    with our_search(work, compute=FLOAT32) as task:
        task.start_epoch(0, torch.Generator().manual_seed(5))
        replay_noise(plain, task.architecture, 6)
        loss = task.step(batch)["loss"].item()
        assert abs(loss / plain.step(batch.x_BCHW.contiguous(), batch.y_B)[0] - 1) > 1e-4
