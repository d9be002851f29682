"""Reading and writing artifacts: atomic writes, checked reads, one clear line for whatever is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from rnascl_cli.artifacts.documents import DOCUMENTS, SCHEMA_VERSION, AnyDocument, Document
from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, parse_json, read_bounded, refuse_oversized_weights
from rnascl_cli.core import distributed
from rnascl_cli.core.errors import UserError, WriteError

if TYPE_CHECKING:
    import torch

D = TypeVar("D", bound=Document)

HEADER_KEY = "rnascl"
SEALED = "header and tensors"
SEAL, SEAL_OF = "sha256", "sha256_of"  # in the header; both or none, so that no flipped bit can take the seal off
STUDENT = "student.safetensors"  # the file of a student in its run directory
TEMPORARY = ".tmp"


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of the file at ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it over ``path``.

    A reader therefore sees the old file or the whole new one, never a part, even across a crash. With ``keep``
    the old file is renamed to that first: at any moment one of the two names is a whole file.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # a folder that has become read-only keeps it
                temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: it is an entry of the folder, and outlives a power cut only once that is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Return whether a file's name is one that an unfinished write has while it lasts."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically.

    Raises:
        WriteError: The disk is full or the folder read-only; the old file is unchanged, no part of the new one stays.
    """
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_with(path: Path, writer: Callable[[Path], None], *, keep: Path | None = None) -> None:
    """Let ``writer`` fill a temporary file, then move it to ``path`` atomically; see :func:`write_bytes`.

    Args:
        path: Where the file goes.
        writer: Fills the temporary file it is given.
        keep: Another name in the same folder that the old file is kept under.
    """
    with _replacing(path, keep=keep) as temporary:
        writer(temporary)


def document_json(document: Document) -> str:
    """Return the document as indented JSON with a final newline."""
    return document.model_dump_json(indent=2) + "\n"


def write_document(path: Path, document: Document) -> None:
    """Write ``document`` to ``path`` atomically; of several ranks, the first does."""
    if distributed.is_rank_zero():
        write_text(path, document_json(document))


def parse_document(text: str | bytes, expected: type[D], *, where: str) -> D:
    """Parse ``text`` as an ``expected`` document.

    Args:
        text: The JSON text.
        expected: The document class wanted.
        where: What to call the source in an error, e.g. a path or ``"stdin"``.

    Raises:
        UserError: Not JSON, another kind, another schema version, or a field that is wrong.
    """
    wanted = expected.model_fields["kind"].default
    raw = parse_json(text, where=where)
    if not isinstance(raw, dict) or "kind" not in raw:
        raise UserError(f"{where}: not an rnascl document (no 'kind'); a '{wanted}' document is needed")
    if raw["kind"] != wanted:
        made_by = f"; it is a '{raw['kind'][:40]}' document" if isinstance(raw["kind"], str) else ""
        raise UserError(f"{where}: a '{wanted}' document is needed{made_by}")
    version = raw.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:  # to Python, 1 == 1.0 == True
        raise UserError(
            f"{where}: schema_version is {str(version)[:40]!r}, this rnascl reads {SCHEMA_VERSION}; "
            "make the document again or use the matching release"
        )
    try:
        return expected.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}") from None


def read_document(path: Path, expected: type[D]) -> D:
    """Read and check the document at ``path``; see :func:`parse_document`."""
    return parse_document(_read(path), expected, where=str(path))


def read_any_document(path: Path) -> AnyDocument:
    """Read the document at ``path``, whatever its kind.

    Raises:
        UserError: It is none of the kinds rnascl writes, or is damaged.
    """
    data = _read(path)
    raw = parse_json(data, where=str(path))
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in DOCUMENTS:
        raise UserError(f"{path}: not an rnascl document (kind is {str(kind)[:40]!r})")
    return parse_document(data, DOCUMENTS[kind], where=str(path))


def first_problem(error: ValidationError) -> str:
    """Return pydantic's complaints as one line: ``field: what is wrong`` for up to three fields."""
    problems = [f"{'.'.join(map(str, item['loc'])) or 'document'}: {item['msg']}" for item in error.errors()]
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_DOCUMENT_BYTES, what="rnascl document")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; name an artifact of rnascl") from None


def write_weights(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> str:
    """Write tensors and a JSON header as safetensors, atomically, sealed by a sha256 over both; the first rank does.

    Args:
        path: Where to write.
        tensors: Name to tensor; moved to the CPU and made contiguous.
        header: JSON-serialisable; kept under one key of the safetensors metadata.

    Returns:
        The sha256 of the file.
    """
    from safetensors.torch import save

    flat = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    sealed = {**header, SEAL: seal(header, flat), SEAL_OF: SEALED}
    data = save(flat, metadata={HEADER_KEY: json.dumps(sealed, sort_keys=True)})
    if distributed.is_rank_zero():
        write_bytes(path, data)
    return sha256_bytes(data)


def seal(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over a header and over tensors: names, types, shapes and bytes, ordered by name.

    A file cannot hold its own sha256; it holds this one, so that a flipped bit is noticed wherever the file is read.
    """
    import torch

    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors, the rnascl header (None when the file is somebody else's), and the plain metadata.

    Raises:
        UserError: The file is absent, truncated, not safetensors, or not what rnascl wrote: its seal is broken.
            Files from before there were seals have none.
    """
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
        header = _header(metadata, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header is not None:
            header = _unsealed(header, tensors, path, text=metadata[HEADER_KEY])
    return tensors, header, metadata


def _unsealed(header: dict[str, Any], tensors: Mapping[str, torch.Tensor], path: Path, *, text: str) -> dict[str, Any]:
    """Check the seal and return the header without it."""
    plain = {key: value for key, value in header.items() if key not in (SEAL, SEAL_OF)}
    if len(plain) == len(header):
        return header
    expected, found = str(header.get(SEAL)), seal(plain, tensors)
    as_written = json.dumps(header, sort_keys=True) == text  # 0.1 may be written in many ways
    if header.get(SEAL_OF) != SEALED or found != expected or not as_written:
        raise UserError(
            f"{path}: has changed since it was written (sha256 of header and tensors: expected {expected[:12]}..., "
            f"found {found[:12]}...); copy or make it again"
        )
    return plain


def read_header(path: Path) -> dict[str, Any] | None:
    """Read the rnascl header of a safetensors file without its tensors, and so unchecked; see :func:`read_weights`."""
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    return _header(metadata, path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        refuse_oversized_weights(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error}); copy or make it again") from None


def _header(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    if HEADER_KEY not in metadata:
        if any(f'"{SEAL_OF}"' in value for value in metadata.values()):
            raise UserError(f"{path}: has changed since it was written (the header's name); copy or make it again")
        return None
    try:
        header = parse_json(metadata[HEADER_KEY], where=str(path))
    except UserError:
        raise UserError(f"{path}: the rnascl header is not JSON; copy or make it again") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: the rnascl header is not a JSON object; copy or make it again")
    return header
