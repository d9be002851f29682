"""What README.md and docs/ name exists: pages, anchors, files, recipes, recipe keys, commands and options."""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rnascl_cli.recipes.load import recipes_folder
from rnascl_cli.recipes.settings import Recipe
from tests.cli.test_help_pages import COMMANDS
from tests.docs.pages import PAGES, ROOT, Block, anchors, blocks, commands, inline_code, page_name, prose

pytestmark = pytest.mark.unit

LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
FILE = re.compile(r"[\w./-]+\.(?:py|md|toml|json|jsonl|txt|png|svg)")
FOLDERS = [
    ROOT,
    ROOT / "rnascl_cli",
    ROOT / "docs",
    *sorted(path for path in (ROOT / "tests").rglob("*") if path.is_dir()),
]
WRITTEN_BY_RNASCL = {
    "search.json", "derived.json", "train.json", "adv-finetune.json", "attack.json", "study.json", "steps.json",
    "metrics.jsonl", "report.md", "study.md", "attack.partial.jsonl", "record.json", "about.json",
}  # fmt: skip
OTHER_TOOLS = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--help", "--version"}
STAGES = ("search", "train", "adv_finetune", "attack", "teacher_train", "teacher_cache", "data")

pages = pytest.mark.parametrize("page", PAGES, ids=page_name)


@pages
def test_internal_links_and_anchors_exist(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page_name(page)}: no {link}"
        if anchor:
            assert anchor in anchors(target), f"{page_name(page)}: no heading for {link}"


@pages
def test_named_files_exist(page: Path) -> None:
    for code in inline_code(page):
        for name in FILE.findall(code):
            if "/" not in name:
                known = name in WRITTEN_BY_RNASCL or any((folder / name).exists() for folder in FOLDERS)
                if not name.endswith((".py", ".toml")) or known:
                    continue
            if name.startswith(("runs/", "/", "figures/", "s3/", "pareto/")) or not code.startswith(name):
                continue
            assert any((folder / name).exists() for folder in FOLDERS), f"{page_name(page)}: no file {name}"


@pages
def test_named_modules_and_functions_exist(page: Path) -> None:
    """``package/file.py: name`` in inline code names a definition of that file."""
    for code in inline_code(page):
        match = re.fullmatch(r"([\w/]+\.py): ([\w.]+)", code)
        if match is None:
            continue
        source = next(folder / match[1] for folder in FOLDERS if (folder / match[1]).exists()).read_text()
        for name in match[2].split("."):
            assert re.search(rf"^\s*(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE), (
                f"{page_name(page)}: {code}"
            )


@pages
def test_recipe_names_exist(page: Path) -> None:
    for name in re.findall(r"`((?:cifar10|imagenet|imagenet100|smoke)/[\w{},/-]+)`", prose(page)):
        for recipe in expand_braces(name):
            assert (recipes_folder() / f"{recipe}.toml").is_file(), f"{page_name(page)}: no recipe {recipe}"
    for block in blocks(page):
        for name in re.findall(r"--recipe ((?:cifar10|imagenet|imagenet100|smoke)/[\w/-]+)", block.text):
            assert (recipes_folder() / f"{name}.toml").is_file(), f"{page_name(page)}: no recipe {name}"


@pages
def test_options_in_prose_exist(page: Path) -> None:
    known = OTHER_TOOLS | benchmark_options() | {option for path in COMMANDS for option in options_of(path)}
    named = {option for code in inline_code(page) for option in OPTION.findall(code)}
    assert not named - known, page_name(page)


def shell_commands(block: Block) -> list[list[str]]:
    """The rnascl commands of a block."""
    if block.language not in {"", "sh", "bash"} or "rnascl" not in block.text:
        return []
    text = re.sub(r"(^|[\s;|(])(?:python|python3) -m rnascl_cli ", r"\1rnascl ", block.text)
    return [words[words.index("rnascl") :] for words in commands(text) if "rnascl" in words]


@pages
def test_commands_of_blocks_take_their_options(page: Path) -> None:
    for block in blocks(page):
        for words in shell_commands(block):
            depth = 2 if tuple(words[1:3]) in COMMANDS else 1
            path = tuple(words[1 : 1 + depth])
            assert path in COMMANDS, f"{page_name(page)}:{block.line}: no command {' '.join(words[:3])}"
            wrong = {word for word in words if word.startswith("--")} - options_of(path) - {"--help"}
            assert not wrong, f"{page_name(page)}:{block.line}: rnascl {' '.join(path)} has no {wrong}"


@pages
def test_recipe_keys_exist(page: Path) -> None:
    keys = recipe_keys()
    for name, key in named_keys(page):
        assert key in keys, f"{page_name(page)}: no recipe key {name}"


def named_keys(page: Path) -> list[tuple[str, str]]:
    """The recipe keys that a page names, as written and in full: in inline code, and behind ``--set``."""
    named: list[tuple[str, str]] = []
    for code in inline_code(page):
        for name in re.findall(r"^(?:--set )?([a-z_*]+(?:\.[a-z_]+)+)", code):
            if name.split(".")[0] in {*STAGES, "*"} and not FILE.fullmatch(name):
                named.append((name, name.replace("*", "train")))
    for block in blocks(page):
        for words in shell_commands(block):
            stage = {"teacher": "teacher_train"}.get(words[1], words[1].replace("-", "_"))
            for option, value in itertools.pairwise(words):
                if option == "--set":
                    key = value.partition("=")[0]
                    named.append((key, key if key.split(".")[0] in Recipe.model_fields else f"{stage}.{key}"))
    return named


def recipe_keys() -> set[str]:
    """All keys of a recipe in full, tables among them."""
    keys: set[str] = set()

    def visit(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            keys.add(prefix + name)
            for inner in models_in(field.annotation):
                visit(inner, f"{prefix}{name}.")

    visit(Recipe, "")
    return keys


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings models in an annotation, those inside unions and ``Annotated`` too."""
    if inspect.isclass(annotation) and typing.get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in typing.get_args(annotation) for model in models_in(inner)]


def options_of(path: tuple[str, ...]) -> set[str]:
    """The options of a command."""
    return {name for parameter in COMMANDS[path].params for name in parameter.opts if name.startswith("--")}


def benchmark_options() -> set[str]:
    """The options of the scripts in benchmarks/ and tests/, as their sources declare them."""
    sources = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").glob("*/*.py")]
    return {name for path in sources for name in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', path.read_text())}


def expand_braces(name: str) -> list[str]:
    """Expand ``a/{b,c}-d`` as a shell does."""
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        return [name]
    return [
        expanded
        for choice in match[1].split(",")
        for expanded in expand_braces(name[: match.start()] + choice + name[match.end() :])
    ]
