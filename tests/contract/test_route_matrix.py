"""Every route × method × actor: who is let in, who is refused, and how. A route that is not listed here fails."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.usersessions.models import UserSession
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from rest_framework.test import APIClient

from apps.accounts.models import ApiToken, Membership
from apps.accounts.roles import Role, Scope
from apps.accounts.services import create_service_account, create_token, invite_member, map_group
from apps.audit.actor import Actor
from apps.deployments.configuration import add_guardrail
from apps.deployments.services import add_shadow
from apps.packs.services import request_pack
from apps.policies.checks import create_check_key
from apps.policies.models import CheckKeyKind
from apps.policies.services import save_review_group
from apps.promotions.comments import add_comment
from apps.registry.artifact_signing import sign_artifact
from apps.registry.services import protect_alias
from tests import builders
from tests.conftest import Cast

# The role table as it was designed, written down a second time on purpose.
EVERYBODY = {"analyst", "data_scientist", "operator", "compliance_officer", "admin"}
HOLDERS = {
    "team.view": EVERYBODY,
    "registry.upload": {"data_scientist"},
    "evaluation.run": {"analyst", "data_scientist", "operator"},
    "promotions.request": {"data_scientist", "operator"},
    "promotions.comment": EVERYBODY - {"admin"},
    "promotions.review": {"compliance_officer"},
    "registry.review_card": {"compliance_officer"},
    "deployments.operate": {"operator"},
    "deployments.predict": EVERYBODY - {"admin"},
    "policies.assess": {"data_scientist", "compliance_officer"},
    "policies.report_check": set(),
    "promotions.set_policy": {"compliance_officer"},
    "audit.read": {"compliance_officer"},
    "accounts.administer": {"admin"},
    "accounts.provision": {"admin"},
    "signed-in": EVERYBODY,
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

# route name -> {method: permission}; "public" needs no sign-in.
ROUTES: dict[str, dict[str, str]] = {
    "healthz": {"GET": "public"},
    "accounts:sign-in": {"GET": "public", "POST": "public"},
    "accounts:invitation-accept": {"GET": "public", "POST": "public"},
    "account_login": {"GET": "public", "POST": "public"},
    "mfa_authenticate": {"GET": "public", "POST": "public"},
    "accounts:passkey-sign-in": {"POST": "public"},
    "accounts:passkey-sign-in-options": {"POST": "public"},
    "accounts:sign-out": {"POST": "public"},
    "accounts:security": {"GET": "signed-in"},
    "accounts:confirm": {"GET": "signed-in", "POST": "signed-in"},
    "accounts:password-change": {"GET": "signed-in", "POST": "signed-in"},
    "accounts:session-end": {"POST": "signed-in"},
    "accounts:passkey-options": {"POST": "signed-in"},
    "accounts:passkey-add": {"GET": "signed-in", "POST": "signed-in"},
    "accounts:passkey-add-options": {"POST": "signed-in"},
    "accounts:totp-add": {"GET": "signed-in", "POST": "signed-in"},
    "accounts:recovery-codes": {"GET": "signed-in", "POST": "signed-in"},
    "accounts:factor-remove": {"POST": "signed-in"},
    "accounts:team-switch": {"POST": "signed-in"},
    "accounts:settings": {"GET": "signed-in"},
    "accounts:member-list": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "accounts:member-edit": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "accounts:sign-on": {"GET": "public"},
    "openid_connect_callback": {"GET": "public"},
    "accounts:invitation-revoke": {"POST": "accounts.administer"},
    "accounts:service-account-list": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "accounts:service-account-detail": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "accounts:sign-in-settings": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "accounts:group-mapping-add": {"POST": "accounts.administer"},
    "accounts:group-mapping-remove": {"POST": "accounts.administer"},
    "accounts:token-list": {"GET": "team.view", "POST": "team.view"},
    "accounts:token-revoke": {"POST": "team.view"},
    "audit:event-list": {"GET": "audit.read"},
    "audit:event-detail": {"GET": "audit.read"},
    "audit:log-state": {"GET": "audit.read"},
    "audit:log-verify": {"POST": "audit.read"},
    "audit:object-history": {"GET": "team.view"},
    "audit:event-export-jsonl": {"GET": "audit.read"},
    "audit:event-export-csv": {"GET": "audit.read"},
    "jobs:job-list": {"GET": "team.view"},
    "jobs:job-detail": {"GET": "team.view"},
    "jobs:job-progress": {"GET": "team.view"},
    "jobs:job-cancel": {"POST": "team.view"},
    "jobs:job-retry": {"POST": "team.view"},
    "registry:model-list": {"GET": "team.view"},
    "registry:model-create": {"GET": "registry.upload", "POST": "registry.upload"},
    "registry:model-detail": {"GET": "team.view"},
    "registry:version-upload": {"GET": "registry.upload", "POST": "registry.upload"},
    "registry:version-detail": {"GET": "team.view"},
    "registry:version-schema": {"GET": "team.view"},
    "registry:version-download": {"GET": "team.view"},
    "registry:version-archive": {"POST": "registry.upload"},
    "registry:alias-set": {"POST": "registry.upload"},
    "registry:signature-download": {"GET": "team.view"},
    "registry:signature-check": {"POST": "registry.upload"},
    "registry:signer-list": {"GET": "team.view", "POST": "promotions.set_policy"},
    "registry:signer-revoke": {"POST": "promotions.set_policy"},
    "registry:installation-key": {"GET": "team.view"},
    "evaluation:dataset-list": {"GET": "team.view"},
    "evaluation:dataset-upload": {"GET": "registry.upload", "POST": "registry.upload"},
    "evaluation:dataset-detail": {"GET": "team.view"},
    "evaluation:version-evaluation": {"GET": "team.view"},
    "evaluation:run-start": {"POST": "evaluation.run"},
    "evaluation:run-detail": {"GET": "team.view"},
    "evaluation:version-load-tests": {"GET": "team.view"},
    "evaluation:load-test-start": {"POST": "evaluation.run"},
    "evaluation:load-test-detail": {"GET": "team.view"},
    "deployments:refusals-acknowledge": {"POST": "deployments.operate"},
    "deployments:endpoint-list": {"GET": "team.view"},
    "deployments:endpoint-create": {"GET": "deployments.operate", "POST": "deployments.operate"},
    "deployments:endpoint-detail": {"GET": "team.view"},
    "deployments:endpoint-state": {"GET": "team.view"},
    "deployments:endpoint-try": {"GET": "deployments.predict", "POST": "deployments.predict"},
    "deployments:endpoint-rollback": {"POST": "deployments.operate"},
    "deployments:endpoint-traffic": {"GET": "team.view", "POST": "deployments.operate"},
    "deployments:shadow-add": {"POST": "deployments.operate"},
    "deployments:shadow-remove": {"POST": "deployments.operate"},
    "deployments:endpoint-settings": {"GET": "team.view", "POST": "deployments.operate"},
    "deployments:guardrail-list": {"GET": "team.view"},
    "deployments:guardrail-create": {"GET": "deployments.operate", "POST": "deployments.operate"},
    "deployments:guardrail-edit": {"GET": "deployments.operate", "POST": "deployments.operate"},
    "deployments:guardrail-remove": {"POST": "deployments.operate"},
    "monitoring:overview": {"GET": "team.view"},
    "monitoring:endpoint-live": {"GET": "team.view"},
    "monitoring:guardrail-counts": {"GET": "team.view"},
    "monitoring:guardrail-replay": {"GET": "team.view"},
    "monitoring:shadow-agreement": {"GET": "team.view"},
    "monitoring:prediction-list": {"GET": "team.view"},
    "monitoring:prediction-export": {"GET": "team.view"},
    "monitoring:prediction-detail": {"GET": "team.view"},
    "monitoring:provenance": {"GET": "team.view"},
    "monitoring:rows-keep": {"POST": "registry.upload"},
    "policies:policy-list": {"GET": "team.view"},
    "policies:policy-open": {"GET": "team.view"},
    "policies:policy-detail": {"GET": "team.view"},
    "policies:policy-propose": {"GET": "promotions.set_policy", "POST": "promotions.set_policy"},
    "policies:version-detail": {"GET": "team.view"},
    "policies:version-confirm": {"POST": "promotions.set_policy"},
    "policies:version-reject": {"POST": "promotions.set_policy"},
    "policies:risk-assess": {"GET": "team.view", "POST": "policies.assess"},
    "policies:attestation": {"GET": "team.view", "POST": "team.view"},
    "policies:endpoint-protection": {"POST": "promotions.set_policy"},
    "policies:check-list": {"GET": "promotions.set_policy", "POST": "promotions.set_policy"},
    "policies:check-revoke": {"POST": "promotions.set_policy"},
    "policies:group-list": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "policies:group-edit": {"GET": "accounts.administer", "POST": "accounts.administer"},
    "policies:protection": {"GET": "team.view", "POST": "promotions.set_policy"},
    "policies:alias-unprotect": {"POST": "promotions.set_policy"},
    "promotions:inbox": {"GET": "team.view"},
    "promotions:request-list": {"GET": "team.view"},
    "promotions:request-detail": {"GET": "team.view"},
    "promotions:request-rollout": {"GET": "team.view"},
    "promotions:request-edit": {"GET": "promotions.request", "POST": "promotions.request"},
    "promotions:request-submit": {"POST": "promotions.request"},
    "promotions:request-review": {"POST": "team.view"},
    "promotions:request-revoke": {"POST": "team.view"},
    "promotions:emergency-create": {"GET": "deployments.operate", "POST": "deployments.operate"},
    "promotions:emergency-confirm": {"POST": "team.view"},
    "promotions:emergency-review": {"POST": "team.view"},
    "promotions:comment-add": {"POST": "promotions.comment"},
    "promotions:comment-edit": {"POST": "promotions.comment"},
    "promotions:finding-resolve": {"POST": "team.view"},
    "promotions:finding-judge": {"POST": "team.view"},
    "promotions:notices": {"GET": "team.view"},
    "promotions:request-cancel": {"POST": "promotions.request"},
    "promotions:request-create": {"GET": "promotions.request", "POST": "promotions.request"},
    "packs:card-detail": {"GET": "team.view"},
    "packs:card-edit": {"GET": "registry.upload", "POST": "registry.upload"},
    "packs:card-submit": {"POST": "registry.upload"},
    "packs:card-review": {"POST": "registry.review_card"},
    "packs:card-compare": {"GET": "team.view"},
    "packs:card-export": {"GET": "team.view"},
    "packs:pack-list": {"GET": "audit.read"},
    "packs:pack-create": {"GET": "audit.read", "POST": "audit.read"},
    "packs:pack-detail": {"GET": "audit.read"},
    "packs:pack-download": {"GET": "audit.read"},
    "packs:report-download": {"GET": "audit.read"},
    "packs:requirements": {"GET": "team.view"},
    "api:schema": {"GET": "public"},
    "api:model-list": {"GET": "team.view", "POST": "registry.upload"},
    "api:model-detail": {"GET": "team.view"},
    "api:model-version-list": {"GET": "team.view", "POST": "registry.upload"},
    "api:model-version-detail": {"GET": "team.view"},
    "api:model-version-artifact": {"GET": "team.view"},
    "api:model-version-alias": {"POST": "registry.upload"},
    "api:model-version-archive": {"POST": "registry.upload"},
    "api:card-revision-list": {"GET": "team.view", "POST": "registry.upload"},
    "api:card-revision-detail": {"GET": "team.view"},
    "api:card-revision-draft": {"GET": "registry.upload"},
    "api:card-revision-submit": {"POST": "registry.upload"},
    "api:dataset-list": {"GET": "team.view", "POST": "registry.upload"},
    "api:dataset-detail": {"GET": "team.view"},
    "api:dataset-version-list": {"GET": "team.view", "POST": "registry.upload"},
    "api:dataset-version-detail": {"GET": "team.view"},
    "api:evaluation-list": {"GET": "team.view", "POST": "evaluation.run"},
    "api:evaluation-detail": {"GET": "team.view"},
    "api:load-test-list": {"GET": "team.view", "POST": "evaluation.run"},
    "api:load-test-detail": {"GET": "team.view"},
    "api:endpoint-list": {"GET": "team.view", "POST": "deployments.operate"},
    "api:endpoint-detail": {"GET": "team.view"},
    "api:endpoint-deployments": {"GET": "team.view"},
    "api:endpoint-rollback": {"POST": "deployments.operate"},
    "api:endpoint-traffic": {"GET": "team.view", "PUT": "deployments.operate"},
    "api:endpoint-shadow-list": {"POST": "deployments.operate"},
    "api:endpoint-shadow-detail": {"DELETE": "deployments.operate"},
    "api:endpoint-settings": {"GET": "team.view", "PATCH": "deployments.operate"},
    "api:guardrail-list": {"GET": "team.view", "POST": "deployments.operate"},
    "api:guardrail-detail": {"PUT": "deployments.operate", "DELETE": "deployments.operate"},
    "api:prediction-list": {"GET": "team.view"},
    "api:prediction-detail": {"GET": "team.view"},
    "api:kept-rows-list": {"POST": "registry.upload"},
    "api:prediction-export-list": {"GET": "team.view"},
    "api:provenance-list": {"GET": "team.view"},
    "api:policy-list": {"GET": "team.view"},
    "api:policy-detail": {"GET": "team.view"},
    "api:model-risk-list": {"GET": "team.view", "POST": "policies.assess"},
    "api:promotion-list": {"GET": "team.view", "POST": "promotions.request"},
    "api:promotion-detail": {"GET": "team.view"},
    "api:promotion-cancel": {"POST": "promotions.request"},
    "api:evidence-pack-list": {"GET": "audit.read", "POST": "audit.read"},
    "api:evidence-pack-detail": {"GET": "audit.read"},
    "api:evidence-pack-file": {"GET": "audit.read"},
    "api:promotion-submit": {"POST": "promotions.request"},
    "api:promotion-revise": {"POST": "promotions.request"},
    "api:promotion-request-changes": {"POST": "promotions.comment"},
    "api:promotion-comments": {"GET": "team.view", "POST": "promotions.comment"},
    "api:promotion-comment": {"PATCH": "promotions.comment"},
    "api:promotion-check-list": {"GET": "team.view", "POST": "policies.report_check"},
    "api:job-list": {"GET": "team.view"},
    "api:job-detail": {"GET": "team.view"},
    "api:audit-event-list": {"GET": "audit.read"},
    "api:audit-event-detail": {"GET": "audit.read"},
    "api:audit-event-proof": {"GET": "audit.read"},
    "api:audit-checkpoint-list": {"GET": "audit.read"},
    "api:audit-checkpoint-detail": {"GET": "audit.read"},
    "api:audit-checkpoint-consistency": {"GET": "audit.read"},
    "api:audit-export-list": {"GET": "audit.read"},
    "api:member-list": {"GET": "accounts.administer"},
    "api:member-detail": {"GET": "accounts.administer", "PATCH": "accounts.administer"},
    "api:scim-user-list": {"GET": "accounts.provision"},
    "api:scim-user-detail": {"GET": "accounts.provision", "PATCH": "accounts.provision"},
    "api:token-list": {"GET": "team.view", "POST": "team.view"},
    "api:token-detail": {"GET": "team.view", "DELETE": "team.view"},
}

# Let in by their role and refused by the matter itself: somebody else's job, token or request.
PERSONAL = {
    "jobs:job-cancel",
    "jobs:job-retry",
    "accounts:token-revoke",
    "promotions:request-cancel",
    "promotions:request-submit",
    "promotions:request-edit",
    "promotions:request-review",
    "promotions:request-revoke",
    "promotions:emergency-confirm",
    "promotions:emergency-review",
    "promotions:comment-edit",
    "promotions:finding-resolve",
    "promotions:finding-judge",
    "api:promotion-cancel",
    "api:promotion-submit",
    "api:promotion-revise",
    "api:promotion-request-changes",
    "api:promotion-comment",
}
BY_NAME = {"policies:policy-detail", "policies:policy-propose"}  # every team has a policy of this name
OWN_ONLY = {"accounts:token-revoke", "api:token-detail"}  # another member's token is 404, except to an admin


def named_routes(resolver: Any = None, namespace: str = "") -> Iterator[tuple[str, URLPattern]]:
    """Every named route of the product."""
    for pattern in (resolver or get_resolver()).url_patterns:
        if isinstance(pattern, URLResolver):
            inner = f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace
            yield from named_routes(pattern, inner)
        else:
            yield f"{namespace}{pattern.name}", pattern


@dataclass(frozen=True)
class World:
    """Objects of the team that the routes' arguments name."""

    cast: Cast
    arguments: dict[str, Any]

    def url(self, name: str) -> str:
        """The route's address with this world's objects in it."""
        pattern = dict(named_routes())[name]
        wanted = list(pattern.pattern.converters) or list(pattern.pattern.regex.groupindex)
        return reverse(name, kwargs={key: self._value(name, key) for key in wanted})

    def _value(self, name: str, key: str) -> Any:
        app, _, route = name.partition(":")
        for candidate in (f"{route}.{key}", f"{app}.{key}", key):
            if candidate in self.arguments:
                return self.arguments[candidate]
        raise AssertionError(f"The test does not know what to put for {key} into {name}.")


