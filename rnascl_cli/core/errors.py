"""The ways a command can end before its time."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend: a bad option, a missing or damaged file, a refused recipe key.

    The command line prints the message as one line and exits with 2. The message names the file, field or
    option, and the mend.
    """


class RunError(RuntimeError):
    """A failure while running that the input did not announce (a loss that became NaN, say): exit 1."""


class WriteError(RunError, OSError):
    """A file could not be written: the disk is full, or the folder has become read-only.

    Args:
        path: The file; what was there before is untouched.
        error: What the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.errno, self.strerror = self.args
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path}: cannot be written ({self.strerror}); what was there before is unchanged. Make room or mend "
            "the folder and run again, with --resume where there is a checkpoint"
        )


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM ended the command: exit 128 plus the signal's number, 130 or 143.

    Like :class:`KeyboardInterrupt`, and for the same reason, it is no :class:`Exception`.

    Args:
        signum: The signal's number.
        message: What was kept and how to go on; empty where nothing is known.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects of a command that a signal ended."""
        return 128 + self.signum


@contextlib.contextmanager
def prefix_errors(place: str) -> Iterator[None]:
    """Put a place (a file, a table in it) before what a :class:`UserError` of the body says.

    Raises:
        UserError: The body's, with the place.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


LONGEST_LINE = 900


def one_line(message: str) -> str:
    """Return a message as one line of at most :data:`LONGEST_LINE` printable characters.

    Messages quote names from files: those may hold a megabyte, or control codes that a terminal would obey.
    """
    line = printable(" ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 4]} ..."


def printable(text: str) -> str:
    """Return ``text`` with control codes, lone surrogates and the like written as escapes; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def expand_user(path: str, *, option: str) -> Path:
    """Return a path that was typed, with ``~`` and ``~user`` as the folders they mean.

    Raises:
        UserError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{option}: {path[:80]}: no such user, or no home folder; write the whole path") from None


def pluralise(number: int, what: str) -> str:
    """Return a number of things, e.g. ``"1 step"``, ``"2 steps"``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a ``"; did you mean 'x'? (known: ...)"`` clause for an unknown ``word``."""
    names = sorted(known)
    word = word[:100]  # the time goes with the square of its length
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
