"""Read pickled checkpoints without running any code that they name.

``torch.load(..., weights_only=True)`` builds tensors and plain containers and refuses every other class. Checkpoints
of MadryLab's robustness and of Rice et al. hold others beside the weights, such as NumPy numbers or an ``args`` object
of ``cox.utils.Parameters``. The names in such a file are therefore listed first, which runs no opcode, and the same
restricted unpickler is given a placeholder class (:class:`UnknownObject`) for each. Nothing that the file names is
ever imported or called, except what torch itself allows.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from rnascl_cli.core.errors import UserError

MAX_PICKLE_BYTES = 64 * 2**20  # of data.pkl, which describes the tensors; their data is stored outside of it
LEGACY_HEADER = 3  # pickles before the object in torch's format before 1.6: magic number, version, system
TRUST = "if you trust it, save its state dict alone with torch.save or safetensors"


class UnknownObject:
    """Placeholder for an object of an unknown class: accepts anything and does nothing.

    Attributes:
        path: The name in the file, e.g. ``cox.utils.Parameters``.
    """

    path = "?"

    def __new__(cls, *_: Any, **__: Any) -> UnknownObject:
        """Create one from any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""

    def __call__(self, *_: Any, **__: Any) -> UnknownObject:
        """Do nothing; it may have been a function, as dill writes lambdas."""
        return self

    def __eq__(self, other: object) -> bool:
        """Pass torch's check that a called object is one of the allowed classes."""
        return self is other or (isinstance(other, type) and issubclass(other, UnknownObject))

    def __hash__(self) -> int:
        """Allow it as a dictionary key."""
        return id(self)


def load_pickled(path: Path) -> Any:
    """Read a ``torch.save`` file, zipped or legacy; objects of unknown classes become :class:`UnknownObject`.

    Raises:
        UserError: It is damaged, in the tar format of torch before 0.2, a TorchScript archive, or needs more than
            tensors, plain containers and objects that can be ignored.
    """
    try:
        return _load(path, ())
    except pickle.UnpicklingError:
        pass  # it holds other classes, or is no pickle at all, which the second attempt reports
    except Exception as error:
        raise _unreadable(path, error) from None
    try:
        return _load(path, _named_in(path))
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def _load(path: Path, unknown: Collection[str]) -> Any:
    placeholders: list[Any] = [_placeholder_class(name) for name in sorted(unknown)]
    with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols that torch does not write itself
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that torch does not read."""
    if isinstance(error, pickle.UnpicklingError):
        text = " ".join(str(error).split())
        # torch surrounds the reason with advice on how to load the file all the same.
        match = re.search(
            r"(?:WeightsUnpickler error: |file did not contain |Trying to ).*?(?= Please | Check the |$)", text
        )
        reason = (match[0] if match else text).removeprefix("WeightsUnpickler error: ")[:160]
        return UserError(
            f"{path}: holds more than tensors, and rnascl runs no code from checkpoints ({reason}); {TRUST}"
        )
    if "legacy .tar" in str(error):
        return UserError(f"{path}: is in the tar format of torch before 0.2, which only unsafe loading reads; {TRUST}")
    if "TorchScript" in str(error):
        return UserError(f"{path}: is a TorchScript archive, a program and not weights; {TRUST}")
    # A damaged archive raises RuntimeError, EOFError, KeyError, ValueError, ...
    return UserError(f"{path}: damaged or not a checkpoint ({type(error).__name__}); copy it again")


def _placeholder_class(name: str) -> type[UnknownObject]:
    module, _, last = name.rpartition(".")
    return type(last, (UnknownObject,), {"__module__": module, "__qualname__": last, "path": name})


def _named_in(path: Path) -> set[str]:
    """Return the dotted names that a checkpoint's pickle imports, without unpickling it."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return {name for _ in range(LEGACY_HEADER + 1) for name in _globals(file)}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > MAX_PICKLE_BYTES:
                    raise UserError(f"{path}: its data.pkl has more than {MAX_PICKLE_BYTES} bytes; {TRUST}")
                with archive.open(entry) as file:
                    return set(_globals(file))
    return set()


def _globals(file: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield f"{module}.{name}"
            # The unpickler maps some names of Python 2 to those of Python 3.
            yield f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
            if (module, name) in _compat_pickle.NAME_MAPPING:
                yield ".".join(_compat_pickle.NAME_MAPPING[module, name])
