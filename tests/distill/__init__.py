"""Tests of rnascl_cli.distill."""
