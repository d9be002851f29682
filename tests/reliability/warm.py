"""What the fork server imports once, so that each process of a drill starts within milliseconds."""

# ruff: noqa: F401
from __future__ import annotations

import sklearn.datasets
import torch._dynamo  # by the first step of an optimiser, which takes seconds

import rnascl_cli.cli.app
import rnascl_cli.stages.attack.attack
import rnascl_cli.stages.search.search
import rnascl_cli.stages.teacher.import_checkpoint
import rnascl_cli.stages.teacher.train
import rnascl_cli.stages.training.adv_finetune
import rnascl_cli.stages.training.train
