"""``timm:NAME``: the classifiers of PyTorch Image Models (Wightman 2019), by their names there.

A name may carry a tag that says which weights are meant, as in ``resnet18.a1_in1k``. Without one, timm's default tag
is used and recorded, so that a result names the weights it was made with.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnascl_cli.core.console import info
from rnascl_cli.core.errors import UserError
from rnascl_cli.teachers.architectures.imagenet import Normalised
from rnascl_cli.teachers.files import PREFIX
from rnascl_cli.teachers.public_checkpoints import NormalisationConstants


@dataclass(frozen=True)
class TimmModel:
    """timm's description of one of its models.

    Attributes:
        name: With its tag, where it has one.
        input_size: Height and width of its training images, pixels.
        num_classes: Of the pretrained weights; 0 where they have no classifier.
        classifier: Name of the layer that gives the logits.
        constants: Normalisation that its weights expect.
        has_weights: Whether timm has pretrained weights of it.
        hub_id: Their repository on the Hugging Face Hub; None elsewhere.
    """

    name: str
    input_size: int
    num_classes: int
    classifier: str
    constants: NormalisationConstants
    has_weights: bool
    hub_id: str | None

    def build(self, *, num_classes: int) -> Normalised:
        """Build it with fresh weights, behind an identity normalisation."""
        import timm

        return Normalised(timm.create_model(self.name, pretrained=False, num_classes=num_classes))

    def pretrained(self) -> nn.Module:
        """Build the bare network with timm's weights, which timm downloads once.

        Raises:
            UserError: There are no weights, they have no classifier, or the download failed.
        """
        import timm

        name = f"{PREFIX}{self.name}"
        by_hand = f"'rnascl teacher import FILE --arch {name}'"
        if not self.has_weights:
            raise UserError(f"{name}: timm has no weights of it; import your own by {by_hand}")
        if self.num_classes == 0:
            raise UserError(f"{name}: timm's weights have no classifier, only features; choose another model")
        info(f"{name}: loading timm's weights, which timm downloads once")
        hub_log = logging.getLogger("huggingface_hub")
        level = hub_log.level
        hub_log.setLevel(logging.CRITICAL)  # it logs a line for each retry; the error below says how it ended
        try:
            network: nn.Module = timm.create_model(self.name, pretrained=True)
        except Exception as error:  # huggingface_hub, urllib, the file system and torch raise many kinds
            page = f" from https://huggingface.co/{self.hub_id}" if self.hub_id else ""
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")
            raise UserError(
                f"{name}: its weights are not in timm's cache and cannot be downloaded ({reason}); go online, or get "
                f"the file{page} elsewhere and run {by_hand}"
            ) from None
        finally:
            hub_log.setLevel(level)
        return network


@functools.lru_cache(maxsize=32)
def timm_model(name: str, *, option: str = "--arch") -> TimmModel:
    """Return timm's description of a model.

    Args:
        name: As in timm, without ``timm:``.
        option: What to call it in an error.

    Raises:
        UserError: timm has no such model, or it is not a classifier of square RGB images.
    """
    import timm

    where = f"{option} {PREFIX}{name}"
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(f"{where}: timm has no model '{base}'{_suggestions(base, timm.list_models())}")
    config: Any = None
    with contextlib.suppress(RuntimeError):  # for an unknown tag timm raises or returns None, by release
        config = timm.get_pretrained_cfg(name)
    if config is None:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        raise UserError(f"{where}: timm has no weights '{tag}' of {base}{_suggestions(tag, tags)}")
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise UserError(f"{where}: takes {channels}x{height}x{width} inputs, not square RGB images")
    classifier = config.classifier[0] if isinstance(config.classifier, tuple | list) else config.classifier
    if not classifier:
        raise UserError(f"{where}: has no classifier, which a teacher needs; choose another model")
    return TimmModel(
        name=f"{base}.{config.tag}" if config.tag else base,
        input_size=height,
        num_classes=config.num_classes or 0,
        classifier=classifier,
        constants=NormalisationConstants(tuple(config.mean), tuple(config.std)),
        has_weights=bool(config.has_weights),
        hub_id=config.hf_hub_id or None,
    )


def tensors_sha256(module: nn.Module, constants: NormalisationConstants) -> str:
    """Return a sha256 over the normalisation and the state dict: names, types, shapes and bytes, sorted by name.

    It identifies a network that comes from a library and not from a file.
    """
    digest = hashlib.sha256(f"{tuple(constants)}\n".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _suggestions(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(repr(name) for name in close)}?" if close else "; see timm.list_models()"
