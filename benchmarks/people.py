"""A team that changes what serves, through the services that the console's pages call.

Django has to be set up before this module is imported.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from typing import Final

from django.db import transaction
from django.utils import timezone

from apps.accounts import services as accounts
from apps.accounts.confirmation import PASSWORD, Confirmation
from apps.accounts.models import Membership
from apps.accounts.roles import Role, Scope
from apps.audit.actor import Actor
from apps.deployments import services as deployments
from apps.deployments.models import Deployment, Endpoint
from apps.deployments.observed import observe
from apps.promotions import reviews
from apps.promotions import services as promotions
from apps.promotions.models import Decision, Meaning, PromotionRequest
from apps.registry import services as registry
from apps.registry.models import ModelVersion, RegisteredModel
from benchmarks.product import wait_for

PATIENCE_S: Final = 60.0
POLL_S: Final = 0.005


class _Upload(io.BytesIO):
    """A file as the upload handler of the pages hands it on."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.name: str | None = "model.onnx"
        self.size: int | None = len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()


class People:
    """One member for each part of a change."""

    def __init__(self) -> None:
        password = secrets.token_urlsafe(12)
        system = Actor.system("benchmark")
        with transaction.atomic():
            self._team = accounts.create_team(system, slug="bench", name="Bench")
            self._scientist, self._operator, self._officer = (
                accounts.create_member(
                    system,
                    team=self._team,
                    email=f"{role.value.lower()}@bench.example",
                    name=role.value,
                    password=password,
                    roles=[role],
                )
                for role in (Role.DATA_SCIENTIST, Role.OPERATOR, Role.COMPLIANCE_OFFICER)
            )

    def register(self, name: str, *contents: bytes) -> list[ModelVersion]:
        """A model with a version for each ONNX file, as the product's own worker has validated them."""
        actor = _actor(self._scientist)
        model = registry.register_model(actor, team=self._team, name=name, task="REGRESSION")
        return [self._upload(model, content) for content in contents]

    def _upload(self, model: RegisteredModel, content: bytes) -> ModelVersion:
        version = registry.upload_model_version(_actor(self._scientist), model=model, file=_Upload(content))
        ready = ModelVersion.objects.filter(pk=version.pk, state="READY")
        wait_for(ready.exists, PATIENCE_S, "validating a model version")
        version.refresh_from_db()
        return version

    def create_endpoint(self, name: str) -> tuple[Endpoint, str]:
        """An endpoint, and a token that may call it."""
        endpoint = deployments.create_endpoint(_actor(self._operator), team=self._team, name=name)
        _, token = accounts.create_token(
            _actor(self._scientist), membership=self._scientist, name="calls", scopes=[Scope.PREDICT], lifetime_days=1
        )
        return endpoint, token

    def promote(self, version: ModelVersion, endpoint: Endpoint) -> None:
        """Request, approve with a signature, and wait until the console shows the version as serving."""
        request = promotions.request_promotion(
            _actor(self._scientist),
            team=self._team,
            model_version=version,
            endpoint=endpoint,
            justification="Its turn has come.",
        )
        reviews.review_promotion(
            _actor(self._officer),
            request=request,
            decision=Decision.APPROVED,
            meaning=Meaning.APPROVAL,
            comment="Seen.",
            confirmation=Confirmation((PASSWORD,), timezone.now()),
            approval_digest=request.approval_digest,
        )
        started = PromotionRequest.objects.filter(pk=request.pk, deployment_id__isnull=False)
        wait_for(started.exists, PATIENCE_S, "applying an approved promotion", every_s=POLL_S)
        _wait_until_serving(Deployment.objects.get(pk=started.get().deployment_id))

    def roll_back(self, endpoint: Endpoint) -> None:
        """Go back to the version before, and wait until the console shows it as serving."""
        _wait_until_serving(deployments.roll_back(_actor(self._operator), endpoint=endpoint))


def _actor(member: Membership) -> Actor:
    return Actor(member.user_id, member.user.name, "127.0.0.1", "benchmark", permissions=member.permissions)


def _wait_until_serving(deployment: Deployment) -> None:
    wait_for(lambda: observe(deployment).state == "SERVING", PATIENCE_S, "switching to a version", every_s=POLL_S)
