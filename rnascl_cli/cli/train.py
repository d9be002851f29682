"""``rnascl train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console, distributed
from rnascl_cli.core.errors import UserError

if TYPE_CHECKING:
    from rnascl_cli.artifacts.documents import DerivedDocument

NAME = "train"
EPILOG = "Example: rnascl derive runs/s5 | rnascl train - --out runs/s5-train"


@options.with_shared_options
def command(
    derived: Annotated[
        str, typer.Argument(metavar="DERIVED|-", help="A derived document: a file, a run directory, or - for stdin.")
    ],
    distill: Annotated[
        str | None,
        typer.Option(
            "--distill",
            metavar="kd|at|sp|vid|rkd|crd|pkt",
            help="A baseline distillation loss instead of the paradigm's teacher terms.",
        ),
    ] = None,
    *,
    shared: options.StudentOptions,
    run: options.RunOptions,
) -> None:
    """Train a derived network from scratch under its tutors (eq. 3), or under a baseline distillation loss."""
    document = distributed.from_rank_zero(lambda: _read(derived))
    resolved = options.build_recipe("train", shared, inherited=document.provenance, distill=distill)
    from rnascl_cli.engine.run_directory import RunDirectory
    from rnascl_cli.stages.training.train import train

    path = run.out or options.new_run_directory(f"train-{document.architecture.space}")
    directory = RunDirectory.open(path, own="train.json", force=run.force, resume=run.resume)
    trained = train(document, resolved, directory)
    console.info(f"trained {trained.architecture.space}: clean accuracy {trained.clean_accuracy:.2%}; wrote {path}")
    print_artifact(trained, out=str(path), json=run.json)


def _read(source: str) -> DerivedDocument:
    from rnascl_cli.artifacts.documents import DerivedDocument
    from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES
    from rnascl_cli.artifacts.store import parse_document, read_document

    if source == "-":
        if sys.stdin.isatty():
            raise UserError("train -: nothing is piped in; write 'rnascl derive RUN | rnascl train -'")
        text = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        if not text.strip():
            raise UserError("train -: stdin is empty; did 'rnascl derive' fail?")
        return parse_document(text, DerivedDocument, where="stdin")
    path = Path(source)
    if path.is_dir():
        if (path / "derived.json").is_file():
            return read_document(path / "derived.json", DerivedDocument)
        if (path / "search.json").is_file():
            from rnascl_cli.stages.search.derive import derive

            return derive(path)
        raise UserError(f"{path}: holds neither derived.json nor search.json")
    return read_document(path, DerivedDocument)
