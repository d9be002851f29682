"""Where a teacher's file lies: a path, or a name in the teacher cache. Nothing is read of it; no tensors here."""

from __future__ import annotations

from pathlib import Path

from rnascl_cli.core.cache_dir import cache_dir
from rnascl_cli.core.errors import UserError, did_you_mean, expand_user
from rnascl_cli.teachers.public_checkpoints import PUBLIC

SUFFIX = ".safetensors"
PREFIX = "timm:"
"""What names of timm's networks begin with, which have no file."""


def teachers_dir() -> Path:
    """Return the teacher cache: ``teachers/`` in the cache folder. It need not exist yet."""
    return cache_dir() / "teachers"


def find_teacher(source: str) -> Path:
    """Return the file that a teacher's name or path means.

    A name is looked up in the teacher cache as ``NAME.safetensors``, then as ``NAME-*.safetensors``.

    Raises:
        UserError: There is no such file, or a name means several.
    """
    path = expand_user(source, option="--teacher")
    if source not in PUBLIC and path.is_file():
        return path
    if path.suffix or len(path.parts) != 1:
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"--teacher {source}: {what}; name a teacher file, timm:NAME, or one of {', '.join(PUBLIC)}")
    folder = teachers_dir()
    if (exact := folder / f"{source}{SUFFIX}").is_file():
        return exact
    found = sorted(item for item in cached_teachers() if item.name.startswith(f"{source}-"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"--teacher {source}: means several files in {folder} ({', '.join(item.stem for item in found)}); "
            "name one of them"
        )
    if source in PUBLIC:
        raise UserError(how_to_get(source))
    known = [*PUBLIC, *(item.stem for item in cached_teachers())]
    raise UserError(f"--teacher: no file and no cached teacher '{source}'{did_you_mean(source, known)}")


def cached_teachers() -> list[Path]:
    """Return the files of the teacher cache, sorted by name."""
    return sorted(teachers_dir().glob(f"*{SUFFIX}"))


def how_to_get(name: str) -> str:
    """Say, in one line, how to get one of the public teachers."""
    public = PUBLIC[name]
    return (
        f"--teacher {name}: not in the teacher cache ({teachers_dir()}). Get it by 'rnascl teacher fetch {name}', or "
        f"download RobustBench's {public.robustbench} (Google Drive id {public.gdrive_id}, {public.url}) and run "
        f"'rnascl teacher import FILE --arch {public.architecture} --public {name} "
        f"--out {teachers_dir() / name}{SUFFIX}', or train one: 'rnascl teacher train --arch {public.architecture} "
        "--data SPEC --out FILE'"
    )
