"""Memory that is freed stays with the process.

A step makes and drops some hundred megabytes of activations. The C library gives large blocks back to the system when
they are freed, and the next step must have every page of them handed out and zeroed again: of a search step on a CPU,
a sixth of the supernet's time.
"""

from __future__ import annotations

import ctypes
import functools
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_HEAP_BLOCK = 32 * 2**20  # glibc takes no more
OWN_WORD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep blocks of up to 32 MB that are freed, for the rest of this process.

    Returns:
        Whether it does. It does not where it is another library than glibc, or where the environment has a word of its
        own about it.
    """
    if any(name in os.environ for name in OWN_WORD):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (musl has a mallopt that does nothing)
        return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_HEAP_BLOCK) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1))
    except (AttributeError, OSError, TypeError):
        return False
