"""Tests of rnascl_cli.models."""
