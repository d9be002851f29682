"""Convert the state dicts of public checkpoints to the tensor names of our own teachers.

Recognized are plain state dicts and ``{"state_dict": ...}`` or ``{"model": ...}`` wrappers; names with the prefixes
``module.``, ``model.`` or ``network.``; normalisation constants named mu/sigma, mean/std or new_mean/new_std, alone or
in a normalisation layer; and the copies of the network that MadryLab's robustness keeps under ``attacker.``. Every
tensor of the checkpoint must be accounted for, and every tensor of the network must be present.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnascl_cli.artifacts.documents import MOST_CLASSES
from rnascl_cli.core.errors import UserError
from rnascl_cli.teachers.architectures import (
    ARCHITECTURES,
    TeacherArchitecture,
    architecture_named,
    build_on_meta,
    network_of,
)
from rnascl_cli.teachers.public_checkpoints import NormalisationConstants
from rnascl_cli.teachers.safe_unpickling import UnknownObject

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


class NamedTensor(NamedTuple):
    """A tensor and its name in the checkpoint."""

    name: str
    tensor: Tensor


@dataclass(frozen=True)
class ConvertedStateDict:
    """A state dict under our tensor names.

    Attributes:
        architecture: Its name, as in ``--arch``.
        num_classes: Number of logits.
        tensors: The network's state dict, under the names of :func:`network_of`.
        constants: The normalisation that the file holds; None where it holds none.
        renamed: Names that changed: theirs to ours.
        dropped: Names left out, and why.
        missed: Names that the file lacks and that are filled in (BatchNorm's step counters only).
    """

    architecture: str
    num_classes: int
    tensors: dict[str, Tensor]
    constants: NormalisationConstants | None
    renamed: dict[str, str]
    dropped: dict[str, str]
    missed: list[str]


def unwrap(loaded: Any, *, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict in a loaded checkpoint, and the names of the other entries with what they are.

    Raises:
        UserError: There is no state dict, or it holds more than named tensors.
    """
    content = loaded
    ignored: dict[str, str] = {}
    for _ in range(2):  # {"model": {"state_dict": ...}} exists
        if isinstance(content, Mapping):
            wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
            if wrapper is not None:
                others = {name: value for name, value in content.items() if name != wrapper}
                ignored |= {str(name): f"{_kind(value)}, not weights" for name, value in others.items()}
                content = content[wrapper]
    if isinstance(content, UnknownObject):
        raise UserError(
            f"{where}: holds a whole object ({_kind(content)}), which cannot be read without running its code; save "
            "its state_dict() instead, if you trust it"
        )
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: holds no state dict (found {type(content).__name__})")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise UserError(f"{where}: not a state dict: {_few(odd)} is no tensor")
    return dict(content), ignored


def convert_state_dict(state: Mapping[str, Tensor], *, architecture: str | None, where: str) -> ConvertedStateDict:
    """Convert a state dict to our tensor names.

    Args:
        state: Tensors by their name in the file.
        architecture: Its name or alias; None to infer it from names and shapes.
        where: What to call the file in an error.

    Raises:
        UserError: Two tensors have one name, a copy differs, a tensor is unexplained or missing, a value is not
            finite, or no architecture fits.
    """
    given = architecture_named(architecture) if architecture is not None else None
    if odd := [name for name, tensor in state.items() if not _is_dense_real(name, tensor)]:
        raise UserError(f"{where}: {_few(odd)} is no plain tensor of real numbers; save it as dense float32")
    main, copies = _strip_prefixes(state, known=_own_names(given), where=where)
    dropped = _check_copies(copies, main, where=where)
    constants = _take_constants(main, where=where)
    ours = {plain: item.tensor for plain, item in main.items()}
    name = given.name if given is not None else _infer_architecture(ours, where=where)
    for plain in [plain for plain in ours if plain.startswith(UNUSED.get(name, "\0"))]:
        dropped[main[plain].name] = "never run by this network"
        del ours[plain]
    num_classes = _num_classes(ours, architecture_named(name), where=where)
    expected = expected_tensors(name, num_classes)
    if problems := _differences(ours, expected):
        listed = [f"{len(names)} tensors {what} ({_few(names)})" for what, names in problems.items()]
        raise UserError(f"{where}: not a {name}: {', '.join(listed)}")
    missed = [plain for plain in expected if plain not in ours]
    ours |= {plain: torch.zeros((), dtype=torch.int64) for plain in missed}
    bad = [plain for plain, tensor in ours.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise UserError(f"{where}: {_few(bad)} holds NaN or infinity; the checkpoint is broken")
    renamed = {item.name: plain for plain, item in main.items() if item.name != plain and plain in ours}
    return ConvertedStateDict(name, num_classes, ours, constants, renamed, dropped, missed)


@functools.lru_cache(maxsize=32)
def expected_tensors(architecture: str, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes of an architecture's state dict, without allocating it."""
    network = network_of(build_on_meta(architecture_named(architecture), num_classes=num_classes))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _own_names(architecture: TeacherArchitecture | None) -> Collection[str]:
    """Return the tensor names of a timm network, some of which begin like a wrapper's prefix."""
    if architecture is None or architecture.name in ARCHITECTURES:
        return ()
    return expected_tensors(architecture.name, 2).keys()


def _strip_prefixes(
    state: Mapping[str, Tensor], *, known: Collection[str], where: str
) -> tuple[dict[str, NamedTensor], dict[str, NamedTensor]]:
    """Strip prefixes down to a known name; return the network's tensors and the attacker's copies by plain name."""
    main: dict[str, NamedTensor] = {}
    copies: dict[str, NamedTensor] = {}
    for name, tensor in state.items():
        plain, target = name, main
        while plain not in known:
            if plain.startswith(COPY):
                plain, target = plain.removeprefix(COPY), copies
            elif prefix := next((prefix for prefix in PREFIXES if plain.startswith(prefix)), None):
                plain = plain.removeprefix(prefix)
            else:
                break
        if plain in target:
            raise UserError(f"{where}: '{name}' and '{target[plain].name}' both mean '{plain}'")
        target[plain] = NamedTensor(name, tensor)
    return main, copies


def _check_copies(copies: Mapping[str, NamedTensor], main: Mapping[str, NamedTensor], *, where: str) -> dict[str, str]:
    """Check that the attacker's copies equal the network's tensors; return their names with the reason to drop them."""
    constants = {NORMALISATION[plain]: item.tensor for plain, item in main.items() if plain in NORMALISATION}
    for plain, (name, tensor) in copies.items():
        original = main[plain].tensor if plain in main else constants.get(NORMALISATION.get(plain, ""))
        if original is None:
            raise UserError(f"{where}: '{name}' is a copy of nothing in the file")
        if not torch.equal(original.flatten(), tensor.flatten()):
            raise UserError(f"{where}: '{name}' differs from the tensor it should be a copy of")
    return {item.name: "a copy of the same weights" for item in copies.values()}


def _take_constants(main: dict[str, NamedTensor], *, where: str) -> NormalisationConstants | None:
    """Remove mean and std from ``main`` and return them."""
    constants: dict[str, tuple[float, ...]] = {}
    for plain in [plain for plain in main if plain in NORMALISATION]:
        name, tensor = main.pop(plain)
        role = NORMALISATION[plain]
        values = tuple(float(value) for value in tensor.flatten())
        lowest = 0.0 if role == "mean" else 1e-6
        if len(values) != 3 or not all(lowest <= value <= 1 for value in values):
            raise UserError(f"{where}: '{name}' should be three numbers in [0, 1], for images in [0, 1]")
        if constants.setdefault(role, values) != values:
            raise UserError(f"{where}: holds two different normalisations; '{name}' is one")
    if len(constants) == 1:
        raise UserError(f"{where}: holds the {next(iter(constants))} of a normalisation, but only that")
    return NormalisationConstants(constants["mean"], constants["std"]) if constants else None


def _num_classes(tensors: Mapping[str, Tensor], architecture: TeacherArchitecture | None, *, where: str) -> int:
    names = [f"{layer}.weight" for layer in (architecture.classifiers if architecture else CLASSIFIERS)]
    for name in names:
        if name in tensors and tensors[name].ndim >= 2:
            if not 2 <= (classes := len(tensors[name])) <= MOST_CLASSES:
                raise UserError(f"{where}: has {classes} classes; between 2 and {MOST_CLASSES} are needed")
            return classes
    what = "no teacher that rnascl knows" if architecture is None else f"not a {architecture.name}"
    raise UserError(f"{where}: {what}; it has no {' or '.join(names)}")


def _infer_architecture(tensors: Mapping[str, Tensor], *, where: str) -> str:
    """Return the architecture that fits, else one that nearly does: its differences are then reported one by one."""
    num_classes = _num_classes(tensors, None, where=where)
    differences: dict[str, int] = {}
    for name in ARCHITECTURES:
        used = {plain: tensor for plain, tensor in tensors.items() if not plain.startswith(UNUSED.get(name, "\0"))}
        problems = _differences(used, expected_tensors(name, num_classes))
        if not problems:
            return name
        differences[name] = sum(len(names) for names in problems.values())
    nearest = min(differences, key=lambda name: differences[name])
    if differences[nearest] <= len(expected_tensors(nearest, num_classes)) // 4:
        return nearest
    raise UserError(
        f"{where}: the tensors fit none of the architectures that rnascl knows ({', '.join(ARCHITECTURES)})"
    )


def _differences(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Return what is wrong with a state dict, by kind of problem; BatchNorm's counters may be missing."""
    problems = {
        "unexplained": sorted(set(tensors) - set(expected)),
        "missing": [name for name in expected if name not in tensors and not name.endswith(COUNTER)],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    return {what: names for what, names in problems.items() if names}


def _kind(value: object) -> str:
    return f"an object of {value.path}" if isinstance(value, UnknownObject) else type(value).__name__


def _is_dense_real(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is dense, real and has its data (one on the meta device has none)."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and (tensor.is_floating_point() or name.endswith(COUNTER))


def _few(names: Iterable[str]) -> str:
    listed = [name[:80] for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
