"""A report as a PDF for printing: cover, table of contents, numbered chapters, page numbers, bookmarks.

The same report gives the same bytes.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import font_roboto
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    ListFlowable,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    TableStyle,
)
from reportlab.platypus import Table as Grid
from reportlab.platypus.tableofcontents import TableOfContents

from apps.packs.drawings import draw
from apps.packs.report import (
    Block,
    Chapter,
    Facts,
    Heading,
    IntervalChart,
    LineChart,
    Markdown,
    Report,
    Table,
    Text,
)

_MARGIN: Final = 18 * mm
_WIDTH: Final = A4[0] - 2 * _MARGIN
_INK, _MUTED, _LINE, _HEAD = HexColor("#14171c"), HexColor("#545c6a"), HexColor("#c9ced6"), HexColor("#eef0f3")
_parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


@cache
def _fonts() -> None:
    """Roboto, which has Latin, Greek and Cyrillic; the fonts built into PDF readers have Latin-1 alone."""
    files = {
        "Roboto": font_roboto.Roboto,
        "Roboto-Bold": font_roboto.RobotoBold,
        "Roboto-Italic": font_roboto.RobotoItalic,
    }
    for name, path in files.items():
        pdfmetrics.registerFont(TTFont(name, str(Path(path))))
    pdfmetrics.registerFontFamily(
        "Roboto", normal="Roboto", bold="Roboto-Bold", italic="Roboto-Italic", boldItalic="Roboto-Bold"
    )


def _style(name: str, size: float, **changes: Any) -> ParagraphStyle:
    values = {"fontName": "Roboto", "fontSize": size, "leading": size * 1.4, "textColor": _INK, "splitLongWords": 1}
    return ParagraphStyle(name, **(values | changes))


_BODY = _style("body", 9.5, spaceAfter=5)
_CELL = _style("cell", 8, leading=10.5)
_LABEL = _style("label", 8, leading=10.5, textColor=_MUTED)
_TITLE = _style("title", 24, leading=29, fontName="Roboto-Bold", spaceAfter=6)
_SUBTITLE = _style("subtitle", 12, textColor=_MUTED, spaceAfter=22)
_CHAPTER = _style("chapter", 15, leading=19, fontName="Roboto-Bold", spaceBefore=16, spaceAfter=8, keepWithNext=1)
_SECTION = _style("section", 11, leading=15, fontName="Roboto-Bold", spaceBefore=9, spaceAfter=4, keepWithNext=1)
_CODE = _style("code", 8, fontName="Courier", leading=10.5, leftIndent=8, spaceAfter=5)


def render_pdf(report: Report) -> bytes:
    """The report, drawn."""
    _fonts()
    target = io.BytesIO()
    document = _Document(target, report)
    chapters = [part for place, chapter in enumerate(report.chapters) for part in _chapter(place, chapter)]
    document.multiBuild([*_cover(report), *_contents(), *chapters], canvasmaker=_NumberedCanvas)
    return target.getvalue()


class _Document(BaseDocTemplate):  # type: ignore[misc]
    """Pages with the report's title at their head, and an entry in contents and bookmarks for each chapter."""

    def __init__(self, target: io.BytesIO, report: Report) -> None:
        super().__init__(
            target,
            pagesize=A4,
            leftMargin=_MARGIN,
            rightMargin=_MARGIN,
            topMargin=20 * mm,
            bottomMargin=18 * mm,
            title=report.title,
            subject=report.subtitle,
            author="Countersign",
            creator="Countersign",
            lang="en",
            invariant=1,  # no time of making, no random id: the same report gives the same bytes
        )
        self._report = report
        frame = Frame(
            self.leftMargin, self.bottomMargin, self.width, self.height, id="page", leftPadding=0, rightPadding=0
        )
        self.addPageTemplates([PageTemplate("cover", [frame]), PageTemplate("page", [frame], onPage=self._head)])

    def _head(self, canvas: Canvas, _: Any) -> None:
        canvas.setFont("Roboto", 7.5)
        canvas.setFillColor(_MUTED)
        canvas.drawString(_MARGIN, A4[1] - 12 * mm, self._report.title[:90])
        canvas.setStrokeColor(_LINE)
        canvas.line(_MARGIN, A4[1] - 14 * mm, A4[0] - _MARGIN, A4[1] - 14 * mm)

    def afterFlowable(self, flowable: Flowable) -> None:
        """Note each heading where it fell."""
        level = {"chapter": 0, "section": 1}.get(getattr(getattr(flowable, "style", None), "name", ""))
        if level is None:
            return
        text = flowable.getPlainText()
        key = f"h{self.seq.nextf('heading')}"
        self.canv.bookmarkPage(key)
        self.canv.addOutlineEntry(text, key, level, closed=level > 0)
        if level == 0:
            self.notify("TOCEntry", (level, text, self.page, key))


