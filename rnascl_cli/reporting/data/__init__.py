"""Collecting runs and their lineage for a report."""
