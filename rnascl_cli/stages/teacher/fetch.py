"""``teacher fetch``: download a checkpoint, and import it as a teacher file."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rnascl_cli.artifacts.store import read_header, sha256_file
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import RunError, UserError, did_you_mean
from rnascl_cli.stages.teacher.import_checkpoint import ImportResult, import_teacher
from rnascl_cli.stages.teacher.self_test import SelfTestSettings
from rnascl_cli.stages.teacher.train import check_out
from rnascl_cli.teachers.download import (
    FORMS,
    Address,
    DownloadError,
    check_writable,
    download,
    exclusive,
    parse_address,
)
from rnascl_cli.teachers.files import SUFFIX, default_file
from rnascl_cli.teachers.public_checkpoints import PUBLIC, NormalisationConstants

HEADER_FIELDS = ("architecture", "num_classes", "mean", "std")
Import = Callable[..., ImportResult]


@dataclass(frozen=True)
class FetchRequest:
    """What ``teacher fetch`` was asked for.

    Attributes:
        text: The argument.
        public: Name of the public checkpoint; None for an address.
        addresses: Where it is, the first choice first, each with the expected sha256 where one is known.
        stem: Name of its file in the teacher cache, without suffix.
        source: The ``source`` field in the header of its teacher file.
        import_options: Options for importing it by hand.
    """

    text: str
    public: str | None
    addresses: tuple[tuple[Address, str | None], ...]
    stem: str
    source: str
    import_options: str


def fetch_request(text: str, *, architecture: str | None = None, sha256: str | None = None) -> FetchRequest:
    """Resolve a name or an address.

    Args:
        text: A name of :data:`PUBLIC`, or ``https://...``, ``hf:OWNER/REPO[@REVISION]/FILE``, ``gdrive:ID``.
        architecture: Its architecture, for the advice on importing it by hand.
        sha256: Expected sha256 of the checkpoint, instead of the published one.

    Raises:
        UserError: It is neither, or the sha256 is malformed.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.lower()):
        raise UserError(f"--sha256 {sha256[:80]}: write 64 hexadecimal digits")
    if text in PUBLIC:
        known = PUBLIC[text]
        addresses = tuple((parse_address(address), sha256 or theirs) for address, theirs in known.addresses)
        return FetchRequest(text, text, addresses, text, f"RobustBench {known.robustbench}", f"--public {text}")
    if ":" not in text:
        if Path(text).is_file():
            raise UserError(f"teacher fetch: {text} is a local file; run 'rnascl teacher import {text}'")
        raise UserError(f"teacher fetch: no public teacher '{text}'{did_you_mean(text, PUBLIC)}; or write {FORMS}")
    address = parse_address(text)
    stem = re.sub(r"\.(pt|pth|ckpt|tar|safetensors)$", "", address.file_name, flags=re.IGNORECASE)
    return FetchRequest(text, None, ((address, sha256),), stem, address.text, f"--arch {architecture or 'NAME'}")


def fetch_teacher(
    text: str,
    out: Path | None = None,
    *,
    architecture: str | None = None,
    constants: NormalisationConstants | None = None,
    sha256: str | None = None,
    settings: SelfTestSettings | None = None,
    force: bool = False,
) -> ImportResult:
    """Download a checkpoint and import it, unless its teacher file exists already.

    Args:
        text: See :func:`fetch_request`.
        out: The teacher file; by default in the teacher cache.
        architecture: Its architecture; None for that of the public checkpoint, or to infer it from the tensors.
        constants: Normalisation to use instead of the file's own.
        sha256: Expected sha256 of the checkpoint.
        settings: Of the self-test.
        force: Whether to download it again and replace ``out``.

    Raises:
        UserError: The name or address is unknown, ``out`` is another file, or the checkpoint is unusable.
        RunError: No address gives the file, the disk is full, or a folder cannot be written to.
    """
    request = fetch_request(text, architecture=architecture, sha256=sha256)
    out = out or default_file(request.stem)
    if not force and (existing := _existing(request, out)) is not None:
        return existing
    check_out(out, force=force)
    check_writable(out.parent)
    import_download = functools.partial(
        import_teacher,
        out=out,
        architecture=architecture,
        public=request.public,
        constants=constants,
        settings=settings,
        force=force,
    )
    problems: list[str] = []
    for address, expected_sha256 in request.addresses:
        if problems:
            warning(f"{problems[-1]}; trying the mirror")
        try:
            with exclusive(address):
                if not force and (existing := _existing(request, out)) is not None:
                    return existing  # another process has fetched it meanwhile
                return _fetch_from(address, request, import_download, sha256=expected_sha256, fresh=force)
        except DownloadError as error:
            problems.append(str(error))
    raise RunError(
        f"teacher fetch {text}: {'; '.join(problems)}. Check the network connection and try again later, or open "
        f"{request.addresses[0][0].url} in a browser and run 'rnascl teacher import FILE {request.import_options}'"
    )


def _fetch_from(
    address: Address, request: FetchRequest, import_download: Import, *, sha256: str | None, fresh: bool
) -> ImportResult:
    info(f"fetching {request.source} from {address.url}")
    # Google Drive does not tell the name that RobustBench gave the file; elsewhere it is in the address.
    is_drive = request.public is not None and address.text.startswith("gdrive:")
    stem = PUBLIC[str(request.public)].robustbench if is_drive else None
    path = download(address, stem=stem, sha256=sha256, fresh=fresh)
    try:
        imported = import_download(path, source_url=address.url)
    except UserError as error:
        raise UserError(
            f"teacher fetch {request.text}: downloaded, but it cannot be imported: {error}. 'rnascl teacher import "
            f"{path} ...' tries again, and --force downloads it again"
        ) from None
    path.unlink()
    return imported


def _existing(request: FetchRequest, out: Path) -> ImportResult | None:
    """Describe the teacher file at ``out`` if it was made from the requested checkpoint; None if there is no file.

    Raises:
        UserError: There is another file.
    """
    if out.suffix != SUFFIX or not out.is_file():
        return None
    header = read_header(out) or {}
    urls = [address.url for address, _ in request.addresses]
    same = header.get("source") == request.source or header.get("source_url") in urls
    if header.get("kind") != "teacher" or not same or not all(name in header for name in HEADER_FIELDS):
        made_from = header.get("source") or "something else"
        raise UserError(
            f"--out {out}: already exists and was made from {made_from}; use another name, or --force to replace it"
        )
    info(f"{request.text} exists already: {out}; --force fetches it again")
    return ImportResult(
        path=str(out),
        sha256=sha256_file(out),
        **{name: header[name] for name in HEADER_FIELDS},
        source=header.get("source_file", ""),
        source_sha256=header.get("source_sha256", ""),
        published=header.get("published"),
    )