class _NumberedCanvas(Canvas):  # type: ignore[misc]
    """Knows the number of pages when it draws the foot of each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pages: list[dict[str, Any]] = []

    def showPage(self) -> None:
        """Keep the page for later."""
        self._pages.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        """Draw the feet and write the file."""
        for number, page in enumerate(self._pages, 1):
            self.__dict__.update(page)
            self.setFont("Roboto", 7.5)
            self.setFillColor(_MUTED)
            self.drawRightString(A4[0] - _MARGIN, 10 * mm, f"Page {number} of {len(self._pages)}")
            self.drawString(_MARGIN, 10 * mm, "Countersign evidence pack")
            super().showPage()
        super().save()


def _cover(report: Report) -> list[Flowable]:
    return [
        Spacer(1, 45 * mm),
        Paragraph(escape(report.title), _TITLE),
        Paragraph(escape(report.subtitle), _SUBTITLE),
        _facts(Facts(report.facts)),
        NextPageTemplate("page"),
        PageBreak(),
    ]


def _contents() -> list[Flowable]:
    toc = TableOfContents(dotsMinLevel=0, levelStyles=[_style("toc", 10, leading=17)])
    return [
        Paragraph("Contents", _style("contents", 15, leading=19, fontName="Roboto-Bold", spaceAfter=8)),
        toc,
        PageBreak(),
    ]


def _chapter(place: int, chapter: Chapter) -> list[Flowable]:
    parts: list[Flowable] = [Paragraph(escape(f"{place + 1}  {chapter.title}"), _CHAPTER)]
    for block in chapter.blocks:
        parts.extend(_block(block))
    return parts


def _block(block: Block) -> list[Flowable]:
    match block:
        case Facts():
            return [_facts(block), Spacer(1, 6)]
        case Table():
            return _table(block)
        case Text():
            return [Paragraph(escape(block.text).replace("\n", "<br/>"), _BODY)]
        case Heading():
            return [Paragraph(escape(block.text), _SECTION)]
        case Markdown():
            return markdown_flowables(block.text)
        case IntervalChart() | LineChart():
            return [Paragraph(escape(block.title), _LABEL), draw(block), Spacer(1, 8)]


def _facts(block: Facts) -> Flowable:
    rows = [[Paragraph(escape(label), _LABEL), Paragraph(_lines(text), _CELL)] for label, text in block.rows]
    grid = Grid(rows or [["", ""]], colWidths=[0.28 * _WIDTH, 0.72 * _WIDTH])
    grid.setStyle(TableStyle([*_LINES, ("LEFTPADDING", (0, 0), (0, -1), 0)]))
    return grid


_LINES: Final = [
    ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
    ("TOPPADDING", (0, 0), (-1, -1), 3),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
]


def _table(block: Table) -> list[Flowable]:
    title = [Paragraph(escape(block.title), _SECTION)] if block.title else []
    if not block.rows:
        return [*title, Paragraph("None.", _BODY)]
    head = [Paragraph(f"<b>{escape(column)}</b>", _CELL) for column in block.columns]
    rows = [[Paragraph(_lines(str(cell)), _CELL) for cell in row] for row in block.rows]
    shares = block.widths or [1.0] * len(block.columns)
    grid = Grid([head, *rows], colWidths=[_WIDTH * share / sum(shares) for share in shares], repeatRows=1, splitInRow=1)
    grid.setStyle(TableStyle([*_LINES, ("BACKGROUND", (0, 0), (-1, 0), _HEAD)]))
    return [*title, grid, Spacer(1, 8)]


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br/>")


def markdown_flowables(text: str) -> list[Flowable]:
    """A person's Markdown on paper: paragraphs, headings, lists, quotations, code and tables; no links to follow."""
    return [part for node in SyntaxTreeNode(_parser.parse(text)).children for part in _node(node)]


def _node(node: SyntaxTreeNode) -> list[Flowable]:
    match node.type:
        case "paragraph":
            return [Paragraph(_inline(node), _BODY)]
        case "heading":
            return [Paragraph(f"<b>{_inline(node)}</b>", _BODY)]
        case "bullet_list" | "ordered_list":
            items = [[part for child in item.children for part in _node(child)] for item in node.children]
            kind = "bullet" if node.type == "bullet_list" else "1"
            return [ListFlowable(items, bulletType=kind, leftIndent=14, bulletFontName="Roboto", bulletFontSize=8)]
        case "table":
            rows = [[_inline(cell) for cell in row.children] for part in node.children for row in part.children]
            return _markdown_table(rows)
        case "fence" | "code_block":
            return [Paragraph(_lines(node.content.rstrip("\n")), _CODE)]
        case "hr":
            return [Spacer(1, 8)]
    return [part for child in node.children for part in _node(child)]


def _markdown_table(rows: list[list[str]]) -> list[Flowable]:
    cells = [[Paragraph(cell if place else f"<b>{cell}</b>", _CELL) for cell in row] for place, row in enumerate(rows)]
    grid = Grid(cells, colWidths=[_WIDTH / len(rows[0])] * len(rows[0]), repeatRows=1, splitInRow=1)
    grid.setStyle(TableStyle([*_LINES, ("BACKGROUND", (0, 0), (-1, 0), _HEAD)]))
    return [grid, Spacer(1, 8)]


def _inline(node: SyntaxTreeNode) -> str:
    """Inline content in reportlab's own markup, everything else escaped."""
    match node.type:
        case "text":
            return escape(node.content)
        case "code_inline":
            return f'<font name="Courier">{escape(node.content)}</font>'
        case "softbreak":
            return " "
        case "hardbreak":
            return "<br/>"
    inner = "".join(_inline(child) for child in node.children)
    match node.type:
        case "strong":
            return f"<b>{inner}</b>"
        case "em":
            return f"<i>{inner}</i>"
        case "link":
            return f"{inner} ({escape(str(node.attrs.get('href', '')))})"
    return inner
