"""Robust teachers: files, architectures, frozen forward pass and output cache."""
