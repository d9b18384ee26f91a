"""The audit events about chosen objects, each with the proof that the signed log holds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from django.db import models

from apps.audit import services, tree
from apps.audit.chain import canonical_json, timestamp
from apps.audit.models import AuditEvent, Checkpoint
from apps.core.errors import Conflict, DomainError

MAX_EVENTS: Final = 20_000
_MAX_CHECKPOINT_STEPS: Final = 1_000


def sign_checkpoint() -> Checkpoint:
    """A checkpoint over everything that has happened until now."""
    checkpoint = services.checkpoint_now(_MAX_CHECKPOINT_STEPS)
    if checkpoint is None:
        raise Conflict("The audit log is empty: there is nothing to prove yet.")
    return checkpoint


def events_about(
    objects: Iterable[models.Model],
    checkpoint: Checkpoint,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[AuditEvent]:
    """The events about these rows that the checkpoint covers, oldest first; ``since`` <= at < ``until``."""
    keys: dict[str, set[str]] = defaultdict(set)
    for row in objects:
        keys[row._meta.label_lower].add(str(row.pk))
    if not keys:
        return []
    about = models.Q(*(models.Q(object_type=kind, object_id__in=ids) for kind, ids in keys.items()), _connector="OR")
    events = AuditEvent.objects.numbered().filter(about, seq__lte=checkpoint.tree_size)
    events = events.matching(since=since, until=until)
    found = list(events[: MAX_EVENTS + 1])
    if len(found) > MAX_EVENTS:
        raise DomainError(f"That is more than {MAX_EVENTS:,} events. Choose a shorter period.")
    return found


def proof_lines(events: Iterable[AuditEvent], checkpoint: Checkpoint) -> bytes:
    """A line of JSON for each event: the event, its place in the log's tree, and the hashes that lead to its root."""
    node = tree.stored_nodes()
    return b"".join(
        canonical_json(_line(event, services.inclusion_proof(event.seq or 0, checkpoint.tree_size, node))).encode()
        + b"\n"
        for event in events
    )


def _line(event: AuditEvent, proof: list[str]) -> dict[str, Any]:
    seq, at = event.seq, event.at
    if seq is None or at is None:
        raise ValueError("Only an event that was committed can be proved.")
    return {
        "event": {
            "seq": seq,
            "at": timestamp(at),
            "previous_hash": event.previous_hash,
            "leaf_hash": event.leaf_hash,
            "body": event.body,
        },
        "index": seq - 1,
        "proof": proof,
    }
