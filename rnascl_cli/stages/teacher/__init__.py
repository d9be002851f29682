"""``teacher``: train, import, fetch and list robust teachers."""
