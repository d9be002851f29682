"""``rnascl report``: what it writes, what it refuses, and that the page needs nothing but itself."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rnascl_cli.core import progress
from rnascl_cli.core.errors import UserError
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.figures.style import Plot, Rendered
from rnascl_cli.reporting.page import build_page, escape_markdown, fenced, html, markdown
from rnascl_cli.reporting.tables.json_summary import ReportSummary
from rnascl_cli.stages.report import report as stage
from tests.reporting import factories as make
from tests.reporting.watching import watched

FIGURES = {
    "clean-against-robust-a",
    "accuracy-by-attack-a",
    "curves-s3-search",
    "curves-s3-train-train",
    "curves-s3-trades-adv-finetune",
    "hardening-s3",
    "widths-s3",
    "tutor-counts-1",
    "tutor-choices-1",
    "published-and-measured-cifar10",
    "tutors-s3",
}
VOID = {"meta", "link", "img", "source", "input", "br", "hr"}


class Reader(HTMLParser):
    """Checks that tags nest, and gathers what the page refers to and says."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "poster", "data") and value is not None:
                self.references.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open[-1:] and "style" not in self.open[-1:]:
            self.words += data


def read(text: str) -> Reader:
    """Return what a page holds."""
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


def undrawn(plots: Iterable[Plot]) -> list[Rendered]:
    """Stand in for the drawing, which takes time."""
    return [Rendered(plot, b"png", b"svg", b"dark") for plot in plots]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportSummary]:
    root = tmp_path_factory.mktemp("report")
    runs = make.write_chain(root / "runs")
    return root / "report", stage.report([runs], out=root / "report")


def test_it_writes_page_markdown_and_figures(reported: tuple[Path, ReportSummary]) -> None:
    folder, summary = reported
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.{ending}" for name in FIGURES for ending in ("png", "svg")}
    assert written == {"report.md", "report.html"} | figures == set(summary.files)


def test_the_page_is_self_contained(reported: tuple[Path, ReportSummary]) -> None:
    folder, _ = reported
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = read(text)
    assert page.references
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert page.tags.count("table") >= 3
    assert page.tags.count("img") == 2 * len(FIGURES)  # light and dark
    anchors = [reference[1:] for reference in page.references if reference.startswith("#")]
    assert set(anchors) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_no_machine_path_but_those_of_the_commands(reported: tuple[Path, ReportSummary]) -> None:
    folder, _ = reported
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert str(folder.parent) not in text
        assert "/somewhere" not in text
        assert "/images" not in text.replace("images/s", "")


def test_the_markdown_links_its_figures_and_its_tables_are_even(reported: tuple[Path, ReportSummary]) -> None:
    folder, _ = reported
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {f"figures/{name}.png" for name in FIGURES} <= set(links)
    assert all((folder / link).is_file() for link in links)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
        assert "---" in block.splitlines()[1]


def test_progress_ends_at_its_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(monkeypatch, stage)
    monkeypatch.setattr(stage, "render", lambda plot: undrawn([plot])[0])
    for name in ("a", "b", "c"):
        make.write_search(tmp_path / "runs" / name)
    summary = stage.report([tmp_path / "runs"])
    figures = len([name for name in summary.files if name.endswith(".png")])
    assert figures >= 3
    assert shown == [("drawing figures", figures, figures)]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_shown_on_a_terminal_only(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, record=True)
    monkeypatch.setattr(progress, "stderr", console)
    monkeypatch.setattr(stage, "render", lambda plot: undrawn([plot])[0])
    make.write_search(tmp_path / "runs" / "a")
    stage.report([tmp_path / "runs"])
    assert ("drawing figures" in console.export_text()) is terminal


def test_warnings_are_loud(reported: tuple[Path, ReportSummary]) -> None:
    folder, summary = reported
    assert len(summary.warnings) == 1
    assert "> **⚠ Robust accuracies may be wrong" in (folder / "report.md").read_text(encoding="utf-8")
    assert 'role="alert"' in (folder / "report.html").read_text(encoding="utf-8")


def test_the_summary_is_typed(reported: tuple[Path, ReportSummary]) -> None:
    _, summary = reported
    assert ReportSummary.model_validate_json(summary.model_dump_json()) == summary
    robust = next(model for model in summary.models if model.name == "s3-trades")
    assert robust.attacks[0].worst_case_accuracy == 0.38
    assert robust.params == make.architecture().params


