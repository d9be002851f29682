"""A search under a budget ends within it; one for a front leaves networks of every size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.artifacts.documents import BudgetRecord, DerivedDocument, SearchDocument, TrainDocument
from rnascl_cli.artifacts.store import parse_document, read_document, sha256_file
from rnascl_cli.cli.run import EXIT_INTERRUPTED
from rnascl_cli.recipes.settings import CostSettings, SearchSettings
from rnascl_cli.spaces import SPACES, Budget, NetworkSpace
from rnascl_cli.stages.search.budget import search_cost
from rnascl_cli.stages.search.derive import derive
from rnascl_cli.stages.search.step import SearchStep
from tests.command import Outcome, done, files, refused, rnascl
from tests.conftest import FAST
from tests.stages.interruptions import interrupted

pytestmark = pytest.mark.pipeline

SPACE = SPACES["S3"]
NETWORKS = NetworkSpace(SPACE, num_classes=10)
FOR_THE_WIDEST = [[float(width) for width in choices] for choices in SPACE.block_choices]
# Choices that move within a few steps.
QUICK = ["--set", "gumbel_optimiser.name=adam", "--set", "gumbel_optimiser.lr=0.3"]
LONG = ["--limit-train", 80, "--limit-test", 20, "--epochs", 4, *FAST, *QUICK]
STANDARD = ["search", "--space", "S3", "--data", "digits", "--paradigm", "standard", "--seed", 3]
POINTS = 4


def searched(out: Path, *options: object) -> SearchDocument:
    done(*STANDARD, *options, "--out", out)
    return read_document(out / "search.json", SearchDocument)


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search for at most 5 M MACs and 0.115 M params."""
    out = tmp_path_factory.mktemp("tight") / "run"
    searched(out, *LONG, "--max-macs", "5M", "--max-params", "0.115M")
    return out


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, small: list[object]) -> tuple[Path, Outcome]:
    """A search with tutors for a front of four networks, and what it said."""
    out = tmp_path_factory.mktemp("front") / "run"
    return out, done(*front_options(tiny_teacher, small, out))


def front_options(tiny_teacher: Path, small: list[object], out: Path) -> list[object]:
    options: list[object] = ["search", "--space", "S3", "--data", "digits", "--teacher", tiny_teacher, "--seed", 3]
    return [*options, "--epochs", 2, "--pareto", POINTS, *small, "--out", out]


def changed(source: Path, out: Path, **changes: Any) -> Path:
    """A copy of a run's search.json with other fields."""
    raw = json.loads((source / "search.json").read_text())
    out.mkdir()
    (out / "search.json").write_text(json.dumps(raw | changes))
    return out


def test_the_budget_is_recorded_and_kept(tight: Path) -> None:
    found = read_document(tight / "search.json", SearchDocument)
    assert found.budget == BudgetRecord(max_macs=5_000_000, max_params=115_000)
    assert found.pareto is None
    derived = derive(tight)
    assert derived.architecture.macs <= 5_000_000
    assert derived.architecture.params <= 115_000
    assert (derived.budget, derived.point) == (found.budget, None)
    assert derived.architecture.widths == NETWORKS.most_likely(found.width_logits, Budget(5_000_000, 115_000)).widths


def test_logits_that_all_favour_the_widest_end_within_it_too(tight: Path, tmp_path: Path) -> None:
    source = changed(tight, tmp_path / "run", width_logits=FOR_THE_WIDEST)
    derived = derive(source)
    assert derived.architecture.widths != SPACE.largest
    assert derived.architecture.macs <= 5_000_000
    assert derived.architecture.params <= 115_000
    trained = done("train", source, "--epochs", 1, *FAST, "--out", tmp_path / "train", "--json")
    assert json.loads(trained.out)["architecture"] == derived.architecture.model_dump()
    assert read_document(tmp_path / "train" / "derived.json", DerivedDocument).budget == derived.budget


def test_the_search_moves_toward_its_budget(tight: Path, tmp_path: Path) -> None:
    loose = searched(tmp_path / "loose", *LONG, "--max-macs", "7.9M").history  # the widest network has 7.87 M
    history = read_document(tight / "search.json", SearchDocument).history
    assert [entry["n_f"] for entry in loose] == pytest.approx([1.0] * 4)  # within it everything is free
    macs, loosely = ([entry["expected_macs"] for entry in entries] for entries in (history, loose))
    assert macs[-1] < macs[1] < macs[0]
    assert abs(macs[-1] - 5e6) < 0.5 * abs(macs[0] - 5e6)
    assert macs[-1] < loosely[-1] - 0.5e6


