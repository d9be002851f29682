"""``study``: a comparison of many runs from one file."""
