"""The page in a real browser, where one is installed: it loads without an error, sorts on click, enlarges figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from rnascl_cli.reporting.collect import collect
from rnascl_cli.reporting.drawing import Plot, Rendered, render
from rnascl_cli.reporting.page import build_page, html
from tests.reporting import factories as make

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
PROBE = """
<script>
addEventListener("load", () => {
  const table = document.getElementById("robustness-a").querySelector("table");
  const column = (name) => Array.from(table.tHead.rows[0].cells).find((cell) => cell.textContent.startsWith(name));
  const names = () => Array.from(table.tBodies[0].rows).map((row) => row.cells[0].textContent);
  const seen = {};
  column("Clean").querySelector("button").click();
  seen.rising = [names(), column("Clean").getAttribute("aria-sort")];
  column("Clean").querySelector("button").click();
  seen.falling = [names(), column("Clean").getAttribute("aria-sort")];
  column("Model").querySelector("button").click();
  seen.named = [names(), column("Clean").getAttribute("aria-sort")];
  seen.images = Array.from(document.images).map((image) => image.complete && image.naturalWidth > 0);
  document.querySelector(".enlarge").click();
  seen.enlarged = document.querySelector("dialog[open] img") !== null;
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    assert BROWSER is not None
    make.write_chain(tmp_path / "runs")
    make.write_attack(tmp_path / "runs" / "other", student="other", clean=0.7, model="other")
    drawn: list[Rendered] = []

    def draw_one(plots: Iterable[Plot]) -> list[Rendered]:
        todo = list(plots)
        drawn.append(render(todo[0]))
        return [Rendered(plot, drawn[0].png, drawn[0].svg, drawn[0].svg_dark) for plot in todo]

    page = build_page(collect([tmp_path / "runs"]), draw=draw_one)
    file = tmp_path / "report.html"
    file.write_text(html(page) + PROBE, encoding="utf-8")
    ran = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    found = re.search(r'data-seen="([^"]*)"', ran.stdout)
    assert found is not None
    seen = json.loads(found.group(1).replace("&quot;", '"'))
    assert seen["rising"] == [["other", "s3-trades", "s3-train"], "ascending"]
    assert seen["falling"] == [["s3-train", "s3-trades", "other"], "descending"]
    assert seen["named"] == [["other", "s3-trades", "s3-train"], None]
    assert seen["enlarged"]
    assert seen["images"]
    assert all(seen["images"])
