"""Tests of rnascl_cli.artifacts."""
