"""The two ways a command can end badly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: a bad option, a missing or damaged file, a refused recipe key.

    The command line prints the message as one line and exits with 2. The message names the file, field or
    option, and the mend.
    """


class RunError(RuntimeError):
    """A failure while running that the input did not announce (a loss that became NaN, say): exit 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a ``"; did you mean 'x'? (known: ...)"`` clause for an unknown ``word``."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
