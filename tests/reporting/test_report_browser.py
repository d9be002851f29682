"""The page in a real browser, where one is installed: no error, tables filled, figures there, sorts on click."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.figures.style import Plot, Rendered, render
from rnascl_cli.reporting.page import build_page, html
from tests.reporting import factories as make

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PROBE = """
<script>
addEventListener("load", () => {
  const seen = { errors: [] };
  addEventListener("error", (event) => seen.errors.push(event.message));
  const table = document.getElementById("summary-a").querySelector("table");
  const column = (name) => Array.from(table.tHead.rows[0].cells).find((cell) => cell.textContent.startsWith(name));
  const names = () => Array.from(table.tBodies[0].rows).map((row) => row.cells[0].textContent);
  const sort = (name) => {
    const button = column(name).querySelector("button");
    button.focus(); // what Enter and the space bar press is what has the focus
    seen.focused = document.activeElement === button && button.tabIndex === 0;
    document.activeElement.click();
    return [names(), column(name).getAttribute("aria-sort")];
  };
  seen.rising = sort("Clean");
  seen.falling = sort("Clean");
  seen.named = [...sort("Model"), column("Clean").getAttribute("aria-sort")];
  seen.tables = Array.from(document.querySelectorAll("table")).map((one) => [
    one.closest("figure").id,
    one.tBodies[0].rows.length,
    Array.from(one.tBodies[0].rows).every((row) => row.cells.length === one.tHead.rows[0].cells.length),
  ]);
  const figures = Array.from(document.querySelectorAll("figure.plot"));
  seen.figures = figures.length;
  seen.images = Array.from(document.images).map((image) => image.complete && image.naturalWidth > 0);
  const visible = () => figures.map((figure) =>
    Array.from(figure.querySelectorAll("img")).filter((image) => getComputedStyle(image).display !== "none")
      .map((image) => image.className).join());
  seen.light = visible();
  document.querySelector(".theme").click();
  document.querySelector(".theme").click();
  seen.dark = visible();
  seen.darkPaper = getComputedStyle(document.body).backgroundColor;
  document.querySelector(".enlarge").click();
  const dialog = document.querySelector("dialog");
  const title = () => dialog.querySelector("h3").textContent;
  seen.enlarged = [dialog.open, dialog.querySelectorAll("img").length, title()];
  dialog.querySelector(".after").click();
  seen.next = title();
  seen.titles = figures.map((figure) => figure.querySelector("h3").textContent);
  dialog.close();
  const link = document.querySelector("#summary-a tbody a");
  location.hash = link.hash;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  const asked = performance.getEntriesByType("resource").map((one) => one.name);
  seen.requests = asked.filter((one) => !/^(data|file):/.test(one));
  setTimeout(() => {
    seen.open = document.getElementById(link.hash.slice(1)).open;
    document.body.dataset.seen = JSON.stringify(seen);
  }, 50);
});
</script>
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser to look with: none of {', '.join(NAMES)} is installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a chain of runs with an audit, its figures all alike to save time."""
    folder = tmp_path_factory.mktemp("browser")
    make.write_chain(folder / "runs")
    make.write_attack(folder / "runs" / "other", student="other", clean=0.7, model="other", audit=make.card())
    drawn: list[Rendered] = []

    def draw_one(plots: Iterable[Plot]) -> list[Rendered]:
        todo = list(plots)
        drawn.append(render(todo[0]))
        return [Rendered(plot, drawn[0].png, drawn[0].svg, drawn[0].svg_dark) for plot in todo]

    file = folder / "report.html"
    text = html(build_page(collect([folder / "runs"]), paper=True, draw=draw_one))
    file.write_text(text + PROBE, encoding="utf-8")
    return file


def look(page: Path, profile: Path, *options: str) -> dict[str, Any]:
    """Open the page and return what the probe saw."""
    assert BROWSER is not None
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=4000"]
    ran = subprocess.run(
        [BROWSER, *always, f"--user-data-dir={profile}", *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    found = re.search(r'data-seen="([^"]*)"', ran.stdout)
    assert found is not None
    seen: dict[str, Any] = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    return seen


def test_the_page_works_in_a_browser(page: Path, tmp_path: Path) -> None:
    seen = look(page, tmp_path, "--window-size=1400,1000")
    assert seen["errors"] == []
    assert seen["rising"] == [["other", "s3-trades", "s3-train"], "ascending"]
    assert seen["falling"] == [["s3-train", "s3-trades", "other"], "descending"]
    assert seen["named"] == [["other", "s3-trades", "s3-train"], "ascending", None]
    assert seen["focused"]
    assert all(rows > 0 and whole for _, rows, whole in seen["tables"]), seen["tables"]
    assert {"summary-a", "attacks-a", *(f"table-{number}-clean" for number in (3, 5, 6))} <= {
        name for name, _, _ in seen["tables"]
    }
    assert seen["figures"] > 8
    assert seen["images"]
    assert all(seen["images"])
    assert set(seen["light"]) == {"light"}
    assert set(seen["dark"]) == {"dark"}
    assert seen["darkPaper"] == "rgb(20, 23, 27)"
    assert seen["enlarged"] == [True, 2, seen["titles"][0]]
    assert seen["next"] == seen["titles"][1]
    assert seen["open"]
    assert seen["requests"] == []


@pytest.mark.parametrize("width", [500, 2400])
def test_the_page_is_never_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    assert look(page, tmp_path, f"--window-size={width},900")["overflow"] <= 0
