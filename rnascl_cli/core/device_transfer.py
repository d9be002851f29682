"""From the CPU to a device without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Return the values on ``device``; what lies there already is returned as it is.

    From ordinary memory of the CPU, or from rows that do not lie one behind the other, a copy to a GPU waits until
    everything queued before it is done. Page-locked memory is read whenever its turn comes, and torch does not give it
    to anybody else before.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.contiguous().pin_memory().to(device, non_blocking=True)
    return values.to(device)
