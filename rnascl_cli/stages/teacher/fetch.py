"""``teacher fetch``: download a checkpoint, then import it as a teacher file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rnascl_cli.artifacts.store import read_header, sha256_file
from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.console import info, warning
from rnascl_cli.core.errors import RunError, UserError, did_you_mean
from rnascl_cli.data import Data
from rnascl_cli.engine.download import (
    Address,
    DownloadError,
    Patience,
    alone,
    check_writable,
    downloaded,
    parse_address,
)
from rnascl_cli.engine.download.addresses import FORMS, Drive
from rnascl_cli.recipes import SELF_TEST_IMAGES
from rnascl_cli.stages.teacher.import_checkpoint import ImportResult, default_file, import_teacher
from rnascl_cli.stages.teacher.train import check_out
from rnascl_cli.teachers.files import SUFFIX
from rnascl_cli.teachers.public_checkpoints import PUBLIC
from rnascl_cli.teachers.state_dict_conversion import Constants

PATIENCE = Patience()


@dataclass(frozen=True)
class FetchRequest:
    """What ``teacher fetch`` was asked for.

    Attributes:
        text: As it was asked.
        public: The name of a public checkpoint; None for an address.
        addresses: Where it is, the first choice first, each with the sha256 that it must have, where one is known.
        stem: What to call it in the teacher cache.
        source: What a teacher file that was made from it says of its source.
        import_options: What ``teacher import`` needs to be told to do the rest by hand.
    """

    text: str
    public: str | None
    addresses: tuple[tuple[Address, str | None], ...]
    stem: str
    source: str
    import_options: str


def downloads_dir() -> Path:
    """Return where downloads are kept while they are under way: ``downloads/`` in the cache folder."""
    return cache_dir() / "downloads"


def fetch_request(text: str, *, architecture: str | None = None, sha256: str | None = None) -> FetchRequest:
    """Return what a name or an address means.

    Args:
        text: A name of the public table, or ``https://...``, ``hf:OWNER/REPO[@REVISION]/FILE``, ``gdrive:ID``.
        architecture: What it is, for the advice how to import it by hand.
        sha256: What the file must be; over what the table knows.

    Raises:
        UserError: It is neither, or the sha256 is none.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.lower()):
        raise UserError(f"--sha256 {sha256[:80]}: write 64 hexadecimal digits")
    if text in PUBLIC:
        known = PUBLIC[text]
        addresses = tuple((parse_address(address), sha256 or theirs) for address, theirs in known.addresses)
        return FetchRequest(text, text, addresses, text, f"RobustBench {known.robustbench}", f"--public {text}")
    if ":" not in text:
        if Path(text).is_file():
            raise UserError(f"teacher fetch: {text} is a file that is here; run 'rnascl teacher import {text}'")
        raise UserError(f"teacher fetch: no public teacher '{text}'{did_you_mean(text, PUBLIC)}; or write {FORMS}")
    address = parse_address(text)
    stem = re.sub(r"\.(pt|pth|ckpt|tar|safetensors)$", "", address.file_name, flags=re.IGNORECASE)
    options = f"--arch {architecture or 'NAME'}"
    return FetchRequest(text, None, ((address, sha256),), stem, str(address), options)


def fetch_teacher(
    text: str,
    out: Path | None = None,
    *,
    architecture: str | None = None,
    constants: Constants | None = None,
    sha256: str | None = None,
    data: Data | None = None,
    limit_test: int = SELF_TEST_IMAGES,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    force: bool = False,
) -> ImportResult:
    """Download a checkpoint and import it, unless it is there already.

    Args:
        text: See :func:`wanted`.
        out: The teacher file; by default in the teacher cache.
        architecture: What it is; None for what the table says, or to tell it from the tensors.
        constants: Mean and std to put before the network, over what the file holds.
        sha256: What the checkpoint must be.
        data: Test images for the self-test; None for those of the usual set, where they are here.
        limit_test: How many images of that set.
        device: Of the self-test.
        seed: Of the self-test's random starts.
        force: Whether to fetch it again and replace ``out``.

    Raises:
        UserError: An unknown name or address; ``out`` is another file; the checkpoint is unusable.
        RunError: None of its addresses gives it, the disk is full, or a folder cannot be written.
    """
    asked = fetch_request(text, architecture=architecture, sha256=sha256)
    out = out or default_file(asked.stem)
    lock = downloads_dir() / f"out-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8]}.lock"
    if not force and (here := _already_here(asked, out)) is not None:
        return here
    check_out(out, force=force)
    check_writable(out.parent)
    how = {
        "architecture": architecture,
        "constants": constants,
        "data": data,
        "limit_test": limit_test,
        "device": device,
        "seed": seed,
    }
    with alone(lock, what=f"{text} to {out}"):
        if not force and (here := _already_here(asked, out)) is not None:  # another process has just brought it
            return here
        problems = []
        for address, expected in asked.addresses:
            try:
                return _fetch_from(address, out, asked=asked, sha256=expected, force=force, how=how)
            except DownloadError as error:
                problems.append(f"{address.page}: {error}")
                if len(problems) < len(asked.addresses):
                    warning(f"{problems[-1]}; there is a mirror")
    raise RunError(
        f"teacher fetch {text}: {'; '.join(problems)}. Try again later: what has arrived is kept. Or open "
        f"{asked.addresses[0][0].page} in a browser and run 'rnascl teacher import FILE {asked.import_options}'"
    )


def _fetch_from(
    address: Address, out: Path, *, asked: FetchRequest, sha256: str | None, force: bool, how: dict[str, Any]
) -> ImportResult:
    """Download from one address, and import what came."""
    what = f"{asked.public}, {asked.source}, from " if asked.public is not None else ""
    info(f"fetching {what}{address.page}")
    # Google Drive's file has RobustBench's name; elsewhere the address says it.
    stem = PUBLIC[asked.public].robustbench if asked.public and isinstance(address, Drive) else None
    with downloaded(address, downloads_dir(), stem=stem, sha256=sha256, fresh=force, patience=PATIENCE) as file:
        info(f"downloaded {file.path.name}: sha256 {file.sha256}, {'as published' if file.checked else 'recorded'}")
        try:
            return import_teacher(file.path, out, public=asked.public, source_url=address.page, force=force, **how)
        except UserError as error:
            raise UserError(
                f"teacher fetch {asked.text}: the download is whole, but cannot be imported: {error}. It is kept; "
                f"'rnascl teacher import {file.path} ...' tries again, and --force downloads it again"
            ) from None


def _already_here(asked: FetchRequest, out: Path) -> ImportResult | None:
    """Describe the teacher file at ``out`` where it was made from what is asked for.

    Raises:
        UserError: There is a file, but another one.
    """
    if out.suffix != SUFFIX or not out.is_file():
        return None
    header = read_header(out) or {}
    facts = ("architecture", "num_classes", "mean", "std")
    pages = [address.page for address, _ in asked.addresses]
    same = header.get("source") == asked.source or header.get("source_url") in pages
    if header.get("kind") != "teacher" or not same or not all(fact in header for fact in facts):
        made_from = header.get("source") or "something else"
        raise UserError(
            f"--out {out}: already exists and was made from {made_from}; use another name, or --force to replace it"
        )
    info(f"{asked.text} is here: {out}; --force fetches it again")
    return ImportResult(
        path=str(out),
        sha256=sha256_file(out),
        **{fact: header[fact] for fact in facts},
        source=header.get("source_file", ""),
        source_sha256=header.get("source_sha256", ""),
        published=header.get("published"),
    )
