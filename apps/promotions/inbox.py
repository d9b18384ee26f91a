"""What needs a person, and what nobody looking at an endpoint may miss."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.utils import timezone

from apps.accounts.models import Team
from apps.audit.actor import Actor
from apps.deployments.models import Endpoint, ManifestRefusal
from apps.jobs.models import Job, JobState
from apps.policies.attestations import attestations_due
from apps.promotions.models import Finding, PromotionRequest, RequestState, ReviewTask, RolloutState

_SHOWN = 20
_RECENTLY = timedelta(days=7)


def inbox_page(actor: Actor, team: Team) -> dict[str, Any]:
    """The person's tasks and conditions, the team's emergencies, what failed, and the latest requests."""
    requests = PromotionRequest.objects.for_team(team).for_list()
    own = requests.filter(requested_by_id=actor.user_id)
    failed = Job.objects.for_team(team).filter(state__in=(JobState.FAILED, JobState.PARKED))
    return {
        "tasks": ReviewTask.objects.for_team(team)
        .waiting_for(actor.user_id)
        .select_related("request__endpoint", "request__model_version__model", "request__requested_by")
        .defer("request__evidence", "request__binding")[:_SHOWN],
        "findings": Finding.objects.for_team(team)
        .binding()
        .select_related("owner", "request__endpoint", "request__model_version__model")
        .defer("request__evidence", "request__binding")[:_SHOWN],
        "attestations": attestations_due(team)[:_SHOWN],
        "user_id": actor.user_id,
        "emergencies": requests.emergencies()[:_SHOWN],
        "refusals": ManifestRefusal.objects.filter(acknowledged_at=None)[:5],
        "to_revise": own.filter(state=RequestState.CHANGES_REQUESTED)[:5],
        "revoked": requests.filter(state=RequestState.REVOKED, decided_at__gt=timezone.now() - _RECENTLY)[:5],
        "own_requests": own[:5],
        "failed_rollouts": requests.filter(rollout=RolloutState.FAILED)[:5],
        "failed_jobs": failed.filter(requested_by_id=actor.user_id)[:5],
        "recent": requests[:8],
    }


def endpoint_notices(endpoint: Endpoint) -> dict[str, Any]:
    """Unreviewed emergencies, open conditions and fresh revocations on an endpoint."""
    requests = PromotionRequest.objects.filter(endpoint=endpoint).for_list()
    return {
        "emergencies": requests.emergencies()[:5],
        "findings": Finding.objects.binding()
        .filter(request__endpoint=endpoint)
        .select_related("owner", "request__endpoint", "request__model_version__model")
        .defer("request__evidence", "request__binding")[:5],
        "revoked": requests.filter(state=RequestState.REVOKED, decided_at__gt=timezone.now() - _RECENTLY)[:3],
    }
