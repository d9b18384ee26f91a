"""Exports of the audit log, streamed: JSON Lines with proofs, which ``verify.py`` checks offline, and CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from django.db import transaction
from django.db.models import QuerySet

from apps.audit import merkle, tree
from apps.audit.actor import Actor
from apps.audit.chain import canonical_json, timestamp
from apps.audit.checkpoints import LogBroken, checkpoint_now, latest_checkpoint, links
from apps.audit.keys import audit_signer
from apps.audit.models import AuditEvent, Checkpoint
from apps.audit.notes import sign_note
from apps.audit.services import consistency_proof, inclusion_proof, record
from apps.audit.verify import EXPORT_FORMAT, trailer_body
from apps.core.errors import Conflict

JSONL: Final = "application/x-ndjson"
CSV: Final = "text/csv; charset=utf-8"
MAX_EVENTS: Final = 250_000
"""In one export; the next one goes on after the last ``seq``."""
_PAGE: Final = 1_000
_COLUMNS: Final = (
    "seq",
    "at",
    "actor",
    "address",
    "action",
    "object_type",
    "object_id",
    "object",
    "before",
    "after",
    "reason",
    "request_id",
    "leaf_hash",
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def export_jsonl(actor: Actor, *, team: Any, filters: dict[str, Any], after: int = 0, since_size: int = 0) -> Any:
    """The team's events that fit, oldest first, each with the proof that leads to the checkpoint in the first line.

    ``since_size`` is the size of a checkpoint that the reader has kept: the export then shows that the log only grew.
    Raises ``Conflict`` while there is no checkpoint yet.
    """
    checkpoint = _checkpoint()
    _record_export(actor, team, "jsonl", filters, after)
    events = _selected(team, filters, after).filter(seq__lte=checkpoint.tree_size)
    sizes = [since_size] if 0 < since_size <= checkpoint.tree_size else []
    header = {
        "format": EXPORT_FORMAT,
        "checkpoint": checkpoint.note,
        "has_proofs": True,
        "team": str(team),
        "filters": _readable(filters, after),
        "consistency": [{"from": size, "proof": consistency_proof(size, checkpoint.tree_size)} for size in sizes],
    }
    return _signed(header, _proved(events, checkpoint.tree_size))


def export_csv(actor: Actor, *, team: Any, filters: dict[str, Any], after: int = 0) -> Iterator[bytes]:
    """The team's events that fit, oldest first, as a table. What a spreadsheet would run as a formula is quoted."""
    _record_export(actor, team, "csv", filters, after)
    return _csv(_selected(team, filters, after))


def export_whole() -> Iterator[bytes]:
    """The whole log from its first event to the newest checkpoint, for whoever runs the installation."""
    checkpoint = _checkpoint()
    header = {"format": EXPORT_FORMAT, "checkpoint": checkpoint.note, "has_proofs": False}
    lines = (_line(link._asdict()) for link in links(until=checkpoint.tree_size))
    return _signed(header, lines)


def event_document(event: AuditEvent, tree_size: int, node: merkle.Node) -> dict[str, Any]:
    """An event with its proof towards the checkpoint over ``tree_size`` events."""
    seq = event.seq or 0
    link = {
        "seq": seq,
        "at": timestamp(event.at) if event.at else "",
        "previous_hash": event.previous_hash,
        "leaf_hash": event.leaf_hash,
        "body": event.body if event.has_body else None,
    }
    return {"event": link, "index": seq - 1, "proof": inclusion_proof(seq, tree_size, node)}


def _checkpoint() -> Checkpoint:
    """A checkpoint over everything so far; the last one before it, if the log cannot be signed any more."""
    try:
        checkpoint = checkpoint_now(max_steps=100)
    except LogBroken:
        checkpoint = latest_checkpoint()
    if checkpoint is None:
        raise Conflict("The log has no checkpoint yet. Try again in a minute.")
    return checkpoint


@transaction.atomic
def _record_export(actor: Actor, team: Any, kind: str, filters: dict[str, Any], after: int) -> None:
    record(actor, "audit_log.exported", team, team=team, after={"format": kind, **_readable(filters, after)})


def _readable(filters: dict[str, Any], after: int) -> dict[str, Any]:
    given = {name: str(value) for name, value in filters.items() if value}
    return given | ({"after": after} if after else {})


def _selected(team: Any, filters: dict[str, Any], after: int) -> QuerySet[AuditEvent]:
    return AuditEvent.objects.numbered().for_team(team).matching(**filters).filter(seq__gt=after)


def _pages(events: QuerySet[AuditEvent]) -> Iterator[AuditEvent]:
    """Page by page, so that an export of any length takes the memory of a page."""
    last = 0
    for _ in range(MAX_EVENTS // _PAGE):
        page = list(events.filter(seq__gt=last).order_by("seq")[:_PAGE])
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1].seq or last


def _proved(events: QuerySet[AuditEvent], tree_size: int) -> Iterator[bytes]:
    node = tree.stored_nodes()
    for event in _pages(events):
        yield _line(event_document(event, tree_size, node))


def _signed(header: dict[str, Any], lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines between their header and a signed trailer over them all."""
    first = _line(header)
    digest, count = hashlib.sha256(first), 0
    yield first
    for line in lines:
        digest.update(line)
        count += 1
        yield line
    yield _line({"trailer": sign_note(trailer_body(digest.hexdigest(), count), audit_signer())})


def _csv(events: QuerySet[AuditEvent]) -> Iterator[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(_COLUMNS)
    for event in _pages(events):
        writer.writerow([harmless(value) for value in _row(event)])
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


def _row(event: AuditEvent) -> tuple[Any, ...]:
    body = event.document
    return (
        event.seq,
        timestamp(event.at) if event.at else "",
        body.get("actor_name", ""),
        body.get("actor_address", ""),
        body.get("action", ""),
        body.get("object_type", ""),
        body.get("object_id", ""),
        body.get("object_label", ""),
        canonical_json(body["before"]) if body.get("before") else "",
        canonical_json(body["after"]) if body.get("after") else "",
        body.get("reason", ""),
        body.get("request_id", ""),
        event.leaf_hash,
    )


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
