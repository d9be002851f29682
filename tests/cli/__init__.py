"""Tests of rnascl_cli.cli."""
