"""The report's parts: charts, the PDF, the archive, and the tables of requirements."""

from __future__ import annotations

import io
import re
import zipfile
from typing import get_args

import pytest

from apps.packs.archive import MANIFEST, manifest_body, write_archive
from apps.packs.drawings import as_svg, nice_ticks, tick_text
from apps.packs.mapping import Coverage, frameworks
from apps.packs.pdf import render_pdf
from apps.packs.report import Facts, Heading, IntervalChart, LineChart, Markdown, Report, Table, Text


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0.0, 1.0, 0.0, 1.0), (0.9412, 0.9871, 0.94, 0.99), (-3.0, 12.0, -5.0, 15.0), (0.0, 1e6, 0.0, 1e6)],
)
def test_ticks_are_round_and_hold_everything(low: float, high: float, first: float, last: float) -> None:
    ticks = nice_ticks(low, high)
    assert (ticks[0], ticks[-1]) == (pytest.approx(first), pytest.approx(last))
    assert 3 <= len(ticks) <= 11


@pytest.mark.parametrize("value", [0.0, 1.0, -5.0, 1e-9])
def test_ticks_around_one_value(value: float) -> None:
    ticks = nice_ticks(value, value)
    assert ticks[0] < value < ticks[-1]
    assert len({tick_text(tick, ticks) for tick in ticks}) == len(ticks)


HOSTILE = "<b>&amp; <para> ]]> \u202e Łukasz Ωμέγα Привет \U0001f600 " + "x" * 400


def hostile_report() -> Report:
    """Text of every kind that markup, fonts and page breaks could stumble over."""
    report = Report(f"Title {HOSTILE}", HOSTILE, [(HOSTILE, HOSTILE)])
    markdown = (
        f"# {HOSTILE}\n\n- a\n  - b {HOSTILE}\n\n| a | b |\n| --- | --- |\n| <i> | {HOSTILE} |\n\n```\n{HOSTILE}\n```\n"
    )
    chart = IntervalChart("One", [(HOSTILE, 0.5, None, None, True), ("b", 0.7, 0.6, 0.8, False)], HOSTILE)
    lines = LineChart("Two", [("a", [(0.0, 1.0), (1.0, 1.0)])], "x", "y")
    report.chapter("Words", Text(HOSTILE), Heading(HOSTILE), Facts([]), Markdown(markdown), chart, lines)
    report.chapter("Rows", Table(["A", "B"], [[HOSTILE, str(row)] for row in range(120)], [3, 1], "Many"))
    report.chapter("Long", Table(["A"], [["word " * 5_000]]), Table(["A"], [], title="Nothing"))
    return report


def test_a_report_of_anything_becomes_the_same_pdf_twice() -> None:
    first, second = render_pdf(hostile_report()), render_pdf(hostile_report())
    assert first == second
    assert first.startswith(b"%PDF-")
    assert b"/Outlines" in first
    assert max(int(count) for count in re.findall(rb"/Count (\d+)", first)) > 10


def test_charts_as_svg_are_vectors_with_escaped_text() -> None:
    svg = as_svg(IntervalChart("One", [("<script>", 0.5, 0.4, 0.6, True)], "axis")).decode()
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
    assert "<image" not in svg


def test_an_archive_depends_on_its_files_alone() -> None:
    files = {"b.txt": b"two", "a.txt": b"one"}
    first, second = io.BytesIO(), io.BytesIO()
    write_archive(first, files, "note")
    write_archive(second, dict(reversed(files.items())), "note")
    assert first.getvalue() == second.getvalue()
    assert zipfile.ZipFile(first).namelist() == [MANIFEST, "a.txt", "b.txt"]
    body = manifest_body("id", files)
    assert body.splitlines()[:2] == ["countersign.evidence-pack/v1", "id"]
    assert [line[66:] for line in body.splitlines()[2:]] == ["a.txt", "b.txt"]
    with pytest.raises(ValueError, match="written last"):
        write_archive(io.BytesIO(), {MANIFEST: b""}, "note")


def test_every_clause_says_what_answers_it_and_what_does_not() -> None:
    names = {row.name: row for row in frameworks()}
    assert set(names) == {"SR 26-2", "EU AI Act", "21 CFR Part 11", "ISO/IEC 42001"}
    articles = " ".join(clause.clause for clause in names["EU AI Act"].clauses)
    assert all(article in articles for article in ("Art. 11", "Art. 12", "Art. 14", "Art. 19", "Art. 26(6)"))
    for framework in names.values():
        for clause in framework.clauses:
            assert clause.coverage in get_args(Coverage)
            assert clause.asks
            assert clause.answered_by
            assert clause.gap or clause.coverage == "Answered", clause.clause
