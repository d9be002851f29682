"""Keep freed memory in the process.

A step allocates and frees some hundred megabytes of activations. glibc returns large blocks to the system, and the next
step pays for mapping and zeroing every page again: a sixth of the supernet's time in a search step on a CPU.
"""

from __future__ import annotations

import ctypes
import functools
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGEST_HEAP_BLOCK = 32 * 2**20  # glibc's limit
USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks of up to 32 MB for the rest of this process.

    Returns:
        Whether it does: False with another C library, or if the environment configures malloc.
    """
    if any(name in os.environ for name in USER_SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (musl's mallopt does nothing)
        return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_HEAP_BLOCK) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1))
    except (AttributeError, OSError, TypeError):
        return False
