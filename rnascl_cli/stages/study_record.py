"""What each step of a study was made from, so that a result is kept only while that is still so.

``steps.json`` has an entry for every step ever begun: the words of its command, and the sha256 of the recipe, tutor map
and teacher files that they name and of the results that it needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rnascl_cli.artifacts.documents import Record, Sha256
from rnascl_cli.artifacts.reading import MAX_DOCUMENT_BYTES, parse_json, read_bounded
from rnascl_cli.artifacts.store import sha256_file, write_text
from rnascl_cli.engine.run_directory import has_checkpoint
from rnascl_cli.errors import UserError
from rnascl_cli.recipes import find_recipe
from rnascl_cli.stages.study_plan import Step, StudyPlan

STEPS = "steps.json"
NAMING_FILES = ("--recipe", "--tutors", "--teacher")


class Entry(Record):
    """What one step was made from."""

    arguments: list[str]
    files: dict[str, Sha256]
    needs: dict[str, Sha256]


class StudyRecord:
    """The entries of a study's folder.

    Args:
        out: The folder.
        plan: Where the results lie that steps need.

    Raises:
        UserError: ``steps.json`` is there and is something else.
    """

    def __init__(self, out: Path, plan: StudyPlan) -> None:
        self._out, self._path = out, out / STEPS
        self._results = {step.name: out / step.result for step in plan.steps}
        self._hashes: dict[Path, str] = {}
        self.entries: dict[str, Entry] = {}
        if self._path.is_file():
            found = parse_json(
                read_bounded(self._path, MAX_DOCUMENT_BYTES, what="study's steps"), where=str(self._path)
            )
            try:
                self.entries = TypeAdapter(dict[str, Entry]).validate_python(found)
            except ValidationError:
                raise UserError(f"{self._path}: is not the list of a study's steps; name another --out") from None

    def entry(self, step: Step) -> Entry:
        """Return what a step would be made from now; results that are not there yet are left out."""
        needs = {name: sha256_file(self._results[name]) for name in step.needs if self._results[name].is_file()}
        return Entry(arguments=list(step.arguments), files=self._files(step), needs=needs)

    def _files(self, step: Step) -> dict[str, str]:
        found = {}
        for option, word in zip(step.arguments, step.arguments[1:], strict=False):
            if option in NAMING_FILES:
                path = find_recipe(word) if option == "--recipe" else Path(word)
                if path.is_file():
                    if path not in self._hashes:
                        self._hashes[path] = sha256_file(path)
                    found[option] = self._hashes[path]
        return found

    def kept(self, plan: StudyPlan) -> tuple[set[str], set[str]]:
        """Return the steps whose results are kept, and those that are there but were made from other results.

        Raises:
            UserError: A step was made with other settings or files than the study has now.
        """
        kept: set[str] = set()
        stale: set[str] = set()
        for step in plan.steps:  # what a step needs stands before it
            there = (self._out / step.result).is_file()
            begun = there or (step.resumable and has_checkpoint(self._out / step.name))
            if not begun:
                continue
            before, now = self.entries.get(step.name), self.entry(step)
            # A file that is gone says nothing against what was made from it, but nothing more can be.
            gone = (
                {}
                if before is None or not there
                else {option: digest for option, digest in before.files.items() if option not in now.files}
            )
            if before is None or (before.arguments, before.files) != (now.arguments, now.files | gone):
                raise UserError(
                    f"--out {self._out}: {step.name} was made with other settings than the study has now; "
                    "name another folder, or remove that one"
                )
            if before.needs != now.needs or stale.intersection(step.needs):
                stale.add(step.name)
            elif there and kept.issuperset(step.needs):
                kept.add(step.name)
            elif there:
                stale.add(step.name)
        return kept, stale

    def begin(self, step: Step) -> None:
        """Note what a step is made from, before it is begun."""
        self.entries[step.name] = self.entry(step)
        self.write()

    def write(self) -> None:
        """Write all entries, those of steps that the study no longer has among them."""
        content: dict[str, Any] = {name: entry.model_dump() for name, entry in self.entries.items()}
        write_text(self._path, json.dumps(content, indent=1) + "\n")
