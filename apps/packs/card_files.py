"""A model card as a file of its own: Markdown, or HTML that prints well without anything else."""

from __future__ import annotations

from typing import Final

from django.template.loader import render_to_string

from apps.audit.chain import timestamp
from apps.core.errors import DomainError
from apps.registry.cards import SECTIONS, as_markdown
from apps.registry.markdown import render_markdown
from apps.registry.models import CardRevision

CONTENT_TYPES: Final = {"md": "text/markdown; charset=utf-8", "html": "text/html; charset=utf-8"}


def card_file(revision: CardRevision, form: str) -> tuple[str, str]:
    """Text and content type; the same revision in the same state gives the same text."""
    if form not in CONTENT_TYPES:
        raise DomainError(f"A card is exported as {' or '.join(CONTENT_TYPES)}.")
    return (card_markdown(revision) if form == "md" else card_html(revision)), CONTENT_TYPES[form]


def card_markdown(revision: CardRevision) -> str:
    """The whole card in Markdown."""
    return as_markdown(_title(revision), _head(revision), revision.sections)


def card_html(revision: CardRevision) -> str:
    """The whole card as one HTML file with a style sheet for the screen and for paper."""
    sections = [(row.title, render_markdown(revision.sections.get(row.key, ""))) for row in SECTIONS]
    context = {"title": _title(revision), "head": _head(revision), "sections": sections}
    return render_to_string("packs/card_file.html", context)


def _title(revision: CardRevision) -> str:
    return f"Model card of {revision.model_version}"


def _head(revision: CardRevision) -> dict[str, str]:
    head = {
        "Revision": str(revision.number),
        "State": revision.get_state_display(),
        "Written by": f"{revision.author_name}, {timestamp(revision.saved_at)}",
    }
    if revision.reviewed_at is not None:
        head["Reviewed by"] = f"{revision.reviewer_name}, {timestamp(revision.reviewed_at)}: {revision.review_comment}"
    return head | {"SHA-256": revision.sha256}
