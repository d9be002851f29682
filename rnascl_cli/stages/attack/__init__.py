"""``attack``: robust accuracy of a model."""
