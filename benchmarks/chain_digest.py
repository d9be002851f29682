"""Run a fixed smoke chain and print digests of its numbers, to compare two checkouts on one machine.

    python -m benchmarks.chain_digest --out /tmp/before.json      # in the first checkout
    python -m benchmarks.chain_digest --out /tmp/after.json       # in the second one
    diff /tmp/before.json /tmp/after.json

The chain runs in float32 on one CPU thread. A digest covers tensors, attack verdicts or tables, not a file's header,
because headers hold commands and versions. Digests of different machines or torch versions are not comparable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

TINY = ["--recipe", "smoke/tiny", "--precision", "fp32", "--device", "cpu"]
ATTACKS = "fgsm,mi-fgsm,pgd5,cw,aa"


def chain(work: Path) -> list[list[str]]:
    """Return the commands of the chain, each as its arguments."""
    teacher = ["--teacher", str(work / "teacher.safetensors")]
    runs = work / "runs"
    gamma = ["--set", "search.attention.gamma=400", "--set", "train.attention.gamma=400"]
    names = ["search", "derived", "train", "trades"]
    search, derived, train, trades = (str(runs / name) for name in names)
    return [
        ["teacher", "train", *TINY, "--out", teacher[1]],
        ["search", *TINY, *gamma, *teacher, "--out", search],
        ["search", *TINY, *teacher, "--robust", "trades", "--max-macs", "5M", "--out", str(runs / "robust-search")],
        ["search", *TINY, "--paradigm", "standard", "--out", str(runs / "standard-search")],
        ["derive", search, "--out", derived],
        ["train", derived, *TINY, *gamma, "--out", train],
        ["train", derived, *TINY, "--distill", "crd", "--out", str(runs / "crd")],
        ["train", derived, *TINY, "--distill", "at", "--out", str(runs / "at")],
        *(
            ["adv-finetune", train, *TINY, "--method", method, "--out", str(runs / method)]
            for method in ("trades", "mart", "pgd-at", "fast-at", "rslad", "ard")
        ),
        ["attack", train, *TINY, "--attack", ATTACKS, "--audit", "--limit-test", "30"],
        ["attack", trades, *TINY, "--attack", "fgsm,pgd5", "--protocol", "paper-code", "--limit-test", "30"],
        ["report", str(runs), "--out", str(work / "report")],
    ]


def tensors_digest(path: Path) -> str:
    """Return the sha256 over names, shapes and bytes of all tensors in a safetensors file, sorted by name."""
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            array = file.get_tensor(name)
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def attack_numbers(path: Path) -> dict[str, Any]:
    """Return an attack document's accuracies and the digest of its verdicts."""
    document = json.loads(path.read_text())
    accuracies = {f"{row['attack']} {row['eps']}": row["accuracy"] for row in document["results"]}
    return {"accuracies": accuracies, "verdicts": text_digest(json.dumps(document["verdicts"], sort_keys=True))}


def search_numbers(path: Path) -> str:
    document = json.loads(path.read_text())
    keys = ("width_logits", "tutor_logits", "temperature", "expected_macs")
    return text_digest(json.dumps([document[key] for key in keys]))


def report_numbers(path: Path) -> list[str]:
    """Return the accuracies with intervals in the report's tables, in order; words and timings may change."""
    rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return re.findall(r"\d+\.\d+ \[[^\]]+\]", "\n".join(rows))


def digests(work: Path) -> dict[str, Any]:
    """Return the digests of everything that the chain left in ``work``."""
    return {
        "tensors": {str(p.relative_to(work)): tensors_digest(p) for p in sorted(work.rglob("*.safetensors"))},
        "searches": {str(p.relative_to(work)): search_numbers(p) for p in sorted(work.rglob("search.json"))},
        "attacks": {str(p.relative_to(work)): attack_numbers(p) for p in sorted(work.rglob("attack.json"))},
        "report": report_numbers(work / "report" / "report.md"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the digests")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RNASCL_CACHE": str(work / "cache")}
        for arguments in chain(work):
            print(f"$ rnascl {' '.join(arguments)}", file=sys.stderr)
            subprocess.run(
                [sys.executable, "-m", "rnascl_cli", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL
            )
        out.write_text(json.dumps(digests(work), indent=1) + "\n")


if __name__ == "__main__":
    main()
