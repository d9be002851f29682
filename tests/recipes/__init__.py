"""Tests of the recipes and of rnascl_cli.recipes and rnascl_cli.core.units."""
