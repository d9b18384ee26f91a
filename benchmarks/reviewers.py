"""A team in which everybody may review: those who should, and those who asked for, made or uploaded the version.

Django has to be set up before this module is imported.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from apps.accounts import services as accounts
from apps.accounts.confirmation import PASSWORD, Confirmation
from apps.accounts.models import Membership
from apps.accounts.roles import Role
from apps.audit.actor import Actor
from apps.deployments import services as deployments
from apps.deployments.models import Endpoint
from apps.policies.documents import ApprovalRule, PolicyDocument, Tier
from apps.policies.services import confirm_policy, propose_policy
from apps.promotions import rollouts
from apps.promotions.models import MEANINGS, Decision, PromotionRequest, Severity
from apps.promotions.reviews import Condition, review_promotion
from apps.promotions.services import cancel_promotion, request_promotion
from apps.registry import services as registry
from apps.registry.models import Artifact, ModelVersion

_ENVIRONMENTS: Final = {False: "production", True: "four-eyes"}
_SIGNATURE: Final[dict[str, Any]] = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
_names = count(1)


class Reviewers:
    """Requester, uploader and trainer, who are compliance officers as well, and three officers with no other part."""

    def __init__(self) -> None:
        name, system = f"team-{next(_names)}", Actor.system("benchmark")
        both = [Role.DATA_SCIENTIST, Role.OPERATOR, Role.COMPLIANCE_OFFICER]
        with transaction.atomic():
            self._team = accounts.create_team(system, slug=name, name=name)
            self._requester, self._uploader, self._trainer, *self._officers = (
                accounts.create_member(
                    system,
                    team=self._team,
                    email=f"{part}@{name}.example",
                    name=f"{part} of {name}",
                    password=secrets.token_urlsafe(12),
                    roles=both if number < 3 else [Role.COMPLIANCE_OFFICER],
                )
                for number, part in enumerate(("requester", "uploader", "trainer", "first", "second", "third"))
            )
        self._model = registry.register_model(_actor(self._uploader), team=self._team, name=name, task="REGRESSION")
        self._endpoints = {needs_two: self._endpoint(name, needs_two) for needs_two in _ENVIRONMENTS}
        self._demand_two()

    def _endpoint(self, name: str, needs_two: bool) -> Endpoint:
        endpoint = deployments.create_endpoint(
            _actor(self._requester), team=self._team, name=f"{name}-{_ENVIRONMENTS[needs_two]}"
        )
        Endpoint.objects.filter(pk=endpoint.pk).update(environment=_ENVIRONMENTS[needs_two])
        return endpoint

    def _demand_two(self) -> None:
        """Two officers decide that two have to approve where four eyes are asked for."""
        proposal = propose_policy(
            _actor(self._officers[0]),
            team=self._team,
            environment=_ENVIRONMENTS[True],
            tier=Tier.LIMITED,
            document=PolicyDocument((ApprovalRule("role:compliance_officer", 2),)),
            reason="Four eyes.",
        )
        confirm_policy(_actor(self._officers[1]), version=proposal, digest=proposal.digest)

    def submit(self, *, needs_two: bool) -> PromotionRequest:
        """A request for a version on record only, which nothing loads."""
        number = next(_names)
        digest = hashlib.sha256(f"{self._model.name} {number}".encode()).hexdigest()
        version = ModelVersion.objects.create(
            model=self._model,
            number=number,
            artifact=Artifact.objects.create(sha256=digest, size_bytes=1, path=f"artifacts/{digest}"),
            state="READY",
            signature=_SIGNATURE,
            file_name="model.onnx",
            uploaded_by=self._uploader.user,
            trained_by=self._trainer.user,
        )
        return request_promotion(
            _actor(self._requester),
            team=self._team,
            model_version=version,
            endpoint=self._endpoints[needs_two],
            justification="Its turn has come.",
        )

    def decisions(self, request: PromotionRequest, *, withdraws: bool, applies: bool) -> list[Callable[[], object]]:
        """What everybody tries at once; with ``withdraws`` the requester takes it back, with ``applies`` the controller
        puts into service what is approved.

        A request that was handed back may be withdrawn afterwards, so nobody hands it back where it is.
        """
        first, second, third = self._officers
        tried: list[Callable[[], object]] = [
            *(self._sign(member, request, Decision.APPROVED) for member in (first, first, second)),
            self._sign(second, request, Decision.APPROVED_WITH_CONDITIONS),
            self._sign(third, request, Decision.REJECTED),
            *(
                self._sign(member, request, Decision.APPROVED)
                for member in (self._requester, self._uploader, self._trainer)
            ),
        ]
        if withdraws:
            tried.append(lambda: cancel_promotion(_actor(self._requester), request=request))
        else:
            tried.append(self._sign(third, request, Decision.CHANGES_REQUESTED))
        return [*tried, rollouts.apply_promotions] if applies else tried

    def _sign(self, member: Membership, request: PromotionRequest, decision: Decision) -> Callable[[], object]:
        due = timezone.now().date() + timedelta(days=7)
        condition = Condition("Evaluate it again", Severity.LOW, self._requester.user_id, due)
        return lambda: review_promotion(
            _actor(member),
            request=request,
            decision=decision,
            meaning=MEANINGS[decision][0],  # type: ignore[arg-type]
            comment="Seen.",
            confirmation=Confirmation((PASSWORD,), timezone.now()),
            approval_digest=request.approval_digest,
            conditions=[condition] if decision == Decision.APPROVED_WITH_CONDITIONS else [],
        )


def _actor(member: Membership) -> Actor:
    return Actor(member.user_id, member.user.name, "127.0.0.1", "storm", permissions=member.permissions)
