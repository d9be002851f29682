"""Imports run one way, and what must start fast imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import rnascl_cli

PACKAGE = Path(rnascl_cli.__file__).parent
# From the top to the bottom. A part imports from lower layers only: parts of one layer do not know each other.
LAYERS = [
    {"cli"},
    {"stages.study"},
    {"stages.search", "stages.teacher", "stages.report"},
    {"stages.training", "stages.attack"},
    {"reporting"},
    {"reporting.figures"},
    {"reporting.tables"},
    {"reporting.data", "reporting.published"},
    {"loading"},
    {"teachers"},
    {"engine"},
    {"data"},
    {"models", "attacks", "distill"},
    {"recipes"},
    {"spaces", "artifacts"},
    {"core"},
]
DEPTH = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}
LIGHT = {"cli", "recipes", "spaces", "artifacts", "core"}
HEAVY = {"torch", "torchvision", "timm", "sklearn", "matplotlib", "numpy", "scipy", "PIL", "safetensors", "jinja2"}


class Import(NamedTuple):
    """One import: who, what, where, and whether it runs when the module is read."""

    importer: str
    imported: str
    line: int
    at_once: bool


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(path: Path) -> Iterator[Import]:
    importer = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            for otherwise in node.orelse:
                yield from visit(otherwise, at_once)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno, at_once)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                yield Import(importer, f"{node.module}.{alias.name}", node.lineno, at_once)
        inside = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


IMPORTS = [item for path in sorted(PACKAGE.rglob("*.py")) for item in imports_of(path)]
OWN = [item for item in IMPORTS if item.imported.startswith("rnascl_cli.") and item.importer != "rnascl_cli"]


def part(module: str) -> str:
    """``rnascl_cli.data.load`` is in ``data``, ``rnascl_cli.stages.search.step`` in ``stages.search``."""
    names = module.split(".")[1:3]
    return max((name for name in (names[0], ".".join(names)) if name in DEPTH), key=len, default=names[0])


def shown(items: list[Import]) -> list[str]:
    return [f"{item.importer}:{item.line} imports {item.imported}" for item in items]


@pytest.mark.unit
def test_every_part_has_its_layer() -> None:
    parts = {part(item.importer) for item in IMPORTS if item.importer != "rnascl_cli"} - {"__main__"}
    assert parts == set(DEPTH)
    assert len(OWN) > 100  # or the tests below see nothing


@pytest.mark.unit
def test_imports_run_one_way() -> None:
    up = [
        item
        for item in OWN
        if part(item.importer) in DEPTH
        and part(item.imported) in DEPTH
        and part(item.importer) != part(item.imported)
        and DEPTH[part(item.imported)] <= DEPTH[part(item.importer)]
    ]
    assert shown(up) == []


@pytest.mark.unit
def test_no_import_cycles() -> None:
    files = {item.importer for item in IMPORTS}
    edges = {
        file: {
            target
            for item in OWN
            if item.importer == file
            for target in (item.imported, item.imported.rpartition(".")[0])
            if target in files and target != file
        }
        for file in files
    }
    TopologicalSorter(edges).prepare()  # raises CycleError, which names the circle


# Maps that nobody learned, which the report holds the learned ones against: no tensor, no torch.
PLAIN_NUMBERS = "rnascl_cli.distill.tutor_baselines."
FORBIDDEN = [
    ("attacks", {"recipes"}),
    ("distill", {"recipes", "artifacts"}),
    ("models", {"recipes"}),
    ("spaces", {"artifacts"}),
    ("artifacts", {"spaces"}),
    ("reporting", {"models", "attacks", "distill"}),
]


@pytest.mark.unit
@pytest.mark.parametrize(("who", "what"), FORBIDDEN, ids=[who for who, _ in FORBIDDEN])
def test_forbidden_imports(who: str, what: set[str]) -> None:
    found = [item for item in OWN if part(item.importer) == who and part(item.imported) in what]
    assert shown([item for item in found if not item.imported.startswith(PLAIN_NUMBERS)]) == []


@pytest.mark.unit
def test_light_modules_import_nothing_heavy_at_once() -> None:
    heavy = [
        item
        for item in IMPORTS
        if item.at_once
        and item.imported.split(".")[0] in HEAVY
        and (item.importer == "rnascl_cli" or part(item.importer) in LIGHT)
    ]
    assert shown(heavy) == []


@pytest.mark.unit
def test_the_package_reads_no_tests_and_no_notes() -> None:
    assert shown([item for item in IMPORTS if item.imported.split(".")[0] == "tests"]) == []


def in_a_fresh_python(code: str, *arguments: str) -> list[str]:
    """Run code in a new interpreter and return which heavy packages it read, and what it printed."""
    tail = f"; print(sorted(set({sorted(HEAVY)}) & set(__import__('sys').modules)), file=__import__('sys').stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + tail, *arguments], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stderr.splitlines()[-1])
    return found


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "module",
    ["rnascl_cli", "rnascl_cli.cli.app", "rnascl_cli.recipes", "rnascl_cli.spaces", "rnascl_cli.artifacts.store"],
)
def test_importing_reads_nothing_heavy(module: str) -> None:
    assert in_a_fresh_python(f"import {module}") == []


@pytest.mark.pipeline
def test_help_reads_nothing_heavy() -> None:
    code = "import sys; from rnascl_cli.cli.app import run; assert run(['search', '--help']) == 0"
    assert in_a_fresh_python(code) == []


@pytest.mark.pipeline
def test_derive_reads_nothing_heavy(searched: dict[str, Path]) -> None:
    code = f"from rnascl_cli.cli.app import run; assert run(['derive', {str(searched['rnas-cl'])!r}]) == 0"
    assert in_a_fresh_python(code) == []


@pytest.mark.pipeline
@pytest.mark.parametrize("package", ["rich", "pydantic"])
def test_help_does_not_import(package: str) -> None:
    """Either takes as long to read as the rest together."""
    code = f"from rnascl_cli.cli.app import run; import sys; run(['--help']); assert {package!r} not in sys.modules"
    assert in_a_fresh_python(code) == []
