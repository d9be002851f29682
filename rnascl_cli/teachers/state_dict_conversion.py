"""Public checkpoints of many dialects, brought to the tensor names of our own teachers.

Read are plain state dicts and ``{"state_dict": ...}``, ``{"model": ...}`` wrappers, whatever else lies in them;
names with ``module.``, ``model.`` or ``network.`` before them; normalisation constants named mu/sigma, mean/std or
new_mean/new_std, alone or inside a normalisation layer; and the copies of the network that MadryLab's robustness
keeps under ``attacker.``. Every tensor of a checkpoint must be explained, and every tensor of the network be there.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import MOST_CLASSES
from rnascl_cli.core.errors import UserError
from rnascl_cli.teachers.architectures import (
    ARCHITECTURES,
    TeacherArchitecture,
    architecture_named,
    network_of,
    without_memory,
)
from rnascl_cli.teachers.safe_unpickling import UnknownObject

Constants = tuple[tuple[float, ...], tuple[float, ...]]

CLASSIFIERS = ("linear", "fc")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "model.", "network.")
NORMALISERS = ("", "normalizer.", "normalize.", "normalise.", "normalization.", "norm.")
MEANS, STDS = ("mu", "mean", "new_mean"), ("sigma", "std", "new_std")
NORMALISATION = {f"{layer}{name}": "mean" for layer in NORMALISERS for name in MEANS} | {
    f"{layer}{name}": "std" for layer in NORMALISERS for name in STDS
}
COPY = "attacker."
# TRADES's WideResNet defines this group of blocks and never runs it.
UNUSED = {"wrn-34-10": "sub_block1.", "wrn-34-20": "sub_block1."}
COUNTER = "num_batches_tracked"  # older PyTorch did not write it, and nothing reads it here


@dataclass(frozen=True)
class ConvertedStateDict:
    """A checkpoint in our names.

    Attributes:
        architecture: Its name.
        num_classes: Number of logits.
        tensors: The network's state dict, under the names of :func:`network_of`.
        constants: Mean and std that the file holds; None where it holds none.
        renamed: Names that were changed: theirs to ours.
        dropped: Names left out, and why.
        missed: Names the file lacks that are filled in (BatchNorm's step counters only).
    """

    architecture: str
    num_classes: int
    tensors: dict[str, Tensor]
    constants: Constants | None
    renamed: dict[str, str]
    dropped: dict[str, str]
    missed: list[str]


def unwrap(loaded: Any, *, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict inside what was loaded, and what lay beside it and is not read.

    Raises:
        UserError: There is none, or it holds other things than named tensors.
    """
    found = loaded
    beside: dict[str, str] = {}
    for _ in range(2):  # {"model": {"state_dict": ...}} exists
        if not isinstance(found, Mapping):
            break
        inner = next((name for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is not None:
            beside |= {str(name): f"{_kind(value)}, not weights" for name, value in found.items() if name != inner}
            found = found[inner]
    if isinstance(found, UnknownObject):
        raise UserError(
            f"{where}: holds a whole object ({_kind(found)}), which cannot be read without running its code; save its "
            "state_dict() instead, where you trust it"
        )
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where}: holds no state dict (found {type(found).__name__})")
    odd = [str(name) for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{where}: not a state dict: {_few(odd)} is no tensor")
    return dict(found), beside


def convert_state_dict(state: Mapping[str, Tensor], *, architecture: str | None, where: str) -> ConvertedStateDict:
    """Bring a state dict to our names and tell its architecture.

    Args:
        state: Names as in the file, to tensors.
        architecture: Its name or alias; None to tell it from names and shapes.
        where: What to call the file in an error.

    Raises:
        UserError: Two tensors with one name, a copy that differs, a tensor that nothing explains, one that is
            missing, values that are not finite, or no architecture that fits.
    """
    given = architecture_named(architecture) if architecture is not None else None
    if odd := [theirs for theirs, tensor in state.items() if not _plain(theirs, tensor)]:
        raise UserError(f"{where}: {_few(odd)} is no plain tensor of real numbers; save it as dense float32")
    main, copies = _split(state, known=_own_names(given), where=where)
    dropped = _drop_copies(copies, main, where=where)
    constants = _take_constants(main, where=where)
    ours = {plain: tensor for plain, (_, tensor) in main.items()}
    name = given.name if given is not None else _detect(ours, where=where)
    for plain in [plain for plain in ours if plain.startswith(UNUSED.get(name, "\0"))]:
        dropped[main[plain][0]] = "never run by this network"
        del ours[plain]
    classes = _classes(ours, architecture_named(name), where=where)
    missed = _check(ours, expected_tensors(name, classes), name, where=where)
    for plain in missed:
        ours[plain] = torch.zeros((), dtype=torch.int64)
    bad = [plain for plain, tensor in ours.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise UserError(f"{where}: {_few(bad)} holds NaN or infinity; the checkpoint is broken")
    renamed = {theirs: plain for plain, (theirs, _) in main.items() if theirs != plain and plain in ours}
    return ConvertedStateDict(name, classes, ours, constants, renamed, dropped, missed)


@functools.lru_cache(maxsize=32)
def expected_tensors(architecture: str, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes of an architecture's state dict, without allocating it."""
    network = network_of(without_memory(architecture_named(architecture), num_classes=num_classes))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _own_names(architecture: TeacherArchitecture | None) -> Collection[str]:
    """Return the names of a network of another library, some of which begin like a wrapper's prefix."""
    if architecture is None or architecture.name in ARCHITECTURES:
        return ()
    return expected_tensors(architecture.name, 2).keys()


def _split(
    state: Mapping[str, Tensor], *, known: Collection[str], where: str
) -> tuple[dict[str, tuple[str, Tensor]], dict[str, tuple[str, Tensor]]]:
    """Strip prefixes down to a known name; return network and attacker copies: plain name to (their name, tensor)."""
    main: dict[str, tuple[str, Tensor]] = {}
    copies: dict[str, tuple[str, Tensor]] = {}
    for theirs, tensor in state.items():
        plain, is_copy = theirs, False
        while plain not in known:
            if plain.startswith(COPY):
                plain, is_copy = plain.removeprefix(COPY), True
            elif prefix := next((prefix for prefix in PREFIXES if plain.startswith(prefix)), None):
                plain = plain.removeprefix(prefix)
            else:
                break
        into = copies if is_copy else main
        if plain in into:
            raise UserError(f"{where}: '{theirs}' and '{into[plain][0]}' both mean '{plain}'")
        into[plain] = (theirs, tensor)
    return main, copies


def _drop_copies(
    copies: Mapping[str, tuple[str, Tensor]], main: Mapping[str, tuple[str, Tensor]], *, where: str
) -> dict[str, str]:
    constants = {NORMALISATION[plain]: tensor for plain, (_, tensor) in main.items() if plain in NORMALISATION}
    for plain, (theirs, tensor) in copies.items():
        original = main[plain][1] if plain in main else constants.get(NORMALISATION.get(plain, ""))
        if original is None:
            raise UserError(f"{where}: '{theirs}' is a copy of nothing in the file")
        if not torch.equal(original.flatten(), tensor.flatten()):
            raise UserError(f"{where}: '{theirs}' differs from the tensor it should be a copy of")
    return {theirs: "a copy of the same weights" for theirs, _ in copies.values()}


def _take_constants(main: dict[str, tuple[str, Tensor]], *, where: str) -> Constants | None:
    """Remove mean and std from ``main`` and return them."""
    found: dict[str, tuple[float, ...]] = {}
    for plain in [plain for plain in main if plain in NORMALISATION]:
        theirs, tensor = main.pop(plain)
        role = NORMALISATION[plain]
        values = tuple(float(value) for value in tensor.flatten())
        low = 0.0 if role == "mean" else 1e-6
        if len(values) != 3 or not all(low <= value <= 1 for value in values):
            raise UserError(f"{where}: '{theirs}' should be three numbers in [0, 1], for images in [0, 1]")
        if found.setdefault(role, values) != values:
            raise UserError(f"{where}: holds two different normalisations; '{theirs}' is one")
    if not found:
        return None
    if len(found) == 1:
        raise UserError(f"{where}: holds the {next(iter(found))} of a normalisation, but only that")
    return found["mean"], found["std"]


def _classes(tensors: Mapping[str, Tensor], architecture: TeacherArchitecture | None, *, where: str) -> int:
    names = [f"{layer}.weight" for layer in (architecture.classifiers if architecture else CLASSIFIERS)]
    for name in names:
        if name in tensors and tensors[name].ndim >= 2:
            if not 2 <= (classes := len(tensors[name])) <= MOST_CLASSES:
                raise UserError(f"{where}: has {classes} classes; between 2 and {MOST_CLASSES} are needed")
            return classes
    what = "no teacher that rnascl knows" if architecture is None else f"not a {architecture.name}"
    raise UserError(f"{where}: {what}; it has no {' or '.join(names)}")


def _detect(tensors: Mapping[str, Tensor], *, where: str) -> str:
    classes = _classes(tensors, None, where=where)
    differences: dict[str, int] = {}
    for name in ARCHITECTURES:
        expected = expected_tensors(name, classes)
        differences[name] = len(_differences(tensors, expected, ignore=UNUSED.get(name)))
        if differences[name] == 0:
            return name
    nearest = min(differences, key=lambda name: differences[name])
    if differences[nearest] <= len(expected_tensors(nearest, classes)) // 4:
        return nearest  # what is wrong with it is said tensor by tensor
    raise UserError(
        f"{where}: the tensors fit none of the architectures that rnascl knows ({', '.join(ARCHITECTURES)})"
    )


def _differences(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, ignore: str | None
) -> list[str]:
    wanted = {name for name in expected if not name.endswith(COUNTER)}
    given = {
        name for name in tensors if not name.endswith(COUNTER) and not (ignore is not None and name.startswith(ignore))
    }
    return sorted(wanted ^ given) + [name for name in wanted & given if tuple(tensors[name].shape) != expected[name]]


def _check(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], architecture: str, *, where: str
) -> list[str]:
    """Refuse unexplained, missing and misshapen tensors; return the absent step counters."""
    unexplained = sorted(set(tensors) - set(expected))
    absent = [name for name in expected if name not in tensors]
    missing = [name for name in absent if not name.endswith(COUNTER)]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        f"{len(names)} tensors {what} ({_few(names)})"
        for what, names in (("unexplained", unexplained), ("missing", missing), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(f"{where}: not a {architecture}: {', '.join(problems)}")
    return absent


def _kind(value: object) -> str:
    return f"an object of {value.path}" if isinstance(value, UnknownObject) else type(value).__name__


def _plain(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is dense, holds real numbers, and has them with it (one on 'meta' has none)."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and (tensor.is_floating_point() or name.endswith(COUNTER))


def _few(names: Iterable[str]) -> str:
    listed = [name[:80] for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
