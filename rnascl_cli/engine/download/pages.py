"""A checkpoint, or a web page in its place? Hosts answer 200 with a page about quotas, scans and sign-ins."""

from __future__ import annotations

import html
import re

LONGEST_SAFETENSORS_HEADER = 100_000_000  # bytes, the limit of the format's own reader


def is_checkpoint(head: bytes) -> bool:
    """Tell from its first bytes whether a file can be a checkpoint: a zip or pickle of PyTorch, or safetensors."""
    if head.startswith(b"PK\x03\x04"):  # torch.save since 1.6
        return True
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:  # torch.save before that: pickle's protocol number
        return True
    return is_safetensors(head)


def is_safetensors(head: bytes) -> bool:
    """Tell from its first bytes whether a file can be safetensors: the length of a JSON header, then the header."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= LONGEST_SAFETENSORS_HEADER


def what_came_instead(head: bytes) -> str | None:
    """Return what a file is that should be a checkpoint, in words, or None where it can be one."""
    if not head:
        return "an empty file came"
    if is_checkpoint(head):
        return None
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"<":
        title = page_title(head)
        return f"a web page came instead of the file{f' ({title})' if title else ''}"
    said = "".join(letter if letter.isprintable() else " " for letter in start[:100].decode("utf-8", "replace"))
    if start[:1] in (b"{", b"["):
        return f"a message came instead of the file: {' '.join(said.split())}"
    return f"what came is no checkpoint; it starts with {' '.join(said.split())[:60]!r}"


def page_title(head: bytes) -> str:
    """Return the title of a web page; empty where there is none."""
    found = re.search(r"<title[^>]*>(.*?)</title>", head.decode("utf-8", "replace"), re.IGNORECASE | re.DOTALL)
    return " ".join(html.unescape(found[1]).split())[:120] if found else ""
