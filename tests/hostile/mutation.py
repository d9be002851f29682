"""Spoilt copies of good files: bits, bytes and slices changed; in JSON also whole values."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

# Tokens that readers of these formats take for something.
TOKENS = (
    b"\0", b"\xff" * 4, b"\xff" * 8, b"\x00\x00\x00\x00\x00\x00\x00\x10", b"NaN", b"Infinity", b"1e400", b"-1", b"null",
    b"[" * 300, b"{", b'"', b"\\ud800", b"\x1b[31m", b"../../x", b"\n", b"=", b"a." * 50, b"9" * 5000, b"PK\x03\x04",
    b"\x80\x02", b"cos\nsystem\n", b".", b"IHDR", b"\xff\xd8\xff", b"1979-05-27", b"'''", b"[[", b"#",
)  # fmt: skip

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 7, 2**31, 2**63 - 1, 2**64, 1.5, -0.0, 1e308, 1e-320, "", "x", "S5", "\x1b[31m", "../../x",
    "a" * 300, "$\\frac$", "<script>alert(1)</script>", "|a`b`", "\ud800", "\u202e", "8/255", "1e999999999", "b" * 64,
    [], [[]], [0], [None, 1], [1.5, "x"], [[0.0]] * 9, {}, {"a": 1}, {"epoch": "x"}, {"loss": None}, {"a": {"b": [1]}},
)  # fmt: skip


def spoilt(seeds: Sequence[bytes], draw: Random, *, structured: bool) -> bytes:
    """Return a good input with a few edits.

    Args:
        seeds: Good inputs.
        draw: Where choices come from; with hypothesis' own Random, what is found is also made smaller.
        structured: Whether the inputs are JSON; every second time whole values change then.
    """
    if structured and draw.random() < 0.5:
        return _odd_json(draw.choice(seeds), draw)
    return _odd_bytes(draw.choice(seeds), draw)


def _odd_bytes(good: bytes, draw: Random) -> bytes:
    data = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, max(len(data) - 1, 0))
        match draw.choice(("bit", "byte", "token", "cut", "drop", "double")):
            case "bit" if data:
                data[at] ^= 1 << draw.randint(0, 7)
            case "byte" if data:
                data[at] = draw.randint(0, 255)
            case "token":
                token = draw.choice(TOKENS)
                data[at : at + len(token) * draw.randint(0, 1)] = token
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw.randint(1, 64)]
            case "double":
                data[at:at] = data[at : at + draw.randint(1, 64)] * draw.randint(1, 3)
    return bytes(data)


def _odd_json(good: bytes, draw: Random) -> bytes:
    """Change one to three values to others, take them out, or put them in twice."""
    raw = json.loads(good)
    for _ in range(draw.randint(1, 3)):
        holder: Any = raw
        while keys := list(holder) if isinstance(holder, dict) else list(range(len(holder))):
            key = draw.choice(keys)
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
                holder = inner
                continue
            match draw.choice(("odd", "odd", "odd", "gone", "twice")):
                case "odd":
                    holder[key] = copy.deepcopy(draw.choice(ODD))
                case "gone":
                    del holder[key]
                case "twice" if isinstance(holder, list):
                    holder.insert(key, copy.deepcopy(inner))
            break
    return json.dumps(raw).encode()
