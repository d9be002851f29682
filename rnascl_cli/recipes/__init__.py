"""Recipes: the settings of a run, and how they are read.

A recipe is a TOML file with top-level keys and one table per stage. Later sources override earlier ones: defaults, the
input artifact's data, teacher and seed, ``--recipe FILE``, ``--set KEY=VALUE``, command-line options. Unknown keys are
refused, each with the nearest known key.
"""
