"""Tests of rnascl_cli.engine."""
