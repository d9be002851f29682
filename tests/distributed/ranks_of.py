"""Several gloo processes of one function, as torchrun would start them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn


def on_ranks(function: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list[Any]:
    """Run ``function(*arguments)`` on so many joined ranks; return what each returned, by way of ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_rank, (function, count, port, folder, arguments), nprocs=count)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank{number}.pt", weights_only=False) for number in range(count)]


def _rank(
    number: int, function: Callable[..., Any], count: int, port: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    from rnascl_cli import ranks

    with ranks.together():
        torch.save(function(*arguments), folder / f"rank{number}.pt")
