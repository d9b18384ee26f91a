"""People's Markdown as HTML that can do no harm: no raw HTML, no images, no styles, plain links only."""

from __future__ import annotations

from typing import Final

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

_TAGS: Final = {
    "a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_TOP_HEADING: Final = 3
"""A text is part of a page that has headings of its own above it."""
_parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def render_markdown(text: str) -> SafeString:
    """CommonMark with tables; what the parser lets through is cleaned once more against a list of what is allowed."""
    tokens = _parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _TOP_HEADING - 1, 6)}"
        elif token.type == "table_open":
            token.attrSet("class", "table")
    html = _parser.renderer.render(tokens, _parser.options, {})
    # Alignment of table cells comes as a style attribute, which the content security policy refuses anyway.
    cleaned = nh3.clean(
        html,
        tags=_TAGS,
        attributes={"a": {"href"}},
        allowed_classes={"table": {"table"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return mark_safe(cleaned)  # noqa: S308 - just cleaned
