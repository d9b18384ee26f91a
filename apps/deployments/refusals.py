"""Manifests that must not be followed: what replicas refuse, and what the console itself finds altered."""

from __future__ import annotations

from collections import Counter
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from apps.accounts.models import Team
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError
from apps.deployments.manifest import publish_manifest
from apps.deployments.models import ManifestRefusal, Replica, ServingManifest
from inference.contracts import verify_manifest
from inference.errors import ManifestRejected

_MAX_TOLD: Final = 20
_MAX_TEAMS: Final = 1_000


@transaction.atomic
def note_refused_manifests() -> int:
    """Raise an alert for each refusal that is new; returns how many. Called by the controller.

    Replicas do not fetch a generation again that they follow already, so the newest manifest is checked here, too.
    """
    reported = Counter(
        error["message"][:500]
        for replica in Replica.objects.live()
        for error in replica.errors
        if error.get("is_manifest")
    )
    if altered := _why_altered():
        reported[altered] += 0
    now = timezone.now()
    known = {row.message: row for row in ManifestRefusal.objects.select_for_update().filter(ended_at=None)}
    for message, row in known.items():
        if message in reported:
            row.replicas, row.last_seen_at = reported[message], now
        else:
            row.ended_at = now
        row.save(update_fields=["replicas", "last_seen_at", "ended_at"])
    new = [message for message in reported if message not in known][:_MAX_TOLD]
    for message in new:
        row = ManifestRefusal.objects.create(
            message=message, replicas=reported[message], first_seen_at=now, last_seen_at=now
        )
        _record(Actor.system("controller"), "manifest.refused", row)
    return len(new)


@transaction.atomic
def acknowledge_refusals(actor: Actor, *, reason: str) -> int:
    """Say what was found out about the refusals, and publish a manifest in the place of a bad one; returns how many."""
    actor.require("deployments.operate")
    if not reason.strip():
        raise DomainError("Say what you found out: it becomes part of the record.", field="reason")
    refusals = list(ManifestRefusal.objects.select_for_update().filter(acknowledged_at=None))
    if not refusals:
        raise Conflict("Somebody has acknowledged this already.")
    for refusal in refusals:
        refusal.acknowledged_at, refusal.acknowledged_by = timezone.now(), actor.name
        refusal.save(update_fields=["acknowledged_at", "acknowledged_by"])
        _record(actor, "manifest.refusal_acknowledged", refusal, reason)
    publish_manifest(anew=any(refusal.ended_at is None for refusal in refusals))
    return len(refusals)


def _why_altered() -> str:
    """Why the newest stored manifest cannot be one of ours; empty if it is."""
    newest = ServingManifest.objects.order_by("-generation").first()
    path = settings.INSTALLATION.public_key_file("manifest")
    if newest is None or not path.exists():
        return ""
    key = load_pem_public_key(path.read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        return "The public key of the manifest is not an Ed25519 key."
    try:
        verify_manifest(newest.body.encode(), newest.signature, key)
    except ManifestRejected as error:
        return f"Generation {newest.generation} was altered in the database: {error}"
    return ""


def _record(actor: Actor, action: str, refusal: ManifestRefusal, reason: str = "") -> None:
    """One event for each team with endpoints: the manifest is everybody's, and everybody's officers look for it."""
    after = {"message": refusal.message, "replicas": refusal.replicas}
    for team in Team.objects.filter(endpoints__isnull=False).distinct()[:_MAX_TEAMS]:
        record(actor, action, refusal, team=team, after=after, reason=reason)
