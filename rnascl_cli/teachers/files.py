"""Find a teacher's file by path or by its name in the teacher cache. This module imports no torch."""

from __future__ import annotations

from pathlib import Path

from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.errors import UserError, did_you_mean, expand_user
from rnascl_cli.teachers.public_checkpoints import PUBLIC

SUFFIX = ".safetensors"
PICKLED = (".pt", ".pth", ".ckpt", ".tar")
PREFIX = "timm:"
"""Prefix of the names of timm's networks, which have no file of ours."""


def teachers_dir() -> Path:
    """Return the teacher cache: ``teachers/`` in the cache folder. It need not exist yet."""
    return cache_dir() / "teachers"


def default_file(stem: str) -> Path:
    """Return the path of a teacher file in the teacher cache, which is where it goes without ``--out``."""
    return teachers_dir() / f"{stem}{SUFFIX}"


def find_teacher(source: str) -> Path:
    """Return the file of a teacher.

    A name is looked up in the teacher cache as ``NAME.safetensors``, then as ``NAME-*.safetensors``.

    Args:
        source: A path, or a name in the teacher cache.

    Raises:
        UserError: There is no such file, or a name matches several.
    """
    path = expand_user(source, option="--teacher")
    if source not in PUBLIC and path.is_file():
        return path
    if path.suffix or len(path.parts) != 1:
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"--teacher {source}: {what}; name a teacher file, timm:NAME, or one of {', '.join(PUBLIC)}")
    if (exact := default_file(source)).is_file():
        return exact
    cached = cached_teachers()
    matches = [item for item in cached if item.name.startswith(f"{source}-")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(item.stem for item in matches)
        raise UserError(f"--teacher {source}: matches several files in {teachers_dir()} ({names}); name one of them")
    if source in PUBLIC:
        raise UserError(how_to_get(source))
    known = [*PUBLIC, *(item.stem for item in cached)]
    raise UserError(f"--teacher: no file and no cached teacher '{source}'{did_you_mean(source, known)}")


def cached_teachers() -> list[Path]:
    """Return the files of the teacher cache, sorted by name."""
    return sorted(teachers_dir().glob(f"*{SUFFIX}"))


def how_to_get(name: str) -> str:
    """Return one line on how to get one of the public teachers."""
    public = PUBLIC[name]
    return (
        f"--teacher {name}: not in the teacher cache ({teachers_dir()}). Run 'rnascl teacher fetch {name}'; or "
        f"download RobustBench's {public.robustbench} (Google Drive id {public.gdrive_id}, {public.url}) and run "
        f"'rnascl teacher import FILE --arch {public.architecture} --public {name} --out {default_file(name)}'; or "
        f"train one with 'rnascl teacher train --arch {public.architecture} --data SPEC --out FILE'"
    )
