"""Canonical JSON: the one text that a document is hashed as. Pure; hashing and checking are ``verify.py``'s."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any


def canonical_json(document: Any) -> str:
    """JSON with sorted keys, no spaces and no escapes beyond those JSON requires."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as the database's trigger writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
