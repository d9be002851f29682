"""``rnascl adv-finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rnascl_cli.cli import options
from rnascl_cli.cli.output import print_artifact
from rnascl_cli.core import console

NAME = "adv-finetune"
EPILOG = "Example: rnascl adv-finetune runs/s5-train --method trades --out runs/s5-trades"


@options.with_shared_options
def command(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of train or adv-finetune.")],
    shared: options.StudentOptions,
    run: options.RunOptions,
) -> None:
    """Fine-tune a trained student on adversarial images; the teacher terms of the loss stay (section 4.2)."""
    from rnascl_cli.stages.training.adv_finetune import adv_finetune, source_run

    before, _ = source_run(source)
    resolved = options.build_recipe("adv_finetune", shared, inherited=before.provenance)
    from rnascl_cli.engine.run_directory import RunDirectory

    path = run.out or options.new_run_directory(f"{resolved.adv_finetune.method}-{before.architecture.space}")
    directory = RunDirectory.open(path, own="adv-finetune.json", force=run.force, resume=run.resume)
    document = adv_finetune(source, resolved, directory)
    console.info(f"fine-tuned by {document.method}: clean accuracy {document.clean_accuracy:.2%}; wrote {path}")
    print_artifact(document, out=str(path), json=run.json)
