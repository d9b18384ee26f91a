"""Checks the live log with the auditors' verifier, in a process of its own, and keeps the outcome."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from apps.audit import anchors
from apps.audit.actor import Actor
from apps.audit.checkpoints import links
from apps.audit.keys import audit_key
from apps.audit.models import Checkpoint, Verification
from apps.audit.services import record
from apps.audit.verify import Anchors, Verdict, verify_log
from apps.core.controller import wake_controller

logger = logging.getLogger(__name__)

EVERY: Final = timedelta(days=1)
_GIVEN_UP_AFTER: Final = timedelta(minutes=30)
_KEPT: Final = 1_000
_NOTES: Final = 20

_child: subprocess.Popen[bytes] | None = None


def verify_live(more: tuple[Path, ...] = ()) -> Verdict:
    """Check every event of the database against the anchors' folder, its own checkpoints, and ``more`` anchors."""
    key = audit_key()
    known = anchors.read_folder(key)
    for path in more:
        known.read(path, [key])
    _add_stored(known, key)
    return verify_log(links(), known)


def _add_stored(known: Anchors, key: Any) -> None:
    rows = Checkpoint.objects.order_by("tree_size").values_list("tree_size", "root_hash", "note")
    for size, root, note in rows.iterator(chunk_size=2_000):
        if known.roots.get(size, b"").hex() != root:
            known.add_note(note, [key], f"the checkpoint over {size} events", size)


@transaction.atomic
def request_verification(actor: Actor, *, team: Any) -> Verification:
    """Have the whole log checked; one that waits or runs already is what is asked for."""
    current = Verification.objects.filter(finished_at=None).first()
    if current is not None:
        return current
    verification = Verification.objects.create(requested_by=actor.name)
    record(actor, "audit_log.verification_requested", verification, team=team)
    wake_controller()
    return verification


def run_verifications() -> None:
    """The controller's duty: start what was requested, one at a time, and ask for one each day."""
    global _child
    if _child is not None and _child.poll() is None:
        return
    _child = None
    now = timezone.now()
    waiting = Verification.objects.filter(finished_at=None)
    due = waiting.filter(started_at=None) | waiting.filter(started_at__lt=now - _GIVEN_UP_AFTER)
    verification = due.order_by("pk").first()
    if verification is None:
        if not Verification.objects.filter(requested_at__gt=now - EVERY).exists():
            Verification.objects.create(requested_by="controller")
        return
    Verification.objects.filter(pk=verification.pk).update(started_at=now)
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "verify_audit", f"--record={verification.pk}"]
    _child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def finish_verification(verification_id: int, verdict: Verdict) -> None:
    """Keep an outcome; the oldest ones beyond a thousand go."""
    notes = [*verdict.warnings, *(f"the bodies of {first} to {last} are gone" for first, last in verdict.gone)]
    Verification.objects.filter(pk=verification_id).update(
        finished_at=timezone.now(),
        checked=verdict.checked,
        anchored=verdict.anchored,
        bad_seq=verdict.bad_seq,
        reason=verdict.reason,
        notes=notes[:_NOTES],
    )
    Verification.objects.filter(pk__lte=verification_id - _KEPT).delete()
    if not verdict.is_ok:
        logger.error("The audit log is broken at seq %s: %s", verdict.bad_seq, verdict.reason)
