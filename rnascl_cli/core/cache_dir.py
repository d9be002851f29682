"""Where decoded data sets and teachers are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "RNASCL_CACHE"


def cache_dir() -> Path:
    """Return the cache folder: ``$RNASCL_CACHE``, or ``~/.cache/rnascl``. It need not exist yet."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "rnascl"