@pytest.fixture
def world(cast: Cast) -> World:
    run = builders.finished_run(cast)
    load_test = builders.started_load_test(cast, run.model_version)
    request = builders.live_request(cast)
    open_request = builders.submitted_request(cast)
    comment = add_comment(cast.actor("analyst"), request=open_request, body="Which rows?")
    finding = builders.finding(cast, open_request)
    operator = cast.actor("operator")
    shadow = add_shadow(operator, endpoint=request.endpoint, model_version=builders.ready_version(cast))
    rule = add_guardrail(operator, endpoint=request.endpoint, name="bounded", requires="y[0] < 1e6", action="flag")
    version = request.model_version
    officer = cast.actor("compliance_officer")
    proposal = builders.proposed_policy(cast)
    check_key, _ = create_check_key(officer, team=cast.team, name="scan", kind=CheckKeyKind.HMAC)
    alias = protect_alias(officer, team=cast.team, name="gold")
    group = save_review_group(cast.actor("admin"), team=cast.team, name="board", members=[])
    admin = cast.actor("admin")
    invitation, secret = invite_member(admin, team=cast.team, email="new@example.com", roles=[Role.ANALYST])
    service_account = create_service_account(admin, team=cast.team, name="nightly", roles=[Role.ANALYST])
    mapping = map_group(admin, team=cast.team, group="risk-analysts", role=Role.ANALYST)
    analyst = cast.analyst.user
    user_session = UserSession.objects.create(user=analyst, ip="127.0.0.1", session_key="s", user_agent="x")
    factor = RecoveryCodes.activate(analyst).instance
    cast.token("data_scientist")
    token = ApiToken.objects.filter(membership=cast.data_scientist).first()
    assert token is not None
    card = builders.complete_card(cast, version)
    pack = request_pack(cast.actor("compliance_officer"), team=cast.team, subject=request)
    signer = builders.trusted_signer(cast)[0]
    sign_artifact(Actor.system("test"), model_version=version, promotion_request_id=request.pk)
    assert version.job is not None
    from apps.audit.models import AuditEvent

    with transaction.get_connection().cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    event = AuditEvent.objects.for_team(cast.team).first()
    dataset_version = run.dataset_version
    return World(
        cast,
        {
            "registry.name": version.model.name,
            "packs.name": version.model.name,
            "card-export.form": "md",
            "origin": "installation",
            "packs.pk": pack.pk,
            "evidence-pack-detail.pk": pack.pk,
            "evidence-pack-file.pk": pack.pk,
            "signer-revoke.pk": signer.pk,
            "version_number": version.number,
            "card-revision-detail.number": card.number,
            "card-revision-submit.number": card.number,
            "number": version.number,
            "deployments.name": request.endpoint.name,
            "monitoring.name": request.endpoint.name,
            "dataset-detail.name": dataset_version.dataset.name,
            "version-evaluation.name": version.model.name,
            "run-start.name": version.model.name,
            "version-load-tests.name": version.model.name,
            "load-test-start.name": version.model.name,
            "request-create.name": version.model.name,
            "endpoint_name": request.endpoint.name,
            "model_name": version.model.name,
            "dataset_name": dataset_version.dataset.name,
            "dataset-version-detail.number": dataset_version.number,
            "request_id": "no-such-request",
            "secret": secret,
            "job-detail.pk": version.job.pk,
            "job-progress.pk": version.job.pk,
            "jobs.pk": version.job.pk,
            "token-revoke.pk": token.pk,
            "token-detail.pk": token.pk,
            "provider_id": "organisation",
            "session-end.pk": user_session.pk,
            "factor-remove.pk": factor.pk,
            "invitation-revoke.pk": invitation.pk,
            "service-account-detail.pk": service_account.pk,
            "group-mapping-remove.pk": mapping.pk,
            "scim-user-detail.pk": cast.analyst.pk,
            "member-edit.pk": cast.analyst.pk,
            "member-detail.pk": cast.analyst.pk,
            "run-detail.pk": run.pk,
            "evaluation-detail.pk": run.pk,
            "load-test-detail.pk": load_test.pk,
            "environment": proposal.policy.environment,
            "tier": proposal.policy.tier,
            "policies.number": proposal.number,
            "check-revoke.pk": check_key.pk,
            "policy-detail.pk": proposal.pk,
            "group-edit.pk": group.pk,
            "alias-unprotect.pk": alias.pk,
            "risk-assess.name": version.model.name,
            "attestation.name": request.endpoint.name,
            "endpoint-protection.name": request.endpoint.name,
            "promotions.pk": open_request.pk,
            "promotion-detail.pk": open_request.pk,
            "notices.name": request.endpoint.name,
            "emergency-create.name": version.model.name,
            "finding_id": finding.pk,
            "comment_id": comment.pk,
            "promotion-submit.pk": open_request.pk,
            "promotion-revise.pk": open_request.pk,
            "promotion-request-changes.pk": open_request.pk,
            "promotion-comments.pk": open_request.pk,
            "promotion-comment.pk": open_request.pk,
            "promotion_pk": open_request.pk,
            "promotion-cancel.pk": open_request.pk,
            "model-detail.name": version.model.name,
            "endpoint-detail.name": request.endpoint.name,
            "endpoint-deployments.name": request.endpoint.name,
            "endpoint-rollback.name": request.endpoint.name,
            "endpoint-traffic.name": request.endpoint.name,
            "endpoint-shadow-list.name": request.endpoint.name,
            "endpoint-shadow-detail.name": request.endpoint.name,
            "endpoint-settings.name": request.endpoint.name,
            "deployment_id": shadow.pk,
            "shadow-remove.pk": shadow.pk,
            "guardrail-edit.pk": rule.pk,
            "guardrail-remove.pk": rule.pk,
            "guardrail-detail.rule": rule.name,
            "audit-event-detail.seq": event.seq if event else 0,
            "audit-event-proof.seq": event.seq if event else 0,
            "event-detail.seq": event.seq if event else 0,
            "tree_size": 1,
            "old_size": 1,
        },
    )


