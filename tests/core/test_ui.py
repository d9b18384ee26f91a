"""The template tags: what a person sees of states, times, numbers, forms, charts and pages."""

import json
import math
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from django import forms
from django.core.paginator import Paginator
from django.template import Context, Template
from django.test import RequestFactory
from django.utils import timezone

from apps.core.pagination import KeysetPage


def render(source: str, path: str = "/", **context: Any) -> str:
    return Template("{% load ui %}" + source).render(Context({"request": RequestFactory().get(path), **context}))


class Attributes(HTMLParser):
    """The attributes of every element, by its id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.by_id: dict[str, dict[str, str | None]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if attributes.get("id"):
            self.by_id[str(attributes["id"])] = attributes


class UploadForm(forms.Form):
    name = forms.SlugField(help_text="Lower case.")
    task = forms.ChoiceField(choices=[("c", "Classification")], widget=forms.RadioSelect)
    notes = forms.CharField(required=False)


def test_a_state_is_told_by_glyph_and_word() -> None:
    html = render("{% pill state %}", state="REJECTED")
    assert 'class="pill bad"' in html
    assert "✕" in html
    assert "Rejected" in html


def test_an_unknown_state_is_shown_plainly_and_escaped() -> None:
    assert render("{% pill state %}", state="<b>").endswith("&lt;b&gt;</span>")


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (timedelta(seconds=20), "just now"),
        (timedelta(minutes=3), "3 min ago"),
        (timedelta(days=-2, hours=-1), "in 2 d"),
    ],
)
def test_a_time_can_be_read_as_a_distance(distance: timedelta, text: str) -> None:
    assert f">{text}</time>" in render('{% when at "relative" %}', at=timezone.now() - distance)


def test_a_time_is_written_in_utc_and_labelled() -> None:
    at = datetime(2026, 11, 23, 8, 31, 7, tzinfo=UTC)
    assert ">2026-11-23 08:31 UTC</time>" in render("{% when at %}", at=at)
    assert ">2026-11-23 08:31:07 UTC</time>" in render('{% when at "utc" %}', at=at)


def test_what_is_not_there_is_a_dash() -> None:
    assert render("{{ a.b|num:2 }} {{ a.b|bytes }}") == "– –"
    assert render("{% when a.b %}") == render("{{ a.b|short_digest }}") == render("{% when at %}", at=None)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (3_123_456, "3.1 MB"), (250_000_000, "250 MB"), (None, "–")]
)
def test_sizes_carry_a_unit(count: int | None, text: str) -> None:
    assert render("{{ count|bytes }}", count=count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1239551, "1,239,551.00"), (0.98149, "0.98"), (math.nan, "–"), (None, "–"), (0, "0.00")]
)
def test_numbers_have_fixed_decimals(value: float | None, text: str) -> None:
    assert render("{{ value|num:2 }}", value=value) == text


def test_help_and_errors_are_tied_to_their_control() -> None:
    html = render(
        "{% errors form %}{% for bound in form %}{% field bound %}{% endfor %}", form=UploadForm({"name": "a b"})
    )
    by_id = Attributes(html).by_id
    described_by = str(by_id["id_name"]["aria-describedby"]).split()
    assert by_id["id_name"]["aria-invalid"] == "true"
    assert described_by == ["id_name_helptext", "id_name_error"]
    assert {"id_name_helptext", "id_name_error", "id_task_error"} <= by_id.keys()
    assert '<fieldset aria-describedby="id_task_error">' in html


def test_the_error_summary_links_to_each_field() -> None:
    form = UploadForm({"name": "a b"})
    form.add_error(None, "The team is full.")
    html = render("{% errors form %}", form=form)
    assert html.count("<li>") == 3
    assert 'href="#id_name"' in html
    assert 'href="#id_task"' in html
    assert "The team is full." in html
    assert render("{% errors form %}", form=UploadForm()).strip() == ""


def test_a_chart_carries_its_figure_summary_and_table() -> None:
    figure = {
        "data": [{"type": "scatter", "y": [0.5, math.nan], "line": {"color": "c1"}, "name": "</script>"}],
        "layout": {},
        "summary": "It rose.",
        "table": {"columns": ["x", "AUC"], "rows": [["a", 0.98765], ["b", None]]},
    }
    html = render('{% chart figure id="auc" title="AUC" %}', figure=figure)
    spec = json.loads(str(Attributes(html).by_id["auc"]["data-chart"]))
    assert spec["data"][0]["y"] == [0.5, None]
    assert unescape(html).count("It rose.") == 2
    assert '<td class="num">0.9877</td>' in html
    assert "</script>" not in html


def test_small_numbers_are_written_without_an_exponent() -> None:
    shown = [render("{{ value|cell }}", value=value) for value in (2.7134e-06, -1e-5, 0.00012, 1e-12, 0.0, 3)]
    assert shown == ["0.000002713", "-0.00001", "0.00012", "1e-12", "0", "3"]


def test_numbered_pages_keep_the_filters() -> None:
    page = Paginator(range(120), 50).page(2)
    html = unescape(render("{% pagination page %}", path="/models/?q=fraud&page=2", page=page))
    assert 'href="?q=fraud&page=1" rel="prev"' in html
    assert 'href="?q=fraud&page=3" rel="next"' in html
    assert "51–100 of 120" in html


def test_keyset_pages_lead_to_older_rows_and_back_to_the_newest() -> None:
    page = KeysetPage(rows=[], next_query="q=a&before=7", first_query="")
    html = unescape(render("{% pagination page %}", page=page))
    assert 'href="?q=a&before=7"' in html
    assert '<span class="off">Newest</span>' in html


def test_one_page_needs_no_pagination() -> None:
    assert render("{% pagination page %}", page=Paginator([1], 50).page(1)).strip() == ""
    assert render("{% pagination page %}", page=KeysetPage(rows=[], next_query="", first_query="")).strip() == ""
