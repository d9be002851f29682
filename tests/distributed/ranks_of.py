"""Several gloo processes of one function, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from tests.reliability.processes import ROOT


def on_ranks(function: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list[Any]:
    """Run ``function(*arguments)`` on so many joined ranks; return what each returned, by way of ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked from a server that has torch in memory already.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.reliability.warm"])
    given = (function, count, port, folder, arguments)
    start_processes(_rank, given, nprocs=count, start_method="forkserver")  # type: ignore[no-untyped-call]
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
    from rnascl_cli.core import distributed

    with distributed.process_group():
        torch.save(function(*arguments), folder / f"rank{number}.pt")
