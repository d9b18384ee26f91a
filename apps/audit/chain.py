"""The arithmetic of the audit log: canonical bodies, leaf hashes and the check of a chain. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

GENESIS = "0" * 64
"""The previous hash of the first event."""


@dataclass(frozen=True, slots=True)
class Link:
    """One event as the chain sees it; hashes are hex SHA-256."""

    seq: int
    at: datetime
    previous_hash: str
    leaf_hash: str
    body: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a check: how many events are sound, and where and why the first bad one fails."""

    checked: int
    head: str
    bad_seq: int | None = None
    reason: str = ""

    @property
    def is_ok(self) -> bool:
        """True if no event failed."""
        return self.bad_seq is None


def canonical_json(document: Any) -> str:
    """JSON with sorted keys, no spaces and no escapes beyond those JSON requires."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as the database's trigger writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def leaf_hash(seq: int, at: datetime, previous_hash: str, body: str) -> str:
    """Hash of one event: a leaf in the sense of RFC 6962, section 2.1 (0x00 prefix), that names its predecessor."""
    leaf = f"{seq}\n{timestamp(at)}\n{previous_hash}\n{body}"
    return hashlib.sha256(b"\x00" + leaf.encode()).hexdigest()


def verify(links: Iterable[Link]) -> Verdict:
    """Check events in order of ``seq`` from the first one: no gap, each linked to the one before, each hash right."""
    checked, head = 0, GENESIS
    for link in links:
        expected = checked + 1
        if link.seq != expected:
            return Verdict(checked, head, expected, f"event {expected} is missing: the next one found is {link.seq}")
        if link.previous_hash != head:
            return Verdict(checked, head, link.seq, "it does not continue the event before it")
        if link.leaf_hash != leaf_hash(link.seq, link.at, link.previous_hash, link.body):
            return Verdict(checked, head, link.seq, "its content does not fit its hash")
        checked, head = link.seq, link.leaf_hash
    return Verdict(checked, head)
