"""Every route × method × actor: who is let in, who is refused, and how. A route that is not listed here fails."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from rest_framework.test import APIClient

from apps.accounts.models import ApiToken
from apps.accounts.roles import Role, Scope
from apps.accounts.services import invite_member
from apps.audit.actor import Actor
from apps.deployments.configuration import add_guardrail
from apps.deployments.services import add_shadow
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
    "promotions.set_policy": {"compliance_officer"},
    "deployments.operate": {"operator"},
    "deployments.predict": EVERYBODY - {"admin"},
    "policies.assess": {"data_scientist", "compliance_officer"},
    "policies.report_check": set(),
    "audit.read": {"compliance_officer"},
    "accounts.administer": {"admin"},
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
    "monitoring:rows-keep": {"POST": "registry.upload"},
    "policies:policy-list": {"GET": "team.view"},
    "policies:policy-open": {"GET": "team.view"},
    "policies:policy-detail": {"GET": "team.view"},
    "policies:policy-propose": {"GET": "promotions.set_policy", "POST": "promotions.set_policy"},
    "policies:version-detail": {"GET": "team.view"},
    "policies:version-confirm": {"POST": "promotions.set_policy"},
    "policies:version-reject": {"POST": "promotions.set_policy"},
    "policies:risk-assess": {"GET": "team.view", "POST": "policies.assess"},
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
    "api:promotion-list": {"GET": "team.view", "POST": "promotions.request"},
    "api:promotion-detail": {"GET": "team.view"},
    "api:promotion-cancel": {"POST": "promotions.request"},
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
    _, secret = invite_member(cast.actor("admin"), team=cast.team, email="new@example.com", roles=[Role.ANALYST])
    cast.token("data_scientist")
    token = ApiToken.objects.filter(membership=cast.data_scientist).first()
    assert token is not None
    card = builders.complete_card(cast, version)
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
            "session-end.pk": 0,
            "factor-remove.pk": 0,
            "member-edit.pk": cast.analyst.pk,
            "member-detail.pk": cast.analyst.pk,
            "run-detail.pk": run.pk,
            "evaluation-detail.pk": run.pk,
            "load-test-detail.pk": load_test.pk,
            "environment": proposal.policy.environment,
            "tier": proposal.policy.tier,
            "policies.number": proposal.number,
            "check-revoke.pk": check_key.pk,
            "group-edit.pk": group.pk,
            "alias-unprotect.pk": alias.pk,
            "risk-assess.name": version.model.name,
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


def call(client: Client, method: str, url: str) -> Any:
    """One request whose effects are undone, in the database and in the client's cookies."""
    cookies = copy.deepcopy(client.cookies)
    with transaction.atomic():
        response = getattr(client, method.lower())(url)
        if file := getattr(response, "file_to_stream", None):
            file.close()  # response.close() would close the database connection, too
        transaction.set_rollback(True)
    client.cookies = cookies
    return response


def mismatches(world: World, client: Client, expected: Callable[[str, str, str | None], set[int] | None]) -> str:
    """A line for each route and method whose answer is not among the expected codes (None: anything but a refusal)."""
    wrong = []
    for name, methods in ROUTES.items():
        url = world.url(name)
        for method in METHODS:
            codes = expected(name, method, methods.get(method))
            status = call(client, method, url).status_code
            is_right = status in codes if codes is not None else status not in (401, 403, 500, 501, 502, 503)
            if not is_right:
                wrong.append(f"{method} {name} answered {status}, not {codes or 'an admission'}")
    return "\n".join(wrong)


def test_every_route_is_listed() -> None:
    routes = {name for name, _ in named_routes()}
    assert routes == set(ROUTES)


def _is_api(name: str) -> bool:
    return name.startswith("api:")


def test_strangers(world: World) -> None:
    def expected(name: str, method: str, permission: str | None) -> set[int] | None:
        if permission == "public":
            return {200, 302, 400, 422}
        if "public" in ROUTES[name].values():
            return {405}
        return {401, 405} if _is_api(name) else {302}

    assert mismatches(world, Client(), expected) == ""


