"""Shares of a batch: every image is somebody's, and nobody's twice."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.data import BatchShard, batches
from rnascl_cli.data.augment import Crop
from rnascl_cli.recipes.adversarial import METHODS
from rnascl_cli.stages.search.step import split_batch
from rnascl_cli.stages.training.adversarial import perturb, starting_offset
from tests.engine.toy import image_set
from tests.ranks import become

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.mark.parametrize(("whole", "count"), [*itertools.product([5, 8, 16, 33], [1, 2, 3, 5])])
def test_shares_are_a_partition_whatever_the_cut(whole: int, count: int) -> None:
    images_B = torch.arange(whole)
    shares = [BatchShard(whole, first, count) for first in range(count)]
    assert torch.cat([share.of(images_B) for share in shares]).sort().values.equal(images_B)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for share in shares:
        own_B = share.of(images_B)
        assert len(own_B) == len(share)
        for cut in range(count, whole - count + 1):
            first, second = share.split(cut)
            assert first.of(images_B[:cut]).equal(own_B[: len(first)])
            assert second.of(images_B[cut:]).equal(own_B[len(first) :])
            assert min(len(first), len(second)) >= 1


def test_means_over_parts_add_up() -> None:
    values_B = torch.arange(13.0) ** 2
    total = 0.0
    for share in [BatchShard(13, first, 3) for first in range(3)]:
        part, _ = share.split(4)
        mean = part.of(values_B[:4]).mean()
        total += len(share) * float(share.reweight({"x": mean}, part)["x"])
    assert total / 13 == pytest.approx(float(values_B[:4].mean()))


@pytest.mark.parametrize("count", [2, 3])
def test_the_batches_of_all_ranks_are_those_of_one(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    images = image_set(23)

    def parts(batch: int) -> tuple[int, int]:
        cut = split_batch(batch, 0.6)
        return cut, batch - cut

    def made() -> list[tuple[Tensor, Tensor, Tensor, BatchShard]]:
        found = batches(
            images,
            batch_size=9,
            generator=torch.Generator().manual_seed(3),
            augment=Crop(),
            device=CPU,
            behind=1,
            parts=parts,
        )
        return [(batch.x_BCHW, batch.y_B, batch.views_B, batch.shard) for batch in found]

    alone = made()
    assert [share for *_, share in alone] == [BatchShard(9), BatchShard(5)]
    of_ranks = []
    for number in range(count):
        become(monkeypatch, number, count)
        of_ranks.append(made())
    # 9 images are 5 and 4; of the last batch's 3 and 2, three ranks could not have one each.
    assert [share.replicated for *_, share in of_ranks[0]] == [False, count == 3]
    for place, (x_BCHW, y_B, views_B, whole) in enumerate(alone):
        counted = 0
        for number, found in enumerate(of_ranks):
            x_bCHW, y_b, views_b, share = found[place]
            assert share.of(x_BCHW).equal(x_bCHW)
            assert share.of(y_B).equal(y_b)
            assert share.of(views_B).equal(views_b)
            monkeypatch.setenv("RANK", str(number))
            counted += share.counted
        assert counted == len(whole)


@pytest.mark.parametrize("method", ["trades", "mart", "pgd-at", "fast-at", "fgsm-rs"])
def test_an_image_is_perturbed_alike_on_any_rank(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    x_BCHW, y_B = torch.rand(7, 3, 8, 8, dtype=torch.float64), torch.arange(7) % 3
    settings: Any = METHODS[method]()

    def perturbed(share: BatchShard | None) -> tuple[Tensor, Tensor]:
        noise = torch.Generator().manual_seed(4)
        x, y = (x_BCHW, y_B) if share is None else (share.of(x_BCHW), share.of(y_B))
        offset_BCHW = starting_offset(x, settings, noise=noise, share=share)
        return perturb(model, x, y, settings, offset_BCHW=offset_BCHW), noise.get_state()

    whole_BCHW, after = perturbed(None)
    for number in range(3):
        become(monkeypatch, number, 3)
        share = BatchShard.of_batch(7)
        found_bCHW, left = perturbed(share)
        torch.testing.assert_close(found_bCHW, share.of(whole_BCHW), rtol=0, atol=1e-9)
        assert left.equal(after)  # the next batch's noise is the same, too


def test_a_share_must_be_known_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 0, 2)
    with pytest.raises(AssertionError):
        BatchShard.alone(3)
