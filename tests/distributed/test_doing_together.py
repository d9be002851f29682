"""What ranks say to one another, on two gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import RunError
from rnascl_cli.engine.metrics import EpochMetrics
from rnascl_cli.engine.optimizer import optimizer_step
from rnascl_cli.engine.stop_consensus import StopConsensus, StopFlags
from tests.distributed.ranks_of import on_ranks

pytestmark = pytest.mark.pipeline

VALUES = {1: [0.5, 2.0, 4.0], 0: [1.0, 3.0, 4.0]}  # of a metric at three steps
SIZES = {1: [3, 1, 0], 0: [3, 2, 5]}  # the last step was on the same images


def filled(number: int) -> EpochMetrics:
    """A tally with a rank's own part of three steps."""
    tally = EpochMetrics("toy", 0)
    for value, size in zip(VALUES[number], SIZES[number], strict=True):
        tally.add({"loss": torch.tensor(value), "late": torch.tensor(1.0)}, size)
    return tally


def everything(folder: Path) -> dict[str, Any]:
    """What each rank sees of it."""
    number = distributed.rank()
    found: dict[str, Any] = {}
    found["all"] = distributed.all_gather_object(f"of {number}")
    found["first"] = distributed.from_rank_zero(lambda: f"found by {number}")
    found["turns"] = list(distributed.round_robin([1, 2, 3], lambda item: (item, number)))

    agreement = StopConsensus()
    wishes = [StopFlags(15, checkpoint=True) if (step, number) == (1, 1) else StopFlags() for step in range(3)]
    found["stops"] = [agreement.after_step(wish) for wish in wishes]
    found["clock"] = agreement.at_end(StopFlags(checkpoint=number == 0))

    tally = filled(number)
    found["means"] = tally.means()
    found["state"] = tally.state_dict()
    resumed = EpochMetrics("toy", 0)
    resumed.load_state_dict(found["state"])
    resumed.add({"loss": torch.tensor(float(number)), "late": torch.tensor(1.0)}, 1)
    found["resumed"] = resumed.means()
    tally.add({"loss": torch.tensor(float("nan") if number == 1 else 1.0), "late": torch.tensor(1.0)}, 1)
    try:
        tally.check()
    except RunError as error:
        found["fault"] = str(error)

    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    x_b = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[number::2]
    optimizer_step(optimiser, (x_b @ weight).square().mean(), images=len(x_b))
    found["weight"] = weight.detach()

    with distributed.local_rank_zero_first():
        found["saw"] = (folder / "made").exists()
        (folder / "made").touch()
    try:
        with distributed.local_rank_zero_first():
            if number == 0:
                raise ValueError
    except ValueError:
        pass
    distributed.barrier()  # had the first kept the other waiting, it would hang here
    found["tells"] = distributed.all_gather_object(distributed.claim_error_report())
    return found


def test_two_ranks(tmp_path: Path) -> None:
    first, second = on_ranks(everything, 2, tmp_path, tmp_path)
    for name in ("all", "first", "turns", "stops", "clock", "means", "resumed", "fault"):
        assert first[name] == second[name], name
    assert first["all"] == ["of 0", "of 1"]
    assert first["first"] == "found by 0"
    assert first["turns"] == [[(1, (1, 0)), (2, (2, 1))], [(3, (3, 0))]]
    # What one rank wished for behind step 1, all do behind step 2; the second rank's clock has no say.
    assert first["stops"] == [StopFlags(), StopFlags(), StopFlags(15)]
    assert first["clock"] == StopFlags(0, checkpoint=True)
    by_step = [(3 * 1.0 + 3 * 0.5) / 6, (2 * 3.0 + 1 * 2.0) / 3, 4.0]
    assert first["means"]["loss"] == pytest.approx((6 * by_step[0] + 3 * by_step[1] + 5 * by_step[2]) / 14)
    assert first["state"]["sizes"] == [6, 3, 5]
    assert first["state"]["values"]["loss"].tolist() == pytest.approx(by_step)
    assert first["resumed"]["loss"] == pytest.approx((14 * first["means"]["loss"] + 0.0 + 1.0) / 16)
    assert "'loss' is nan at epoch 1, step 4" in first["fault"]
    assert (first["saw"], second["saw"]) == (False, True)
    assert sorted(first["tells"]) == [False, True]

    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    x_B = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    optimizer_step(torch.optim.SGD([weight], lr=1.0), (x_B @ weight).square().mean())
    torch.testing.assert_close(first["weight"], weight.detach())
    assert first["weight"].equal(second["weight"])
