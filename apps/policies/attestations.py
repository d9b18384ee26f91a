"""Versions in service are attested again from time to time, or else what their policy says happens to them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import models, transaction
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from apps.accounts.confirmation import Confirmation
from apps.accounts.models import User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments.models import Deployment, Endpoint
from apps.deployments.services import withdraw_version
from apps.policies.approvals import who_may_approve
from apps.policies.documents import Attestation as AttestationTerms
from apps.policies.documents import Fallback
from apps.policies.models import Attestation, AttestationLapse, PolicyVersion, RiskAssessment
from apps.policies.services import UNASSESSED_TIER, people

logger = logging.getLogger(__name__)

NOTICE: Final = timedelta(days=14)
"""How long before its due time an attestation is a task."""
_AT_ONCE: Final = 200
_CONFIRMATION_LIFETIME: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Due:
    """A version in service with the policy that wants it attested, and until when."""

    deployment: Deployment
    policy_version: PolicyVersion
    terms: AttestationTerms
    at: datetime

    @property
    def is_overdue(self) -> bool:
        """Whether the time is over."""
        return self.at <= timezone.now()


def attestations_due(team: Any, *, endpoint: Endpoint | None = None, within: timedelta | None = NOTICE) -> list[Due]:
    """What the team has to attest within a time, the most urgent first; ``within`` None: whenever it is due."""
    policies = PolicyVersion.objects.for_team(team)
    found = [due for due in _due(policies, within) if endpoint is None or due.deployment.endpoint_id == endpoint.pk]
    return sorted(found, key=lambda due: due.at)


def _due(policies: models.QuerySet[Any], within: timedelta | None) -> Iterator[Due]:
    """By policy in force that wants attestations: what answers under it and is due."""
    now = timezone.now()
    # JSON null, which is what a document without an attestation holds.
    for version in policies.in_force().with_names().exclude(body__attestation=None):
        terms = version.document.attestation
        if terms is None:
            continue
        period = timedelta(days=terms.period_days)
        rows = _answering(version)
        if within is not None:
            rows = rows.filter(since__lte=now + within - period)
        for deployment in rows.order_by("since")[:_AT_ONCE]:
            yield Due(deployment, version, terms, deployment.since + period)


def _answering(version: PolicyVersion) -> models.QuerySet[Any]:
    """What answers under a policy, with ``since``: its last attestation or else its activation."""
    newest = RiskAssessment.objects.filter(model=models.OuterRef("model_version__model")).order_by("-number")
    rows = Deployment.objects.answering().with_versions().select_related("endpoint__team")
    annotated: models.QuerySet[Any] = (
        rows.annotate(
            tier=Coalesce(models.Subquery(newest.values("tier")[:1]), models.Value(str(UNASSESSED_TIER))),
            since=Greatest("activated_at", models.Max("attestations__attested_at")),
        )
        .filter(endpoint__team=version.policy.team_id, endpoint__environment=version.policy.environment)
        .filter(tier=version.policy.tier)
    )
    return annotated


def why_not_attest(actor: Actor, due: Due) -> str:
    """Why this person cannot attest the version; empty if they can."""
    version = due.deployment.model_version
    if actor.token_id is not None:
        return "A token never attests: sign in to the console."
    excluded = {version.uploaded_by_id: "You uploaded this version, so somebody else must attest it."}
    if version.trained_by_id is not None:
        excluded[version.trained_by_id] = "You trained this version, so somebody else must attest it."
    may, why_not = who_may_approve(due.policy_version.document, people(due.deployment.endpoint.team), excluded)
    if any(person.id == actor.user_id for person in may):
        return ""
    return why_not.get(actor.user_id or 0, "Only those whom the policy asks for approvals attest.")


@transaction.atomic
def attest(
    actor: Actor, *, endpoint: Endpoint, deployment_id: int, statement: str, confirmation: Confirmation
) -> Attestation:
    """Sign that a version in service is still fit for it; its time starts again.

    Raises ``NotAllowed`` for whoever may not, ``Conflict`` if the version does not serve or needs no attestation.
    """
    endpoint = Endpoint.objects.select_for_update(of=("self",)).select_related("team").get(pk=endpoint.pk)
    due = _find(endpoint, deployment_id)
    if due is None:
        raise Conflict("This version does not answer any more, or no policy wants it attested.")
    if reason := why_not_attest(actor, due):
        raise NotAllowed(reason)
    if not confirmation.factors or timezone.now() - confirmation.at > _CONFIRMATION_LIFETIME:
        raise NotAllowed("Confirm again that it is you: a signature takes a confirmation of its own.")
    if not statement.strip():
        raise DomainError("Say what you looked at.", field="statement")
    person = User.objects.get(pk=actor.person_id)
    attestation = Attestation.objects.create(
        deployment=due.deployment,
        policy_version=due.policy_version,
        statement=statement.strip(),
        attested_by=person,
        signed_name=person.name,
        factors=list(confirmation.factors),
        attested_at=timezone.now(),
    )
    after = {
        "deployment": due.deployment.pk,
        "model_version": str(due.deployment.model_version),
        "artifact_digest": due.deployment.model_version.artifact.sha256,
        "policy_version": str(due.policy_version),
        "signed_name": person.name,
        "factors": attestation.factors,
    }
    record(actor, "deployment.attested", endpoint, team=endpoint.team, after=after, reason=attestation.statement)
    return attestation


def enforce_attestations() -> int:
    """Have happen what the policies say about overdue attestations. Called by the controller; returns how many.

    One that breaks is logged and tried again at the next tick; it holds up no other.
    """
    overdue = list(_due(PolicyVersion.objects.all(), timedelta(0)))
    for due in overdue:
        try:
            _lapse(due)
        except Exception:
            logger.exception("The overdue attestation of %s could not be acted on; trying again", due.deployment)
    return len(overdue)


@transaction.atomic
def _lapse(due: Due) -> None:
    # The endpoint's row first: whoever attests at this moment takes it, too, and one of the two sees the other.
    endpoint = (
        Endpoint.objects.select_for_update(of=("self",)).select_related("team").get(pk=due.deployment.endpoint_id)
    )
    now_due = _find(endpoint, due.deployment.pk)
    if now_due is None or not now_due.is_overdue:
        return
    fallback = now_due.terms.fallback
    _, is_new = AttestationLapse.objects.get_or_create(
        deployment=due.deployment,
        due_at=now_due.at,
        defaults={"policy_version": now_due.policy_version, "fallback": fallback, "happened_at": timezone.now()},
    )
    if not is_new:
        return
    actor = Actor.system("controller")
    reason = f"{due.deployment.model_version} was to be attested by {now_due.at:%Y-%m-%d %H:%M} UTC, and nobody did."
    after = {"deployment": due.deployment.pk, "fallback": fallback, "policy_version": str(now_due.policy_version)}
    record(actor, "deployment.attestation_lapsed", endpoint, team=endpoint.team, after=after, reason=reason)
    if fallback is not Fallback.WARN and due.deployment.promotion_request_id is not None:
        withdraw_version(
            actor,
            endpoint=endpoint,
            promotion_request_id=due.deployment.promotion_request_id,
            reason=reason,
            put_back=fallback is Fallback.ROLL_BACK,
        )


def _find(endpoint: Endpoint, deployment_id: int) -> Due | None:
    found = attestations_due(endpoint.team, endpoint=endpoint, within=None)
    return next((due for due in found if due.deployment.pk == deployment_id), None)