def call(client: Client, method: str, url: str, address: str) -> Any:
    """One request whose effects are undone, in the database and in the client's cookies."""
    cookies = copy.deepcopy(client.cookies)
    with transaction.atomic():
        response = getattr(client, method.lower())(url, REMOTE_ADDR=address)
        if file := getattr(response, "file_to_stream", None):
            file.close()  # response.close() would close the database connection, too
        transaction.set_rollback(True)
    client.cookies = cookies
    return response


@dataclass(frozen=True)
class Asker:
    """Somebody who asks: with which roles and in what way, and what of their person or token makes them a stranger."""

    name: str
    client: Any
    roles: frozenset[str] = frozenset()
    is_token: bool = False
    fault: str = ""
    address: str = "127.0.0.1"

    def holds(self, permission: str) -> bool:
        """Whether the table gives them the permission."""
        if self.is_token and permission in NO_TOKEN:
            return False
        return permission == "signed-in" or bool(self.roles & HOLDERS[permission])


NO_TOKEN = {"accounts.administer", "promotions.review", "registry.review_card"}
ADMITTED: set[int] = set()
"""Stands for every answer but a refusal and a failure."""
REFUSALS = {401, 403, 500, 501, 502, 503}


def askers(cast: Cast) -> Iterator[Asker]:
    """Everybody who may ask: strangers, each role by browser and by token, other teams, and all who should not."""
    yield Asker("anonymous", Client())
    for role in sorted(EVERYBODY):
        yield Asker(f"{role} by browser", confirmed(cast.browser(role)), frozenset({role}))
        yield Asker(f"{role} by token", cast.api(role), frozenset({role}), is_token=True)
    yield Asker("other team by browser", confirmed(cast.browser("outsider")), frozenset(EVERYBODY), fault="team")
    yield Asker("other team by token", cast.api("outsider"), frozenset(EVERYBODY), is_token=True, fault="team")
    service = create_service_account(cast.actor("admin"), team=cast.team, name="program", roles=list(Role))
    yield Asker("service account", token_of(cast, service), frozenset(EVERYBODY), is_token=True)
    yield Asker("wrong scope", token_of(cast, service, scopes=[Scope.PREDICT]), is_token=True, fault="scope")
    yield Asker("expired token", token_of(cast, service, expires_at=timezone.now()), is_token=True, fault="token")
    yield Asker("revoked token", token_of(cast, service, revoked_at=timezone.now()), is_token=True, fault="token")
    elsewhere = token_of(cast, service, networks=["10.0.0.0/8"])
    yield Asker("token from elsewhere", elsewhere, is_token=True, fault="token", address="192.0.2.1")
    yield Asker(
        "unknown token", APIClient(headers={"Authorization": "Bearer csn_nonsense"}), is_token=True, fault="token"
    )
    disabled = create_service_account(cast.actor("admin"), team=cast.team, name="gone", roles=list(Role))
    browser, api = Client(), token_of(cast, disabled)
    browser.force_login(disabled.user)
    Membership.objects.filter(pk=disabled.pk).update(is_active=False)
    yield Asker("disabled member by browser", browser, fault="member")
    yield Asker("disabled member by token", api, is_token=True, fault="token")


