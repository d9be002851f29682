"""What a published table is made of: rows as data, and footnotes on numbers that are open to question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Dataset = Literal["cifar10", "imagenet100", "imagenet"]

PUBLISHED_PROTOCOL = "published: not stated"
WITHOUT = "without adversarial training"
WITH = "with adversarial training"

PROTOCOL_NOTE = (
    "The paper gives eps 8/255 (0.031) and no step size for PGD-20. The authors' public code perturbs normalized "
    "inputs, where 8/255 is about 2/255 in pixels; the 17.69 % that a network trained with plain cross-entropy keeps "
    "in Table 2 is consistent with that. The protocol of the tables' runs is not known."
)
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰ"


@dataclass(frozen=True)
class Footnote:
    """What is known, or open to question, about published numbers.

    Attributes:
        words: In a sentence or two.
        measures: The columns it is about (``params`` and ``macs`` among them); none for the whole table.
        methods: The rows it is about; none for every row, and then the headings carry its letter, not the numbers.
        trained: Of those rows only the ones trained so; None for all.
    """

    words: str
    measures: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    trained: str | None = None

    def concerns(self, row: PublishedRow, measure: str) -> bool:
        """Whether it is about this number in particular."""
        return (
            measure in self.measures
            and row.method in self.methods
            and (self.trained is None or self.trained == row.trained)
        )


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        method: The name as printed, without its reference.
        source: The reference as printed; None for the paper's own models and for teachers.
        trained: How it was trained.
        measures: Accuracy in per cent by measure; a measure printed as '-' is absent.
        params_m: Params in millions.
        macs_m: MACs in millions.
        approximate_macs: Whether the MACs carry the paper's '*' (approximate).
        space: The search space, for rows that a student of this tool can be compared with.
        teacher: The teacher's short name (``wrt34``), for such rows.
        paradigm: The paradigm, for such rows.
        finetuned: The adversarial fine-tuning of such a row; None where there was none.
    """

    method: str
    source: str | None
    trained: str
    measures: Mapping[str, float]
    params_m: float | None = None
    macs_m: float | None = None
    approximate_macs: bool = False
    space: str | None = None
    teacher: str | None = None
    paradigm: str | None = None
    finetuned: str | None = None


@dataclass(frozen=True)
class PublishedTable:
    """One published table.

    Attributes:
        number: The paper's number.
        title: What it shows.
        dataset: The data it was measured on.
        measures: The accuracy columns, in the printed order.
        rows: The rows, in the printed order.
        eps: The perturbation size its attacks are stated with.
        sizes: Whether it prints params and MACs.
        footnotes: About its numbers.
    """

    number: int
    title: str
    dataset: Dataset
    measures: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    eps: str = "8/255"
    sizes: bool = False
    footnotes: tuple[Footnote, ...] = ()

    def marks(self, measure: str, row: PublishedRow | None = None) -> str:
        """Return the letters of the footnotes that a number carries; without a row, those of a column's heading."""
        return "".join(
            letter
            for letter, note in zip(LETTERS, self.footnotes, strict=False)
            if (note.concerns(row, measure) if row else measure in note.measures and not note.methods)
        )

    @property
    def notes(self) -> list[str]:
        """The footnotes in words, each behind its letter."""
        return [f"{letter} {note.words}" for letter, note in zip(LETTERS, self.footnotes, strict=False)]


def others_row(
    table: tuple[str, ...],
    method: str,
    source: str | None,
    trained: str,
    values: tuple[float | None, ...],
    size: tuple[float | None, float | None] = (None, None),
    *,
    approximate: bool = False,
) -> PublishedRow:
    """Return a row of somebody else's method; ``values`` in the order of the measures ``table``, None for '-'."""
    measures = {name: value for name, value in zip(table, values, strict=True) if value is not None}
    return PublishedRow(method, source, trained, measures, size[0], size[1], approximate)


def own_row(
    table: tuple[str, ...],
    space: str,
    teacher: tuple[str, str] | None,
    values: tuple[float | None, ...],
    *,
    finetuned: str | None = None,
    trained: str | None = None,
    method: str | None = None,
    size: tuple[float | None, float | None] | None = None,
) -> PublishedRow:
    """Return a row of the paper's own models; ``teacher`` is its printed and its short name."""
    how = trained or (WITH if finetuned else WITHOUT)
    printed = method or (f"RNAS-CL-{space}-{teacher[0]}" if teacher else f"Standard-{space}")
    params, macs = size or (None, None)
    return PublishedRow(
        printed,
        None,
        how,
        {name: value for name, value in zip(table, values, strict=True) if value is not None},
        params,
        macs,
        space=space,
        teacher=teacher[1] if teacher else None,
        paradigm="rnas-cl" if teacher else "standard",
        finetuned=finetuned,
    )
