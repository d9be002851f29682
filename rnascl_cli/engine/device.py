"""Device and precision of a run."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import nn

from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError
from rnascl_cli.engine.cuda_graphs import CudaGraphBackend, GraphBackend
from rnascl_cli.engine.malloc import keep_freed_memory

DType = Literal["fp32", "bf16"]
CPUINFO = Path("/proc/cpuinfo")
"""Linux's description of the processors."""
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class DeviceConfig:
    """Device and precision of the networks.

    Attributes:
        device: The torch device.
        student: Precision of the student or supernet.
        teacher: Precision of the teacher's forward pass.
        graph_backend: Captures steps; None to run them eagerly.
        compile_enabled: Whether steps are compiled.
    """

    device: torch.device
    student: DType
    teacher: DType
    graph_backend: GraphBackend | None = None
    compile_enabled: bool = False

    def student_autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of the student's forward pass."""
        return _autocast(self.device, self.student)

    def teacher_autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of the teacher's forward pass."""
        return _autocast(self.device, self.teacher)

    def maybe_compile(self, function: Callable[P, R]) -> Callable[P, R] | None:
        """Return the function compiled by ``torch.compile``; None if compiling is not enabled.

        The first call takes about a minute on a GPU and some minutes on a CPU.
        """
        if not self.compile_enabled:
            return None
        # torch chooses layouts by the forward convolutions of a graph. A backward graph has none, and its depthwise
        # convolutions would get inputs in an order that oneDNN has to copy (torch 2.14).
        options: dict[str, Any] | None = {"force_layout_optimization": True} if self.device.type == "cpu" else None
        compiled: Callable[P, R] = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        return compiled

    @contextlib.contextmanager
    def teacher_weights(self, teacher: nn.Module) -> Iterator[None]:
        """Convert the teacher's convolution and linear weights to its precision while the context is open.

        Autocast would convert them in each forward pass, which takes longer than many layers of a wide network.
        """
        layers = [module for module in teacher.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        exact = [(parameter, parameter.data) for layer in layers for parameter in layer.parameters()]
        dtype = torch.bfloat16 if self.teacher == "bf16" else torch.float32
        for parameter, data in exact:
            parameter.data = data.to(dtype)
        try:
            yield
        finally:
            for parameter, data in exact:
                parameter.data = data

    @property
    def device_name(self) -> str:
        """Name of the device, e.g. ``"cpu (AMD EPYC, 2 threads)"``, or ``"8 x cuda (...)"``."""
        count = f"{distributed.size()} x " if distributed.size() > 1 else ""
        if self.device.type == "cuda":
            return f"{count}cuda ({torch.cuda.get_device_name(self.device)})"
        return f"{count}cpu ({_cpu_model()}, {torch.get_num_threads()} threads)"

    @property
    def precision(self) -> str:
        """Both precisions in words."""
        return self.student if self.student == self.teacher else f"{self.student}, teacher {self.teacher}"


def resolve_device(
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "fp32", "bf16"],
    *,
    deterministic: bool = False,
    capture: bool | None = False,
    compile_enabled: bool = False,
) -> DeviceConfig:
    """Choose device and precision.

    Device ``auto`` is CUDA if available. Precision ``auto`` is bf16 for both networks on a device with bf16
    instructions, otherwise float32.

    Args:
        device: As in the recipe.
        precision: As in the recipe.
        deterministic: Make this process deterministic first, see :func:`make_deterministic`.
        capture: Capture steps as CUDA graphs; None: if possible.
        compile_enabled: Compile steps.

    Raises:
        UserError: CUDA is requested and not available, there are more processes than GPUs, or steps cannot be captured
            or compiled as requested.
    """
    if deterministic:
        make_deterministic()
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available; use --device cpu or auto")
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if where.type == "cpu":
        keep_freed_memory()
    elif distributed.local_size() > torch.cuda.device_count():
        raise UserError(
            f"torchrun --nproc-per-node {distributed.local_size()}: this machine has {torch.cuda.device_count()} GPUs; "
            "start one process per GPU, or use --device cpu"
        )
    if capture is None:
        capture = where.type == "cuda" and distributed.size() == 1 and not deterministic
    recorder = _cuda_graphs(where) if capture else None
    if compile_enabled:
        _check_can_compile(where, deterministic=deterministic)
    if precision != "auto":
        return DeviceConfig(where, precision, precision, recorder, compile_enabled)
    has_bf16 = torch.cuda.is_bf16_supported() if where.type == "cuda" else _cpu_has_bf16()
    both: DType = "bf16" if has_bf16 else "fp32"
    return DeviceConfig(where, both, both, recorder, compile_enabled)


def _cuda_graphs(where: torch.device) -> GraphBackend:
    if where.type != "cuda":
        raise UserError("recipe key 'capture_steps': steps can be captured on a CUDA device only; leave it out")
    if distributed.size() > 1:
        raise UserError("recipe key 'capture_steps': steps cannot be captured with several processes; leave it out")
    return CudaGraphBackend()


def _check_can_compile(where: torch.device, *, deterministic: bool) -> None:
    if distributed.size() > 1:
        raise UserError("recipe key 'compile_steps': steps cannot be compiled with several processes; leave it out")
    if deterministic and where.type == "cuda":
        raise UserError(
            "recipe key 'compile_steps': on a GPU torch.compile selects kernels by timing, which is not "
            "deterministic; leave it out, or deterministic"
        )
    if where.type == "cpu" and not has_cpp_compiler():
        raise UserError(
            "recipe key 'compile_steps': torch.compile needs a C++ compiler for a CPU; install g++, name one by CXX, "
            "or leave the key out"
        )


def make_deterministic() -> None:
    """Make torch use deterministic operators for the rest of this process.

    Call it before the first use of cuBLAS, which reads its workspace setting then. torch warns about operators without
    a deterministic implementation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(kilobytes if platform.system() == "Darwin" else kilobytes * 1024)


def _autocast(device: torch.device, precision: DType) -> contextlib.AbstractContextManager[object]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def has_cpp_compiler() -> bool:
    """Return whether the compiler that torch.compile calls is installed."""
    if os.name != "posix":
        return True  # torch searches for one in other ways
    named = os.environ.get("CXX", "").split() or ["clang++" if platform.system() == "Darwin" else "g++"]
    return shutil.which(named[0]) is not None


def _cpu_has_bf16() -> bool:
    try:
        flags = CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_model() -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
