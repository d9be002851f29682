"""Data of a report: run directories, their lineage, comparable measurements and paired comparisons."""
