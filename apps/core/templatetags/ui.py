"""Template tags and filters of the console: states, times, numbers, form fields, charts, navigation."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

from django import template
from django.core.paginator import Page
from django.core.serializers.json import DjangoJSONEncoder
from django.forms import BaseForm, BoundField
from django.http import QueryDict
from django.template import Context, Engine
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from heroicons.templatetags.heroicons import heroicon_outline

from apps.core.pagination import KeysetPage

register = template.Library()

DASH = mark_safe('<span class="faint">–</span>')

# Tone and glyph of every state word in the product. A state is never told by colour alone.
_RUNNING, _WAITING, _DONE, _OFF = ("info", "◐"), ("neutral", "○"), ("ok", "✓"), ("neutral", "–")
_ATTENTION, _FAILED, _LIVE, _PARTIAL = ("warn", "!"), ("bad", "✕"), ("ok", "●"), ("warn", "◐")
STATES: dict[str, tuple[str, str]] = {
    "ACTIVE": _LIVE,
    "APPLYING": _RUNNING,
    "APPROVED": _DONE,
    "APPROVED_WITH_CONDITIONS": ("warn", "✓"),
    "ARCHIVED": _OFF,
    "BREAK_GLASS": _ATTENTION,
    "CANARY": _PARTIAL,
    "CANCELLED": _OFF,
    "CHAMPION": _LIVE,
    "CHANGES_REQUESTED": _ATTENTION,
    "DRAFT": _WAITING,
    "DRAINING": _RUNNING,
    "EMERGENCY": _ATTENTION,
    "ENDED": _OFF,
    "ERROR": _FAILED,
    "EXPIRED": _OFF,
    "FAILED": _FAILED,
    "GUARDRAIL": _ATTENTION,
    "INACTIVE": _OFF,
    "IN_FORCE": _LIVE,
    "IN_REVIEW": _RUNNING,
    "LIVE": _LIVE,
    "LOADED": _DONE,
    "LOADING": _RUNNING,
    "OK": _DONE,
    "OFFLINE": _FAILED,
    "PARKED": _ATTENTION,
    "PENDING": _WAITING,
    "PROPOSED": _WAITING,
    "QUEUED": _WAITING,
    "READY": _DONE,
    "REJECTED": _FAILED,
    "RETIRED": _OFF,
    "REVIEWED": _DONE,
    "REVOKED": _FAILED,
    "RUNNING": _RUNNING,
    "SERVING": _LIVE,
    "SHADOW": ("info", "◌"),
    "STANDBY": _WAITING,
    "STOPPED": _OFF,
    "SUBMITTED": _RUNNING,
    "SUCCEEDED": _DONE,
    "SUPERSEDED": _OFF,
    "VALIDATING": _RUNNING,
    "VOID": _OFF,
    "WAITING": _WAITING,
    "WARN": _ATTENTION,
    "WARNING": _ATTENTION,
}


@register.simple_tag
def pill(state: object, label: str = "", tone: str = "") -> SafeString:
    """A state as glyph, word and colour; `label` replaces the word, `tone` (ok warn bad info neutral) the colour."""
    key = str(state).upper().replace(" ", "_").replace("-", "_")
    state_tone, glyph = STATES.get(key, ("neutral", ""))
    word = label or key.replace("_", " ").capitalize()
    mark = format_html('<span aria-hidden="true">{}</span>', glyph) if glyph else ""
    return format_html('<span class="pill {}">{}{}</span>', tone or state_tone, mark, word)


@register.simple_tag
def icon(name: str) -> str:
    """A 16 px outline heroicon, hidden from screen readers: the word stands beside it."""
    return heroicon_outline(name, size=16, **{"class": "icon"})


@register.simple_tag
def when(moment: datetime | Literal[""] | None, mode: str = "local") -> SafeString:
    """A `<time>` element; None, or a variable that the template does not have, shows a dash.

    `local`: date and minute, moved by the browser to the viewer's zone; `relative`: "3 min ago";
    `utc`: date and second in UTC, for records that must read the same for everyone.
    """
    if not moment:
        return DASH
    at = moment.astimezone(UTC)
    stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    absolute = at.strftime("%Y-%m-%d %H:%M:%S" if mode == "utc" else "%Y-%m-%d %H:%M") + " UTC"
    ago = relative_time(at)
    text, title = (ago, absolute) if mode == "relative" else (absolute, ago)
    return format_html('<time datetime="{}" data-time="{}" title="{}">{}</time>', stamp, mode, title, text)


def relative_time(at: datetime) -> str:
    """The distance of an aware datetime from now in its largest unit: `5 min ago`, `in 3 d`."""
    seconds = (timezone.now() - at).total_seconds()
    distance = abs(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if distance >= size:
            amount = f"{int(distance // size)} {unit}"
            return f"{amount} ago" if seconds > 0 else f"in {amount}"
    return "just now" if seconds >= 0 else "in under a minute"


@register.filter
def short_digest(sha256: str | None) -> SafeString:
    """A SHA-256 as `sha256:9f2c…e41a` with the whole value in the title and a copy button."""
    if not sha256:
        return DASH
    digest = str(sha256).removeprefix("sha256:")
    return format_html(
        '<code class="digest" title="sha256:{0}" data-copy="{0}">sha256:{1}…{2}</code>', digest, digest[:4], digest[-4:]
    )


@register.filter(name="bytes")
def byte_size(count: int | Literal[""] | None) -> str:
    """A count of bytes with a decimal unit and three significant figures: `3.1 MB`."""
    if count is None or count == "":
        return "–"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@register.filter
def num(value: float | Literal[""] | None, places: int = 0) -> str:
    """A number with thousands separators and fixed decimals; None or not finite shows a dash."""
    if value is None or value == "" or not math.isfinite(value):
        return "–"
    return f"{value:,.{places}f}"


@register.inclusion_tag("components/_field.html")
def field(bound: BoundField, label: str = "") -> dict[str, Any]:
    """A bound form field as a whole: label, control, help and errors, tied together by id for screen readers.

    Django sets `aria-invalid` and `aria-describedby` on the control; the component gives help and errors those ids.
    """
    return {
        "field": bound,
        "label": label or bound.label,
        "is_checkbox": bound.widget_type == "checkbox",
        "is_optional": not bound.field.required and not bound.field.disabled and bound.widget_type != "checkbox",
    }


@register.inclusion_tag("components/_errors.html")
def errors(form: BaseForm) -> dict[str, Any]:
    """The error summary of a form, each entry a link to its field; nothing when the form has no errors."""
    return {"form": form, "fields": [bound for bound in form if bound.errors and not bound.is_hidden]}


@register.inclusion_tag("components/_chart.html")
def chart(figure: Mapping[str, Any], id: str, title: str = "", level: int = 3) -> dict[str, Any]:
    """A Plotly figure with its one-sentence summary and its table.

    `figure` has `data` and `layout` (plotly.js schema, colours by token name), `summary` and
    `table` = {"columns": [...], "rows": [[...]]}. `level` is the heading level of `title` (2 or 3).
    """
    spec = _json_safe({"data": figure["data"], "layout": figure.get("layout", {})})
    columns, rows = figure["table"]["columns"], figure["table"]["rows"]
    first_row = rows[0] if rows else [None] * len(columns)
    return {
        "id": id,
        "title": title,
        "level": level,
        "summary": figure["summary"],
        "columns": [(column, is_number(value)) for column, value in zip(columns, first_row, strict=True)],
        "rows": rows,
        # An attribute, not a script element: htmx drops every script element from the fragments it swaps in.
        "spec": json.dumps(spec, cls=DjangoJSONEncoder, separators=(",", ":")),
    }


def _json_safe(value: Any) -> Any:
    """The same structure with NaN and infinities as null, which JSON cannot hold and Plotly draws as a gap."""
    if isinstance(value, Mapping):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@register.filter
def cell(value: object) -> object:
    """A value of a chart's table as text: floats with four significant figures, times in UTC, None as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float) and 1e-9 <= abs(value) < 1e-4:  # a cost, say, which nobody reads with an exponent
        return f"{value:.{3 - math.floor(math.log10(abs(value)))}f}".rstrip("0")
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return value