@pytest.mark.parametrize(
    ("settings", "aims"),
    [
        ({}, {"macs": None}),
        ({"cost": CostSettings(measure="params")}, {"params": None}),
        ({"cost": CostSettings(target=6e6)}, {"macs": 6e6}),
        ({"max_macs": 5_000_000}, {"macs": 5e6}),
        ({"max_params": 120_000}, {"params": 120e3}),
        ({"max_macs": 5_000_000, "max_params": 120_000}, {"macs": 5e6, "params": 120e3}),
        ({"max_macs": 5_000_000, "cost": CostSettings(target=6e6)}, {"macs": 6e6}),  # asked for, so that it is used
        ({"max_macs": 9_000_000}, {"macs": NETWORKS.largest.macs}),  # more than any network has
        ({"pareto": 3}, {"macs": None}),
        ({"pareto": 3, "max_macs": 5_000_000, "max_params": 120_000}, {"macs": None, "params": 120e3}),
    ],
)
def test_where_the_pressure_aims(settings: dict[str, Any], aims: dict[str, float | None]) -> None:
    found = search_cost(SearchSettings(**settings), SPACE, num_classes=10, input_size=32)
    targets = dict(zip((cost.measure for cost in found.penalty.costs), found.penalty.targets, strict=True))
    assert targets == aims
    assert (found.sampler is not None) == ("pareto" in settings)
    if found.sampler is not None:
        assert found.sampler.high == settings.get("max_macs", NETWORKS.range(Budget())[1])


def test_a_front_is_left_in_the_run(front: tuple[Path, Outcome]) -> None:
    out, said = front
    assert set(files(out)) == {
        "search.json",
        "metrics.jsonl",
        "checkpoint.pt",
        *(f"pareto/{index}.json" for index in range(1, POINTS + 1)),
    }
    found = read_document(out / "search.json", SearchDocument)
    assert (found.pareto, found.budget) == (POINTS, None)
    points = [read_document(out / "pareto" / f"{index}.json", DerivedDocument) for index in range(1, POINTS + 1)]
    macs = [point.architecture.macs for point in points]
    low, high = NETWORKS.range()
    assert macs == sorted(set(macs))
    for index, (point, count) in enumerate(zip(points, macs, strict=True)):
        assert low + (high - low) * index / POINTS - 1 <= count <= low + (high - low) * (index + 1) / POINTS
        assert point.point is not None
        assert (point.point.index, point.point.of) == (index + 1, POINTS)
        assert point.tutors is not None
        assert point.provenance.inputs == {"search.json": sha256_file(out / "search.json")}
    lines = [line.split() for line in said.err.splitlines() if line.strip()[:2] in ("1 ", "2 ", "3 ", "4 ")]
    assert [(line[0], line[2]) for line in lines] == [(str(k), f"{count / 1e6:.2f}") for k, count in enumerate(macs, 1)]


def test_each_point_is_derived_again_and_trained(front: tuple[Path, Outcome], tmp_path: Path) -> None:
    out, _ = front
    for index in range(1, POINTS + 1):
        again = parse_document(done("derive", out, "--point", index).out, DerivedDocument, where="stdout")
        kept = read_document(out / "pareto" / f"{index}.json", DerivedDocument)
        assert again.model_copy(update={"provenance": kept.provenance}) == kept
    for index in (1, POINTS):
        source, trained = out / "pareto" / f"{index}.json", tmp_path / str(index)
        assert done("train", source, "--epochs", 1, *FAST, "--out", trained).out == f"{trained}\n"
        found = read_document(trained / "train.json", TrainDocument)
        assert found.architecture == read_document(source, DerivedDocument).architecture
    assert derive(out).point is None


def test_expected_macs_are_those_of_the_logits_alone(front: tuple[Path, Outcome], searched: dict[str, Path]) -> None:
    """The first epoch's: before the choices have moved, a search for a front expects what any other does."""
    found, plain = (
        json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (front[0], searched["rnas-cl"])
    )
    assert found["expected_macs"] == pytest.approx(plain["expected_macs"], rel=0.02)
    assert 0 < found["n_f"] <= 1


def test_stopped_inside_an_epoch_and_resumed_it_is_the_same(
    front: tuple[Path, Outcome],
    tmp_path: Path,
    tiny_teacher: Path,
    small: list[object],
) -> None:
    out, whole = tmp_path / "run", front[0]
    arguments = [*front_options(tiny_teacher, small, out), "--set", "checkpoint_minutes=1e-9"]  # after each step
    with interrupted(SearchStep, method="architecture_step", before_call=1):
        assert rnascl(*arguments).code == EXIT_INTERRUPTED
    assert set(files(out)) == {"checkpoint.pt"}  # of the first step, inside the first epoch
    done(*arguments, "--resume")
    one, two = (read_document(run / "search.json", SearchDocument) for run in (whole, out))
    assert one.width_logits == two.width_logits
    assert one.tutor_logits == two.tutor_logits
    for index in range(1, POINTS + 1):
        points = [read_document(run / "pareto" / f"{index}.json", DerivedDocument) for run in (whole, out)]
        assert points[0].architecture == points[1].architecture
        assert points[0].tutors == points[1].tutors
    # Killed between search.json and the last of the front.
    (out / "pareto" / "3.json").unlink()
    before = {name: content for name, (content, _) in files(out).items()}
    assert "already finished" in done(*arguments, "--resume").err
    assert read_document(out / "pareto" / "3.json", DerivedDocument).architecture.macs < points[0].architecture.macs
    assert {name: content for name, (content, _) in files(out).items() if name in before} == before


