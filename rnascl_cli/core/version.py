"""The version of rnascl, readable without importing the package's API."""

__version__ = "0.1.0"