def test_an_existing_folder_is_not_touched_without_force(tmp_path: Path) -> None:
    make.write_attack(tmp_path / "run", student="a")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already exists"):
        stage.report([tmp_path / "run"])
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is a file"):
        stage.report([tmp_path / "run"], out=tmp_path / "report" / "mine.txt")


def test_force_replaces_the_older_report_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_draw", undrawn)
    make.write_chain(tmp_path / "runs")
    out = tmp_path / "report"
    stage.report([tmp_path / "runs"], out=out)
    (out / "figures" / "mine.png").write_bytes(b"mine")
    stage.report([tmp_path / "runs" / "s3"], out=out, force=True)
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"curves-s3-search", "hardening-s3", "widths-s3", "tutors-s3", "mine"}


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="no run found"):
        stage.report([tmp_path / "runs"], out=tmp_path / "report")
    (tmp_path / "runs" / "a" / "attack.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"a/attack\.json"):
        stage.report([tmp_path / "runs"], out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_default_folder_lies_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_draw", undrawn)
    monkeypatch.chdir(tmp_path)
    make.write_search(tmp_path / "runs" / "s3")
    assert stage.report([Path("runs")]).out == "report"
    assert (tmp_path / "report" / "report.html").is_file()
    assert stage.report([Path("runs/s3")]).out == "runs/report"


def test_whatever_a_run_is_called_is_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    make.write_train(tmp_path / "runs" / "<script>alert(1)<" / "b>|c* `d`", student="a")
    make.write_attack(tmp_path / "runs" / "x", student="other", model=name.replace("/", "|"), warnings=["<img src=x>"])
    page = build_page(collect([tmp_path / "runs"]), draw=undrawn)
    read_page = read(html(page))
    assert read_page.tags.count("script") == 1
    assert "<script>alert(1)<|script>" in read_page.words
    assert "<img src=x>" in read_page.words
    text = markdown(page)
    assert "<script>" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "&lt;img src=x&gt;" in text


def test_markdown_escapes() -> None:
    assert escape_markdown("a|b_c*d") == r"a\|b\_c\*d"
    assert escape_markdown("41.2 [37.0, 45.6]") == "41.2 [37.0, 45.6]"
    assert escape_markdown("[x](y)") == r"\[x\](y)"
    assert escape_markdown("- a\nb") == r"\- a b"
    assert escape_markdown("+5.0") == "+5.0"
    assert fenced("a ``` b") == "````\na ``` b\n````"


@pytest.mark.parametrize("paper", [False, True])
def test_a_lone_search_gives_a_report_that_says_what_is_missing(tmp_path: Path, paper: bool) -> None:
    make.write_search(tmp_path / "s3")
    page = build_page(collect([tmp_path]), paper=paper, draw=undrawn)
    words = read(html(page)).words
    assert "No attack run is given, so robust accuracy is unknown." in words
    assert "searched only" in words
    assert ("Table 6" in words) is paper
    assert "No attack run is given" in markdown(page)


def test_a_run_without_history_says_so(tmp_path: Path) -> None:
    make.write_search(tmp_path / "s3", epochs=0)
    page = build_page(collect([tmp_path]), draw=undrawn)
    assert "No training curves of s3 (search): no history was recorded." in read(html(page)).words


def test_runs_whose_names_look_alike_keep_their_figures(tmp_path: Path) -> None:
    make.write_search(tmp_path / "a b", seed=0)
    make.write_search(tmp_path / "a-b", seed=1)
    page = build_page(collect([tmp_path]), draw=undrawn)
    assert {"hardening-a-b", "hardening-a-b-2"} <= set(page.drawn)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rnascl_cli.cli import report as command
    from rnascl_cli.cli.app import run

    monkeypatch.setattr(stage, "_draw", undrawn)
    make.write_attack(tmp_path / "run", student="a", warnings=["masked"])
    command.command([tmp_path / "run"], out=tmp_path / "one")
    assert capsys.readouterr().out == f"{tmp_path / 'one'}\n"
    assert run(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "run"), "--out", str(tmp_path / "one")]) == 2
    assert "--force" in capsys.readouterr().err


def test_the_commands_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rnascl_cli.cli import report as command

    monkeypatch.setattr(stage, "_draw", undrawn)
    make.write_attack(tmp_path / "run", student="a", warnings=["masked"])
    command.command([tmp_path / "run"], out=tmp_path / "two", json=True)
    assert json.loads(capsys.readouterr().out)["warnings"] == ["model (pixel, unknown origin): masked"]