@register.filter
def is_number(value: object) -> bool:
    """Whether a table cell is a number (and so is aligned to the end)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@register.inclusion_tag("components/_pagination.html", takes_context=True)
def pagination(context: Context, page: Page[Any] | KeysetPage) -> dict[str, Any]:
    """Links to the neighbouring pages of a numbered or a keyset page; the rest of the query string stays."""
    if isinstance(page, KeysetPage):
        next_query, first_query = page.next_query, page.first_query
        return {"next": next_query and f"?{next_query}", "newest": first_query and f"?{first_query}"}
    return _numbered(page, context["request"].GET)


def _numbered(page: Page[Any], query: QueryDict) -> dict[str, Any]:
    def url(number: int) -> str:
        changed = query.copy()
        changed["page"] = str(number)
        return f"?{changed.urlencode()}"

    elided = page.paginator.get_elided_page_range(page.number, on_each_side=1, on_ends=1)
    return {
        "pages": [(item, url(item) if isinstance(item, int) else "", item == page.number) for item in elided],
        "page": page,
        "previous": url(page.number - 1) if page.has_previous() else "",
        "next": url(page.number + 1) if page.has_next() else "",
    }


@register.simple_block_tag(takes_context=True)
def navigation(context: Context, content: str) -> str:
    """The side navigation; the block's text is the key of the current page's entry."""
    nav = Engine.get_default().get_template("components/_nav.html")
    with context.push(nav_key=content.strip()):
        return nav.render(context)


@register.simple_tag(takes_context=True)
def nav_link(context: Context, url_name: str, label: str, key: str, count: int | None = 0) -> SafeString:
    """An entry of the navigation, marked `aria-current` on its own pages, with a badge when `count` is not zero."""
    current = mark_safe(' aria-current="page"') if context.get("nav_key") == key else ""
    badge = format_html('<span class="badge">{}<span class="sr-only"> open</span></span>', count) if count else ""
    return format_html('<li><a href="{}"{}>{}{}</a></li>', reverse(url_name), current, label, badge)