def confirmed(client: Client) -> Client:
    """A browser whose person has just proved again who they are."""
    session = client.session
    session["confirmed_at"] = time.time()
    session.save()
    return client


def token_of(cast: Cast, member: Membership, scopes: list[Scope] | None = None, **changes: Any) -> APIClient:
    """A REST client with a token of the member, changed like this."""
    token, secret = create_token(
        cast.actor("admin"), membership=member, name="t", scopes=scopes or list(Scope), lifetime_days=1
    )
    ApiToken.objects.filter(pk=token.pk).update(**changes or {"name": "t"})
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def expected(asker: Asker, name: str, method: str, *, names_an_object: bool) -> set[int]:
    """The answers that are right for a cell of the matrix, from the table above and nothing else."""
    permission = ROUTES[name].get(method)
    is_api = name.startswith("api:")
    is_known_here = not asker.fault if is_api or not asker.is_token else False
    if permission == "public":
        return {401} if asker.fault == "token" and is_api else ADMITTED
    if not is_api and (asker.is_token or asker.name == "anonymous"):  # a token is no way into the pages
        return {405} if "public" in ROUTES[name].values() else {302}
    if is_api and (asker.fault == "token" or asker.name == "anonymous"):
        return {401, 405}
    if permission is None:
        return {403, 405}
    if asker.fault in ("scope", "member"):
        return {401, 403} if permission != "signed-in" else {200, 302, 404, 409, 422}
    if not asker.holds(permission):
        return {403}
    if asker.is_token and name.startswith("api:token") and method in ("POST", "DELETE"):
        return {403}  # tokens make and revoke no tokens
    if asker.fault == "team" and names_an_object:
        return {404}
    if name in OWN_ONLY and not asker.roles & {"data_scientist", "admin"}:
        return {404}
    assert is_known_here or asker.fault == "team"
    return {200, 201, 204, 302, 400, 403, 404, 409, 422} if name in PERSONAL else ADMITTED


