"""Recipes: the settings of a run, and how they are read.

A recipe is a TOML file with top-level keys and one table a stage. Layers, later ones winning:
defaults < what the input artifact says (data, teacher, seed) < ``--recipe FILE`` < ``--set KEY=VALUE`` <
the command line's own options. Unknown keys are refused, all at once, each with the nearest known one.
"""

from rnascl_cli.recipes.layers import Layer, find_recipe, parse_setting, read_recipe_file, recipes_folder, resolve
from rnascl_cli.recipes.settings import (
    SELF_TEST_IMAGES,
    SGD,
    Adam,
    AdvFinetuneSettings,
    AttackSettings,
    AttentionSettings,
    CosineSchedule,
    CostSettings,
    DataSettings,
    GumbelSettings,
    KLSettings,
    Optimiser,
    PerturbationSettings,
    Recipe,
    Schedule,
    SearchSettings,
    Settings,
    StepSchedule,
    TeacherCacheSettings,
    TeacherTrainSettings,
    TrainSettings,
)

__all__ = [
    "SELF_TEST_IMAGES",
    "SGD",
    "Adam",
    "AdvFinetuneSettings",
    "AttackSettings",
    "AttentionSettings",
    "CosineSchedule",
    "CostSettings",
    "DataSettings",
    "GumbelSettings",
    "KLSettings",
    "Layer",
    "Optimiser",
    "PerturbationSettings",
    "Recipe",
    "Schedule",
    "SearchSettings",
    "Settings",
    "StepSchedule",
    "TeacherCacheSettings",
    "TeacherTrainSettings",
    "TrainSettings",
    "find_recipe",
    "parse_setting",
    "read_recipe_file",
    "recipes_folder",
    "resolve",
]
