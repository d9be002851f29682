"""Tests of rnascl_cli.stages."""