def test_every_route_is_listed() -> None:
    routes = {name for name, _ in named_routes()}
    assert routes == set(ROUTES)


def test_every_route_method_and_asker(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Each cell is asked once; the message of a failure names every cell that answered otherwise."""
    patterns = dict(named_routes())
    urls = {name: world.url(name) for name in ROUTES}
    named = {name for name in ROUTES if patterns[name].pattern.regex.groupindex or patterns[name].pattern.converters}
    cells, wrong = 0, []
    for asker in askers(world.cast):
        for name, url in urls.items():
            for method in METHODS:
                if asker.is_token and not name.startswith("api:") and asker.name != "service account":
                    continue  # pages do not look at tokens: one that may do everything stands for all
                if (name, method) == ("api:schema", "GET") and asker.name != "anonymous":
                    continue  # describing the whole API takes seconds, and says the same to everybody
                cells += 1
                right = expected(asker, name, method, names_an_object=name in named - BY_NAME)
                status = call(asker.client, method, url, asker.address).status_code
                if status not in right if right else status in REFUSALS:
                    wrong.append(f"{asker.name}: {method} {name} answered {status}, not {right or 'an admission'}")
    with capsys.disabled():
        print(f"\nroute matrix: {cells} cells, {len(wrong)} mismatches")
    assert cells > 8_000
    assert not wrong, "\n".join(wrong)


def test_the_api_client_is_what_the_product_documents() -> None:
    """The schema is served to anybody and names every API route."""
    answer = APIClient().get("/api/v1/schema/?format=json")
    assert answer.status_code == 200
    assert answer.json()["openapi"].startswith("3.1")
    assert len(answer.json()["paths"]) >= sum(name.startswith("api:") for name in ROUTES) - 1
