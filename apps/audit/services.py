"""Writing the audit log, and what others may ask of its tree."""

from __future__ import annotations

from typing import Any

from django.db import connection, models

from apps.audit import chain, merkle, tree
from apps.audit.actor import Actor
from apps.audit.checkpoints import checkpoint_now, latest_checkpoint
from apps.audit.models import AuditEvent, Checkpoint
from apps.core.errors import NotFound

__all__ = ["checkpoint_now", "consistency_proof", "inclusion_proof", "latest_checkpoint", "record"]

_VALUE_CAP = 8_192
"""Characters of one before/after document; a longer one is cut, and says so."""


def record(
    actor: Actor,
    action: str,
    obj: models.Model,
    *,
    team: Any,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str = "",
) -> AuditEvent:
    """Write the event of a change, in the change's own transaction: if it cannot be written, nothing changes.

    ``action`` reads ``noun.past_verb``; ``before`` and ``after`` hold only what changed, JSON-safe.
    """
    if not connection.in_atomic_block:
        raise RuntimeError("An audit event belongs into the transaction of its change.")
    body = {
        "action": action,
        "actor_address": actor.address,
        "actor_id": actor.user_id,
        "actor_name": actor.name,
        "after": _bounded(after),
        "before": _bounded(before),
        "object_id": str(obj.pk),
        "object_label": str(obj)[:200],
        "object_type": obj._meta.label_lower,
        "reason": reason[:2_000],
        "request_id": actor.request_id,
        "team_id": team.pk if team is not None else None,
        "token_id": actor.token_id,
    }
    # PostgreSQL's jsonb, which the filter columns are generated from, has no NUL.
    return AuditEvent.objects.create(body=chain.canonical_json(body).replace("\\u0000", "\\ufffd"))


def _bounded(document: dict[str, Any] | None) -> dict[str, Any] | None:
    if document is None:
        return None
    text = chain.canonical_json(document)
    return document if len(text) <= _VALUE_CAP else {"truncated": text[:_VALUE_CAP], "characters": len(text)}


def inclusion_proof(seq: int, tree_size: int, node: merkle.Node | None = None) -> list[str]:
    """The hashes (hex) that lead from an event to the root of the checkpoint over ``tree_size`` events.

    For many events hand in one ``tree.stored_nodes()``. Raises ``NotFound`` where the checkpoint does not cover the
    event, and ``RuntimeError`` where the stored tree is not what was signed.
    """
    checkpoint = Checkpoint.objects.filter(tree_size=tree_size).first()
    if checkpoint is None or not 1 <= seq <= tree_size:
        raise NotFound("There is no checkpoint of this size that covers this event.")
    read = node or tree.stored_nodes()
    proof = merkle.inclusion_proof(seq - 1, tree_size, read)
    if not merkle.verify_inclusion(read(0, seq - 1), seq - 1, tree_size, proof, bytes.fromhex(checkpoint.root_hash)):
        raise RuntimeError(
            f"The stored tree does not lead to the checkpoint over {tree_size} events: run verify_audit."
        )
    return [one.hex() for one in proof]


def consistency_proof(old_size: int, new_size: int) -> list[str]:
    """The hashes (hex) that show that the log of ``new_size`` events begins with that of ``old_size`` events.

    Raises ``NotFound`` unless the newest checkpoint covers both.
    """
    latest = latest_checkpoint()
    if latest is None or not 0 <= old_size <= new_size <= latest.tree_size:
        raise NotFound("There is no checkpoint yet that covers both sizes.")
    return [one.hex() for one in merkle.consistency_proof(old_size, new_size, tree.stored_nodes())]
