"""What is fuzzed: every reader of files, each with good files to start from.

A reader may accept what it is given or refuse it by a UserError that names the file. All else is a finding.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from rnascl_cli.artifacts.documents import DOCUMENTS
from rnascl_cli.artifacts.store import document_json, parse_document, read_any_document
from rnascl_cli.attacks.resume import Journal
from rnascl_cli.core.errors import LONGEST_LINE, UserError, one_line
from rnascl_cli.data.decode import Shape, decode
from rnascl_cli.engine.checkpoint import read_checkpoint as read_own_checkpoint
from rnascl_cli.loading import resolve_model
from rnascl_cli.recipes.load import STUDIES, parse_setting, read_recipe_file, recipes_folder, resolve
from rnascl_cli.recipes.settings import Recipe
from rnascl_cli.recipes.study import read_study
from rnascl_cli.reporting.data.collect import collect
from rnascl_cli.reporting.figures.style import LIGHT, Plot, Rendered
from rnascl_cli.reporting.page import build_page, html, markdown
from rnascl_cli.stages.search.derive import derive
from rnascl_cli.stages.study.plan import plan_study
from rnascl_cli.teachers.load import read_checkpoint

JOURNAL_HEADER = {"model_sha256": "a" * 64, "images": [0, 1, 2], "seed": 0}
RUNS = {"search": "search", "derived": "train", "train": "train", "adv-finetune": "fine", "attack": "attack"}


class FindingError(AssertionError):
    """A reader did something else than accept or refuse."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: For the command line.
        file: The name the input is written under; its ending decides how it is read.
        seeds: Good inputs, from the good world.
        read: Reads the file, within a folder of its own.
        structured: Whether inputs are JSON, and worth changing value by value.
    """

    name: str
    file: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    structured: bool = False

    def attempt(self, data: bytes, folder: Path) -> bool:
        """Read ``data``; return whether it was accepted.

        Raises:
            FindingError: It ended in anything but acceptance or a UserError naming the file.
        """
        path = folder / self.file
        path.write_bytes(data)
        try:
            self.read(path)
        except UserError as error:
            line = one_line(str(error))
            if len(line) > LONGEST_LINE or not line.isprintable():
                raise FindingError(f"the message is no clear line: {line!r}") from error
            if self.file not in str(error) and "--set" not in str(error) and "recipe key" not in str(error):
                raise FindingError(f"the message names neither file nor key: {line!r}") from error
            return False
        except (Exception, SystemExit) as error:
            raise FindingError(f"{type(error).__name__}: {str(error)[:200]}") from error
        return True


def _documents(world: Path) -> list[bytes]:
    return [(world / folder / f"{kind}.json").read_bytes() for kind, folder in RUNS.items()]


def _read_document(path: Path) -> None:
    """Read a document of any kind, write it, and read it again; derive where it is a search."""
    document = read_any_document(path)
    assert parse_document(document_json(document), type(document), where="again") == document
    if document.kind == "search":
        derive(path)


def _read_report(path: Path) -> None:
    """Put the document among good ones and make the report of them, figures drawn but not saved."""
    document = read_any_document(path)
    folder = path.parent / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path.parent.parent / "world", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.move(path, folder / RUNS[document.kind] / f"{document.kind}.json")
    page = build_page(collect([folder]), draw=_sketch)
    assert "<script" not in html(page).replace("<script>", "", html(page).count("<script>"))
    markdown(page)


def _sketch(plots: Iterable[Plot]) -> list[Rendered]:
    drawn = []
    for plot in plots:
        figure = Figure(figsize=plot.size)
        plot.draw(figure, LIGHT)
        drawn.append(Rendered(plot, b"", b"", b""))
    return drawn


def _weights(world: Path) -> list[bytes]:
    return [(world / name).read_bytes() for name in ("r8.safetensors", "train/student.safetensors")]


def _checkpoints(world: Path) -> list[bytes]:
    state = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2), "mu": torch.zeros(3), "sigma": torch.ones(3)}
    found = []
    for content in (state, {"state_dict": state, "epoch": 3}):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=new)
            found.append(buffer.getvalue())
    return found


def _read_own_checkpoint(path: Path) -> None:
    read_own_checkpoint(path, torch.device("cpu"))


def _recipes(world: Path) -> list[bytes]:
    found = sorted(path for path in recipes_folder().rglob("*.toml") if path.parent.name != STUDIES)
    return [path.read_bytes() for path in found[::4]]


def _read_recipe(path: Path) -> None:
    recipe = resolve([read_recipe_file(path)])
    assert resolve([recipe.model_dump(mode="json")]) == recipe


def _studies(world: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((recipes_folder() / STUDIES).glob("*.toml"))]


def _read_study(path: Path) -> None:
    study = read_study(path)
    try:
        plan_study(study)
    except UserError as error:  # about settings, which have no file of their own
        raise UserError(f"{path}: {error}") from None


def _settings(world: Path) -> list[bytes]:
    texts = (
        "search.attention.gamma=10",
        "data.spec=folder:/a b",
        "seed=7",
        "attack.eps=2/255,8/255",
        "epochs=[1, {a=2}]",
    )
    return [text.encode() for text in texts]


def _read_setting(path: Path) -> None:
    for stage in (None, "train"):
        recipe = resolve([parse_setting(path.read_bytes().decode(errors="surrogateescape"), stage)])
        assert isinstance(recipe, Recipe)


def _journals(world: Path) -> list[bytes]:
    entry: dict[str, Any] = {"attack": "pgd20", "eps": "8/255", "round": 0, "images": [0, 1], "broken": [1]}
    entry |= {"out_of_ball": 0, "seconds": 0.5, "notes": ["a note"]}
    lines = [json.dumps(JOURNAL_HEADER, sort_keys=True), json.dumps(entry), json.dumps(entry | {"round": 1})]
    return ["".join(f"{line}\n" for line in lines).encode()]


def _images(world: Path) -> list[bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    found = []
    for format, mode in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB"),
                         ("TIFF", "RGB"), ("ICO", "RGBA"), ("BMP", "RGB"), ("PPM", "RGB")):  # fmt: skip
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, format)
        found.append(buffer.getvalue())
    return found


def _read_image(path: Path) -> None:
    decode([path], Shape(32, resize=False), what="a test")


def _read_photograph(path: Path) -> None:
    decode([path], Shape(224, resize=True), what="a test")


TARGETS = {
    target.name: target
    for target in (
        Target("documents", "document.json", _documents, _read_document, structured=True),
        Target("report", "document.json", _documents, _read_report, structured=True),
        Target("weights", "model.safetensors", _weights, resolve_model),
        Target("checkpoints", "public.pt", _checkpoints, read_checkpoint),
        Target("resume", "checkpoint.pt", _checkpoints, _read_own_checkpoint),
        Target("recipes", "recipe.toml", _recipes, _read_recipe),
        Target("studies", "study.toml", _studies, _read_study),
        Target("settings", "setting.txt", _settings, _read_setting),
        Target("journals", "journal.jsonl", _journals, lambda path: Journal(path, JOURNAL_HEADER).load()),
        Target("images", "image.png", _images, _read_image),
        Target("photographs", "image.png", _images, _read_photograph),
    )
}
assert len(DOCUMENTS) == len(RUNS)
