"""What a report consists of, before it is drawn: chapters of blocks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Facts:
    """Label and text, one under the other."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose head is repeated on every page; ``widths`` are shares of the page's width."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[float] = ()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Markdown:
    """What a person wrote, in Markdown."""

    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading within a chapter."""

    text: str


@dataclass(frozen=True, slots=True)
class IntervalChart:
    """A dot with its interval for each row ``(label, value, low, high, is_candidate)``."""

    title: str
    rows: Sequence[tuple[str, float, float | None, float | None, bool]]
    axis: str = ""


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines through points; the first series is the one that matters."""

    title: str
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
    x_axis: str
    y_axis: str


Chart = IntervalChart | LineChart
Block = Facts | Table | Text | Markdown | Heading | IntervalChart | LineChart


@dataclass(slots=True)
class Chapter:
    """A numbered part with an entry in the table of contents."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The whole: what stands on the cover, and the chapters."""

    title: str
    subtitle: str
    facts: list[tuple[str, str]]
    chapters: list[Chapter] = field(default_factory=list)

    def chapter(self, title: str, *blocks: Block) -> Chapter:
        """Append a chapter."""
        chapter = Chapter(title, list(blocks))
        self.chapters.append(chapter)
        return chapter