def test_an_older_front_does_not_outlive_its_search(tmp_path: Path, small: list[object]) -> None:
    out = tmp_path / "run"
    searched(out, "--epochs", 1, *small, "--pareto", 3)
    (out / "pareto" / "notes.txt").write_text("mine")
    searched(out, "--epochs", 1, *small, "--force")
    assert {path.name for path in (out / "pareto").iterdir()} == {"notes.txt"}


def test_a_front_is_not_written_through_a_link(tmp_path: Path, small: list[object]) -> None:
    out = tmp_path / "run"
    searched(out, "--epochs", 1, *small)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.json").write_text("precious")
    (out / "pareto").symlink_to(tmp_path / "elsewhere")
    before = files(out)
    line = refused(*STANDARD, "--epochs", 1, *small, "--pareto", 3, "--out", out, "--force")
    assert "its pareto is a link" in line
    assert files(out) == before
    searched(out, "--epochs", 1, *small, "--force")  # writes no front
    assert (tmp_path / "elsewhere" / "1.json").read_text() == "precious"


IMPOSSIBLE: dict[str, tuple[list[object], str]] = {
    "macs": (["--max-macs", "4M"], "--max-macs: 4,000,000 MACs are fewer than the 4,743,304 of the smallest network"),
    "params": (["--max-params", "1k"], "--max-params: 1,000 params are fewer than the"),
    "points": (["--max-macs", "4.75M", "--pareto", 9], "--pareto 9: space S3 has no network in 8 of 9 even bands"),
    "a recipe's": (["--set", "max_macs=9"], "--max-macs: 9 MACs are fewer than"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_no_network_keeps_is_refused_before_the_search(tmp_path: Path, small: list[object], case: str) -> None:
    options, message = IMPOSSIBLE[case]
    assert message in refused(*STANDARD, *small, *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_budget_for_the_same_search(tight: Path) -> None:
    recorded = derive(tight)
    wider = json.loads(done("derive", tight, "--max-macs", "7M").out)
    assert wider["budget"] == {"max_macs": 7_000_000, "max_params": 115_000}  # the other limit stays
    assert wider["architecture"]["params"] <= 115_000
    least = NETWORKS.smallest
    narrower = derive(tight, budget=Budget(least.macs, least.params))
    assert narrower.architecture.widths == SPACE.smallest
    assert (narrower.tutors, narrower.paradigm) == (recorded.tutors, recorded.paradigm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-macs", "1M"], "--max-macs: 1,000,000 MACs are fewer than the 4,743,304 of the smallest network"),
        (["--max-params", "1"], "--max-params: 1 params are fewer than"),
        (["--max-macs", "8X"], "--max-macs: '8X' is not a number; write 8M, 0.2M, 900k or 8e6"),
        (["--point", 1], "was searched for one network; search with --pareto N"),
        (["--point", 0], "--point"),
    ],
)
def test_derive_refuses_what_cannot_be(tight: Path, options: list[object], message: str) -> None:
    assert message in refused("derive", tight, *options)


def test_a_point_beyond_the_front(front: tuple[Path, Outcome]) -> None:
    assert "has points 1 to 4" in refused("derive", front[0], "--point", 5)


def test_a_point_under_a_budget_of_its_own(front: tuple[Path, Outcome]) -> None:
    """The levels then go up to the budget."""
    points = [derive(front[0], budget=Budget(6_000_000), point=index) for index in (1, POINTS)]
    assert points[0].architecture.macs < points[1].architecture.macs <= 6_000_000
    assert points[1].architecture.macs > 5_600_000


def test_a_recorded_budget_that_no_network_keeps_names_the_file(tight: Path, tmp_path: Path) -> None:
    source = changed(tight, tmp_path / "run", budget={"max_macs": 5, "max_params": None})
    assert f"{source / 'search.json'}: budget.max_macs: 5 MACs are fewer" in refused("derive", source)
    source = changed(tight, tmp_path / "none", budget={"max_macs": None, "max_params": None})
    assert "a budget has max_macs or max_params" in refused("derive", source)


def test_searches_from_before_budgets_are_read(searched: dict[str, Path], tmp_path: Path) -> None:
    raw = json.loads((searched["standard"] / "search.json").read_text())
    del raw["budget"], raw["pareto"]
    (tmp_path / "search.json").write_text(json.dumps(raw))
    derived = derive(tmp_path)
    assert derived.architecture == derive(searched["standard"]).architecture
    assert (derived.budget, derived.point) == (None, None)


def test_tutors_of_hand_go_with_a_point(front: tuple[Path, Outcome], tmp_path: Path) -> None:
    shutil.copytree(front[0], tmp_path / "run")
    control = derive(tmp_path / "run", tutors="last-layer", point=2)
    assert control.tutors is not None
    assert control.tutors.origin == "last-layer"
    kept = read_document(front[0] / "pareto" / "2.json", DerivedDocument)
    assert control.architecture == kept.architecture
