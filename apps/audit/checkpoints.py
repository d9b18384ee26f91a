"""Signs what the log is at this moment, and puts that outside the database.

Every event is checked when it enters a checkpoint, and the tree grows only from the one that was signed before, so a
log that was changed, shortened or brought back from an old copy is not signed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from django.db import connection, transaction
from django.utils import timezone

from apps.audit import anchors, tree
from apps.audit.keys import audit_key, audit_signer
from apps.audit.models import AuditEvent, Checkpoint, Verification
from apps.audit.notes import sign_note
from apps.audit.verify import Checkpoint as Statement
from apps.audit.verify import Link, LogCheck, Rejected, open_checkpoint

logger = logging.getLogger(__name__)

EVERY: Final = timedelta(minutes=1)
AT_ONCE: Final = ("promotion.",)
"""Events of these kinds do not wait for the minute."""
MAX_EVENTS: Final = 10_000
"""What one checkpoint covers more than the one before: the size of an anchor's record is bounded by it."""
_SIGNER: Final = "checkpoints"
_LOCK: Final = 7_203_114_509
_COLUMNS: Final = """
SELECT seq, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), previous_hash, leaf_hash, body
FROM audit_auditevent WHERE seq > %s ORDER BY seq LIMIT %s
"""
_PAGE: Final = 5_000


class LogBroken(Exception):
    """The log is not what was signed before; nothing more is signed until somebody has looked into it."""

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(f"The audit log is broken at seq {seq}: {reason}.")
        self.seq = seq
        self.reason = reason


def latest_checkpoint() -> Checkpoint | None:
    """The newest checkpoint; None before the first."""
    return Checkpoint.objects.first()


def links(after: int = 0, until: int | None = None) -> Iterator[Link]:
    """Events in order, streamed with bounded memory: those after the first ``after``, up to number ``until``."""
    while until is None or after < until:
        size = _PAGE if until is None else min(_PAGE, until - after)
        with connection.cursor() as cursor:
            cursor.execute(_COLUMNS, [after, size])
            rows = cursor.fetchall()
        yield from map(Link._make, rows)
        if len(rows) < size:
            return
        after = rows[-1][0]


def keep_checkpoints() -> Checkpoint | None:
    """The controller's duty: a checkpoint each minute with new events, and at once for what must not wait."""
    latest = latest_checkpoint()
    size = latest.tree_size if latest else 0
    fresh = AuditEvent.objects.filter(seq__gt=size)
    if latest is not None and latest.created_at > timezone.now() - EVERY and not _is_urgent(size):
        return None
    if not fresh.exists() or _was_refused():
        return None
    try:
        return checkpoint_now()
    except LogBroken as error:
        _note_refusal(error)
        return None


def _was_refused() -> bool:
    """Whether the log was found broken a moment ago: it is tried again each minute, not each second."""
    latest = Verification.objects.exclude(finished_at=None).filter(requested_by=_SIGNER).first()
    return latest is not None and latest.finished_at is not None and latest.finished_at > timezone.now() - EVERY


def _note_refusal(error: LogBroken) -> None:
    """Show it on the audit page, in one entry as long as it is the same event."""
    logger.error("%s Nothing is signed until it is as it was.", error)
    Verification.objects.update_or_create(
        requested_by=_SIGNER,
        bad_seq=error.seq,
        defaults={"reason": error.reason, "checked": error.seq - 1, "finished_at": timezone.now()},
    )


def _is_urgent(size: int) -> bool:
    fresh = AuditEvent.objects.filter(seq__gt=size)
    has_urgent = any(fresh.filter(action__startswith=prefix).exists() for prefix in AT_ONCE)
    return has_urgent or fresh.filter(seq__gt=size + MAX_EVENTS).exists()


def checkpoint_now(max_steps: int = 1) -> Checkpoint | None:
    """Sign and anchor the log as it is; returns the newest checkpoint, None for an empty log.

    A step covers at most ``MAX_EVENTS``. Raises ``LogBroken`` instead of signing what does not continue the last
    checkpoint.
    """
    for _ in range(max_steps):
        if _grow() is None:
            break
    return latest_checkpoint()


@transaction.atomic
def _grow() -> Checkpoint | None:
    """One step; None if there was nothing new."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    check = _resume()
    begin, leaves = check.checked, bytearray()
    record, promised = _promised(begin)
    for link in links(begin, promised.size if promised else begin + MAX_EVENTS):
        if not check.add(link):
            raise LogBroken(check.bad_seq or link.seq, check.reason)
        leaves += bytes.fromhex(link.leaf_hash)
    statement = Statement(audit_key().name, check.checked, check.range.root())
    if promised is not None:
        _require_same(promised, statement)
        return _store(begin, promised, str(record["note"]))
    if not leaves:
        return None
    note = sign_note(statement.body(), audit_signer())
    anchors.append_to_folder(anchors.record_of(note, begin, bytes(leaves)))
    return _store(begin, statement, note)


def _resume() -> LogCheck:
    """The state at the last checkpoint, which has to be signed and to be the stored tree's."""
    check, latest = LogCheck(), latest_checkpoint()
    if latest is None:
        return check
    size = latest.tree_size
    try:
        statement = open_checkpoint(latest.note, [audit_key()])
        check.range = tree.range_at(size, tree.stored_nodes())
        if statement.size != size or statement.root != check.range.root():
            raise Rejected("the stored tree is not the one that was signed")
    except (Rejected, IndexError) as error:
        raise LogBroken(size, f"the newest checkpoint cannot be continued ({error}); run verify_audit") from error
    check.head = AuditEvent.objects.values_list("leaf_hash", flat=True).get(seq=size) or ""
    return check


def _promised(size: int) -> tuple[dict[str, Any], Statement | None]:
    """A checkpoint that is anchored but not in the database: of a transaction that died, or of a log rolled back."""
    record = anchors.newest_in_folder()
    if record is None:
        return {}, None
    try:
        statement = open_checkpoint(str(record["note"]), [audit_key()])
    except (Rejected, KeyError) as error:
        raise LogBroken(size, f"the newest anchor cannot be relied on: {error}") from error
    return record, statement if statement.size > size else None


def _require_same(promised: Statement, found: Statement) -> None:
    """The log has to be the one that an anchored checkpoint speaks of."""
    if found.size < promised.size:
        raise LogBroken(found.size + 1, f"it is missing, and a checkpoint over {promised.size} events is anchored")
    if found != promised:
        raise LogBroken(found.size, "the anchored checkpoint covers another log")


def _store(begin: int, statement: Statement, note: str) -> Checkpoint:
    tree.store_nodes(begin, statement.size)
    return Checkpoint.objects.create(tree_size=statement.size, root_hash=statement.root.hex(), note=note)
