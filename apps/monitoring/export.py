"""The inference log as JSON Lines: one prediction a line, newest first, and a last line that says how far it came."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

from django.core.serializers.json import DjangoJSONEncoder

from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.monitoring.log_reader import LogFilter, LogKey, Prediction, read_log

CONTENT_TYPE: Final = "application/x-ndjson"
MAX_ROWS: Final = 100_000
MAX_S: Final = 120.0
_PAGE: Final = 1_000


def export_lines(endpoint: Endpoint, wanted: LogFilter, before: LogKey | None = None) -> Iterator[bytes]:
    """The predictions that fit, at most ``MAX_ROWS`` of them or as many as ``MAX_S`` allow.

    The last line is ``{"rows", "next", "unreadable_segments", "error"}``; ``next`` is ``before`` of what is left, null
    when that is nothing. Read as it is sent, so that an export of any length takes the memory of a page.
    """
    rows, stop_at = 0, time.monotonic() + MAX_S
    unreadable: dict[str, None] = {}
    error = None
    while True:
        try:
            page = read_log(endpoint, wanted, before=before, size=min(_PAGE, MAX_ROWS - rows))
        except DomainError as refusal:  # the status went out with the first line
            error = refusal.message
            break
        for row in page.rows:
            yield _line(as_document(row))
        rows += len(page.rows)
        unreadable |= dict.fromkeys(page.unreadable)
        before = page.next_key
        if before is None or rows >= MAX_ROWS or time.monotonic() > stop_at:
            break
    following = None if before is None else str(before)
    yield _line({"rows": rows, "next": following, "unreadable_segments": list(unreadable), "error": error})


def as_document(row: Prediction) -> dict[str, Any]:
    """One flat object for the columns that every prediction has, with the tensors by name."""
    return row.columns | {
        "received_at": row.received_at,
        "inputs": {tensor.name: tensor.json for tensor in row.inputs},
        "outputs": {tensor.name: tensor.json for tensor in row.outputs},
    }


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, cls=DjangoJSONEncoder, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
