"""torch.compile's own kernels on a CPU; elsewhere the tests follow a compiled step without making kernels of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from rnascl_cli.engine.device import has_cpp_compiler
from rnascl_cli.models.attention_maps import record_attention_maps
from rnascl_cli.models.blocks import MaskedInvertedResidual
from tests.engine.toy import CPU

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler"),
]


def test_a_compiled_block_has_the_slopes_of_a_plain_one() -> None:
    torch.manual_seed(0)
    block = MaskedInvertedResidual(4, 4, stride=1).to(memory_format=torch.channels_last)
    x_BCHW = torch.randn(6, 4, 8, 8).to(memory_format=torch.channels_last).requires_grad_(True)
    widths_C11 = torch.tensor([1.0, 1.0, 0.7, 0.2]).view(-1, 1, 1).requires_grad_(True)
    inputs = [x_BCHW, widths_C11, *block.parameters()]

    with record_attention_maps(block, side=8) as recorder:

        def loss(x_BCHW: Tensor, widths_C11: Tensor) -> Tensor:
            hidden = widths_C11.expand(-1, 6, 1).reshape(-1, 1, 1)
            out_BCHW: Tensor = block(x_BCHW, hidden, widths_C11, widths_C11.mean())
            return out_BCHW.square().mean() + recorder.pop().mean()

        compiled = replace(CPU, compile_enabled=True).maybe_compile(loss)
        assert compiled is not None

        def slopes(of: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
            value = of(x_BCHW, widths_C11)
            return [value, *torch.autograd.grad(value, inputs)]

        plainly = slopes(loss)
        ours, codes = run_and_get_code(partial(slopes, compiled))
    for plain, found in zip(plainly, ours, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    layouts = set(re.findall(r"empty_strided_cpu\(\(6, 24, 8, 8\), (\([0-9, ]+\))", "".join(codes)))
    assert layouts == {"(1536, 1, 192, 24)"}  # channels last, the depthwise convolution's input as well
