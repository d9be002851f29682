"""``timm:NAME``: the classifiers of PyTorch Image Models (Wightman 2019), by the names they have there.

A name may carry a tag that says which weights are meant, ``resnet18.a1_in1k``; without one, timm's default is taken
and written down, so that a result names the weights it was made with.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnascl_cli.core.console import info
from rnascl_cli.core.errors import UserError
from rnascl_cli.teachers.architectures.imagenet import Normalised
from rnascl_cli.teachers.files import PREFIX

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class TimmModel:
    """What timm says of one of its models.

    Attributes:
        name: With its tag where it has one.
        input_size: Height and width it was made for, pixels.
        num_classes: Of the published weights; 0 where they end in features.
        classifier: Name of the layer that gives the logits.
        constants: Mean and std that its weights expect, for images in [0, 1].
        has_weights: Whether timm knows where weights of it are.
        hub_id: Where they are on Hugging Face; None elsewhere.
    """

    name: str
    input_size: int
    num_classes: int
    classifier: str
    constants: Constants
    has_weights: bool
    hub_id: str | None

    def build(self, *, num_classes: int) -> Normalised:
        """Build it with fresh weights, behind a normalisation that does nothing yet."""
        import timm

        return Normalised(timm.create_model(self.name, pretrained=False, num_classes=num_classes))

    def pretrained(self) -> nn.Module:
        """Build the bare network with timm's weights, downloaded where they are not in its cache.

        Raises:
            UserError: There are none, they are no classifier's, or they cannot be had.
        """
        import timm

        by_hand = f"'rnascl teacher import FILE --arch {PREFIX}{self.name}'"
        if not self.has_weights:
            raise UserError(f"{PREFIX}{self.name}: timm has no weights of it; import your own by {by_hand}")
        if self.num_classes == 0:
            raise UserError(
                f"{PREFIX}{self.name}: timm's weights end in features, without a classifier; choose another model"
            )
        info(f"{PREFIX}{self.name}: taking the weights from timm, which downloads them once")
        try:
            with _quiet_hub():
                network: nn.Module = timm.create_model(self.name, pretrained=True)
        except Exception as error:  # huggingface_hub, urllib, the file system and torch raise many kinds
            page = f" from https://huggingface.co/{self.hub_id}" if self.hub_id else ""
            raise UserError(
                f"{PREFIX}{self.name}: its weights are not in timm's cache, and the download failed "
                f"({_reason(error)}); go online, or fetch the file{page} elsewhere and run {by_hand}"
            ) from None
        return network


@functools.lru_cache(maxsize=32)
def timm_model(name: str, *, option: str = "--arch") -> TimmModel:
    """Return what timm says of a model.

    Args:
        name: As in timm, without ``timm:``.
        option: What to call it in an error.

    Raises:
        UserError: timm has no such model, or it takes other things than RGB images.
    """
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(f"{option} {PREFIX}{name}: timm has no model '{base}'{_near(base, timm.list_models())}")
    facts: Any = None
    with contextlib.suppress(RuntimeError):  # for an unknown tag timm raises, or returns None, by release
        facts = timm.get_pretrained_cfg(name)
    if facts is None:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        raise UserError(f"{option} {PREFIX}{name}: timm has no weights '{tag}' of {base}{_near(tag, tags)}")
    channels, height, width = facts.input_size
    if channels != 3 or height != width:
        raise UserError(f"{option} {PREFIX}{name}: takes {channels}x{height}x{width}, not square RGB images")
    classifier = facts.classifier[0] if isinstance(facts.classifier, tuple | list) else facts.classifier
    if not classifier:
        raise UserError(f"{option} {PREFIX}{name}: has no classifier; a teacher needs one")
    return TimmModel(
        name=f"{base}.{facts.tag}" if facts.tag else base,
        input_size=height,
        num_classes=facts.num_classes or 0,
        classifier=classifier,
        constants=(tuple(facts.mean), tuple(facts.std)),
        has_weights=bool(facts.has_weights),
        hub_id=facts.hf_hub_id or None,
    )


def tensors_sha256(module: nn.Module, constants: Constants) -> str:
    """Return a sha256 over the normalisation and the state dict: names, types, shapes and bytes, ordered by name.

    It is the identity of a network that comes from a library and not from a file.
    """
    digest = hashlib.sha256(f"{constants}\n".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(repr(name) for name in close)}?" if close else "; see timm.list_models()"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's client from writing a line for each of its retries; how it ended is said once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
