"""Property-based tests of recipes, artifacts and options."""
