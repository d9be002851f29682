"""Tests of rnascl_cli.spaces."""