@pytest.mark.parametrize("role", sorted(EVERYBODY))
@pytest.mark.parametrize("kind", ["browser", "token"])
def test_members(world: World, role: str, kind: str) -> None:
    if kind == "browser":
        client: Any = world.cast.browser(role)
        scopes = None
    else:
        client = world.cast.api(role)
        scopes = {"accounts.administer", "promotions.review", "registry.review_card"}

    def expected(name: str, method: str, permission: str | None) -> set[int] | None:
        if kind == "token" and not _is_api(name):
            # A token is no way into the pages.
            return {200, 302, 404, 405, 422}
        if permission is None:
            return {405, 403}
        if permission == "public":
            return None
        if role not in HOLDERS[permission] or (scopes and permission in scopes):
            return {403}
        if kind == "token" and name.startswith("api:token") and method in ("POST", "DELETE"):
            return {403, 404, 422}  # tokens make and revoke no tokens
        if name in OWN_ONLY and role not in ("data_scientist", "admin"):
            return {404}
        return {200, 201, 204, 302, 400, 403, 404, 409, 422} if name in PERSONAL else None

    assert mismatches(world, client, expected) == ""


def test_another_teams_objects_are_not_found(world: World) -> None:
    client = world.cast.browser("outsider")
    session = client.session
    session["confirmed_at"] = time.time()
    session.save()
    named = {name for name, pattern in named_routes() if pattern.pattern.regex.groupindex or pattern.pattern.converters}

    def expected(name: str, method: str, permission: str | None) -> set[int] | None:
        if permission is None:
            return {405, 403}
        if permission == "public" or name not in named - BY_NAME:
            return None
        return {404} if HOLDERS[permission] else {403}

    assert mismatches(world, client, expected) == ""


def test_a_disabled_member_is_refused_everywhere(world: World) -> None:
    clients = (world.cast.browser("operator"), world.cast.api("operator"))
    membership = world.cast.operator
    membership.is_active = False
    membership.save()

    def expected(name: str, method: str, permission: str | None) -> set[int] | None:
        if permission in (None, "public", "signed-in"):
            return {200, 302, 400, 401, 403, 404, 405, 422}
        return {403, 401} if _is_api(name) else {403, 302}

    for client in clients:
        assert mismatches(world, client, expected) == ""


@pytest.mark.parametrize("fault", ["expired", "revoked", "unknown"])
def test_a_token_that_is_not_valid_is_refused(world: World, fault: str) -> None:
    client = world.cast.api("operator")
    now = timezone.now()
    if fault == "expired":
        ApiToken.objects.update(expires_at=now - timedelta(seconds=1))
    elif fault == "revoked":
        ApiToken.objects.update(revoked_at=now)
    else:
        client.credentials(HTTP_AUTHORIZATION="Bearer csn_nonsense")

    def expected(name: str, method: str, permission: str | None) -> set[int] | None:
        return {401} if _is_api(name) else {200, 302, 400, 405, 422}

    assert mismatches(world, client, expected) == ""


def test_a_token_of_the_wrong_scope_is_refused(world: World) -> None:
    client = world.cast.api("operator", Scope.PREDICT)

    def expected(name: str, method: str, permission: str | None) -> set[int] | None:
        if not _is_api(name) or permission in (None, "public"):
            return {200, 302, 400, 403, 405, 422}
        return {403}

    assert mismatches(world, client, expected) == ""


def test_the_api_client_is_what_the_product_documents() -> None:
    """The schema is served to anybody and names every API route."""
    answer = APIClient().get("/api/v1/schema/?format=json")
    assert answer.status_code == 200
    assert answer.json()["openapi"].startswith("3.1")
    assert len(answer.json()["paths"]) >= sum(_is_api(name) for name in ROUTES) - 1
