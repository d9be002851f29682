"""``rnascl quickstart``."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.artifacts.documents import AdvFinetuneDocument, AttackDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.cli.quickstart import chain
from tests.command import done, files, refused


@pytest.mark.pipeline
@pytest.mark.slow
def test_chain_ends_in_a_report(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    outcome = done("quickstart", "--recipe", "smoke/tiny", "--seed", 3, "--out", out)
    assert outcome.out.strip() == str(out / "report" / "report.html")
    assert (out / "report" / "report.html").stat().st_size > 10_000
    finetuned = read_document(out / "runs" / "trades" / "adv-finetune.json", AdvFinetuneDocument)
    # Each artifact names the command that a user would type to make it again, and the seed reaches the last stage.
    assert finetuned.provenance.command[:2] == ["rnascl", "adv-finetune"]
    assert finetuned.provenance.seed == 3
    attacked = read_document(out / "runs" / "trades" / "attack.json", AttackDocument)
    assert attacked.model_sha256 == finetuned.student_sha256
    before = files(out)
    assert "already exists" in refused("quickstart", "--recipe", "smoke/tiny", "--out", out)
    assert files(out) == before


@pytest.mark.unit
def test_options_reach_their_commands(tmp_path: Path) -> None:
    commands = chain(tmp_path, "smoke/tiny", seed=5, device="cpu", force=True)
    assert [words[0] for words in commands] == [
        *("teacher", "search", "derive", "train", "adv-finetune", "attack", "attack", "report")
    ]
    assert all("--force" in words for words in commands)
    # Later stages take the seed from the artifact they are given.
    assert [words[0] for words in commands if "--seed" in words] == ["teacher", "search"]


@pytest.mark.unit
def test_out_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert "is a file; name a folder" in refused("quickstart", "--out", path)
    assert path.read_text() == "mine"


@pytest.mark.unit
def test_invalid_options_are_refused_before_the_first_step(tmp_path: Path) -> None:
    assert "no recipe of that name" in refused("quickstart", "--recipe", "nope", "--out", tmp_path / "q")
    assert "--device gpu: one of auto, cpu, cuda" in refused("quickstart", "--device", "gpu", "--out", tmp_path / "q")
    assert not (tmp_path / "q").exists()
