"""Pickled checkpoints, read without running anything that they name.

``torch.load(..., weights_only=True)`` builds tensors and plain containers and refuses every other class. Checkpoints
of MadryLab's robustness and of Rice et al. hold some beside the weights: NumPy numbers, an ``args`` object of
``cox.utils.Parameters``. For these the names in the file are listed first, which reads opcodes and runs none, and each
name is given to the same restricted unpickler as an :class:`Inert` class of that name. So nothing the file names is
ever imported or called; torch's own list of what makes a tensor stands as it is.
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

MAX_PICKLE_BYTES = 64 * 2**20  # of the description of a checkpoint; its tensors lie outside
LEGACY_HEADER = 3  # pickles before the object in torch's format of before 1.6: magic number, version, system
TRUST = "save its state dict alone with torch.save or safetensors, where you trust it"


class UnknownObject:
    """Stands for an object of a class that is not to be had: takes anything, does nothing, says what it was.

    Attributes:
        path: The name in the file, e.g. ``cox.utils.Parameters``.
    """

    path = "?"

    def __new__(cls, *_: Any, **__: Any) -> UnknownObject:
        """Make one, whatever it is made from."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Forget what it is made from."""

    def __setstate__(self, _: Any) -> None:
        """Forget its state."""

    def __call__(self, *_: Any, **__: Any) -> UnknownObject:
        """Do nothing: it may have been a function, as dill writes lambdas."""
        return self

    def __eq__(self, other: object) -> bool:
        """Pass torch's check that what is to be called is one of the classes it was given: an inert one is."""
        return self is other or (isinstance(other, type) and issubclass(other, UnknownObject))

    def __hash__(self) -> int:
        """It may have been a key."""
        return id(self)


def load_pickled(path: Path) -> Any:
    """Read a ``torch.save`` file, of the zip format or the one before; unknown classes become :class:`Inert`.

    Raises:
        UserError: It is damaged, in the tar format of torch before 0.2, a TorchScript archive, or needs more than
            tensors, plain containers and things that can be left out.
    """
    try:
        return _load(path, ())
    except pickle.UnpicklingError:
        pass  # other classes; or no pickle at all, which the second reading says
    except Exception as error:
        raise _unreadable(path, error) from None
    try:
        return _load(path, _named_in(path))
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def _load(path: Path, inert: Collection[str]) -> Any:
    with torch.serialization.safe_globals([_inert_class(name) for name in sorted(inert)]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that torch does not write itself
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> UserError:
    """Say what is wrong with a file that torch does not read."""
    if isinstance(error, pickle.UnpicklingError):
        text = " ".join(str(error).split())
        # Between torch's advice on how to load it all the same.
        found = re.search(
            r"(?:WeightsUnpickler error: |file did not contain |Trying to ).*?(?= Please | Check the |$)", text
        )
        reason = (found[0] if found else text).removeprefix("WeightsUnpickler error: ")[:160]
        return UserError(
            f"{path}: holds more than tensors, and rnascl runs no code from checkpoints ({reason}); {TRUST}"
        )
    if "legacy .tar" in str(error):
        return UserError(f"{path}: is in the tar format of torch before 0.2, which only unsafe loading reads; {TRUST}")
    if "TorchScript" in str(error):
        return UserError(f"{path}: is a TorchScript archive, a program and not weights; {TRUST}")
    # A damaged archive raises RuntimeError, EOFError, KeyError, ValueError, ...
    return UserError(f"{path}: damaged or not a checkpoint ({type(error).__name__}); copy it again")


def _inert_class(name: str) -> type[UnknownObject]:
    module, _, last = name.rpartition(".")
    return type(last, (UnknownObject,), {"__module__": module, "__qualname__": last, "path": name})


def _named_in(path: Path) -> set[str]:
    """Return the dotted names that a checkpoint's pickle would import, without unpickling it."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return {name for _ in range(LEGACY_HEADER + 1) for name in _globals(file)}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > MAX_PICKLE_BYTES:
                    raise UserError(f"{path}: describes its tensors in more than {MAX_PICKLE_BYTES} bytes; {TRUST}")
                with archive.open(entry) as file:
                    return set(_globals(file))
    return set()


def _globals(file: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield f"{module}.{name}"
            # The unpickler knows some of Python 2's names by those of Python 3.
            yield f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
            if (module, name) in _compat_pickle.NAME_MAPPING:
                yield ".".join(_compat_pickle.NAME_MAPPING[module, name])
