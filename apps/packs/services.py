"""Asking for evidence packs, and handing them out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import IO, Any, Final

from django.core.files.base import File
from django.core.files.storage import default_storage
from django.db import models, transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError, NotFound
from apps.deployments.models import Endpoint
from apps.jobs.services import enqueue
from apps.packs.models import EvidencePack, PackKind
from apps.promotions.models import PromotionRequest
from apps.registry.models import RegisteredModel

MAX_PERIOD: Final = timedelta(days=366)
MAX_PACKS_PER_TEAM: Final = 10_000
_PERMISSION: Final = "audit.read"
_KINDS: Final[dict[type[models.Model], PackKind]] = {
    PromotionRequest: PackKind.PROMOTION,
    RegisteredModel: PackKind.MODEL,
    Endpoint: PackKind.ENDPOINT,
}


def find_subject(team: Any, *, kind: str, key: Any) -> PromotionRequest | RegisteredModel | Endpoint:
    """The promotion with this id, or the model or endpoint with this name. Raises ``NotFound``."""
    model = next(model for model, of in _KINDS.items() if of == kind)
    lookup = {"pk": key} if kind == PackKind.PROMOTION else {"name": key}
    subject: Any = model._default_manager.for_team(team).filter(**lookup).first()
    if subject is None:
        raise NotFound(f"Your team has no {PackKind(kind).label.lower().split()[0]} “{key}”.", field="subject")
    return subject  # type: ignore[no-any-return]


@transaction.atomic
def request_pack(
    actor: Actor,
    *,
    team: Any,
    subject: PromotionRequest | RegisteredModel | Endpoint,
    since: datetime | None = None,
    until: datetime | None = None,
) -> EvidencePack:
    """Have a pack built about a promotion, a model, or an endpoint in the period ``since`` <= t < ``until``."""
    actor.require(_PERMISSION)
    kind = _KINDS[type(subject)]
    if kind == PackKind.ENDPOINT:
        _require_period(since, until)
    if EvidencePack.objects.for_team(team).count() >= MAX_PACKS_PER_TEAM:
        raise Conflict(f"A team has at most {MAX_PACKS_PER_TEAM:,} packs.")
    pack = EvidencePack.objects.create(
        team=team,
        kind=kind,
        subject_id=subject.pk,
        subject=str(subject)[:200],
        since=since,
        until=until,
        requested_by_id=actor.person_id,
        requested_at=timezone.now(),
    )
    pack.job = enqueue(
        actor,
        "packs.build_pack",
        team=team,
        subject=f"Evidence pack of {subject}",
        subject_url=pack.get_absolute_url(),
        arguments={"pack_pk": pack.pk},
    )
    pack.save(update_fields=["job"])
    period = {"since": since.isoformat(), "until": until.isoformat()} if since and until else {}
    record(actor, "evidence_pack.requested", pack, team=team, after={"kind": kind, "subject": pack.subject} | period)
    return pack


def _require_period(since: datetime | None, until: datetime | None) -> None:
    if since is None or until is None or since >= until:
        raise DomainError("A period begins before it ends.", field="until")
    if until - since > MAX_PERIOD:
        raise DomainError(f"A period has at most {MAX_PERIOD.days} days.", field="until")
    if since > timezone.now():
        raise DomainError("The period lies in the future.", field="since")


def keep_pack(
    actor: Actor, *, pack: EvidencePack, file: IO[bytes], sha256: str, event_count: int, checkpoint_size: int
) -> None:
    """Keep a pack that was built and checked. A second one is dropped."""
    size = file.seek(0, 2)
    file.seek(0)
    path = default_storage.save(f"packs/{pack.pack_id}.zip", File(file))
    values = {"path": path, "sha256": sha256, "size_bytes": size, "built_at": timezone.now()}
    values |= {"event_count": event_count, "checkpoint_size": checkpoint_size}
    with transaction.atomic():
        if not EvidencePack.objects.filter(pk=pack.pk, built_at=None).update(**values):
            default_storage.delete(path)
            return
        after = {"sha256": sha256, "size_bytes": size, "events": event_count, "log_size": checkpoint_size}
        record(actor, "evidence_pack.built", pack, team=pack.team, after=after)


@transaction.atomic
def open_pack(actor: Actor, *, pack: EvidencePack, part: str) -> IO[bytes]:
    """The pack's file to read; who took what (``part``: ``pack`` or ``report``) is on record before a byte is sent."""
    actor.require(_PERMISSION)
    if pack.built_at is None:
        raise Conflict("The pack is not built yet.")
    file: IO[bytes] = default_storage.open(pack.path)
    record(actor, "evidence_pack.downloaded", pack, team=pack.team, after={"part": part, "sha256": pack.sha256})
    return file
