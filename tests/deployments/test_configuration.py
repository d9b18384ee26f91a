"""An endpoint's settings and guardrails: bounds, what fits which version, and the way into the manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments import configuration, services, trial
from apps.deployments.models import BOUNDS, Endpoint, Guardrail, ServingManifest
from apps.promotions import rollouts
from apps.promotions.models import RolloutState
from apps.registry.models import RegisteredModel
from inference.contracts import EndpointEntry, Signature
from inference.contracts import ServingManifest as Manifest
from inference.guardrails import MAX_RULES
from tests import builders
from tests.conftest import Cast


@pytest.fixture
def model(cast: Cast) -> RegisteredModel:
    return builders.model(cast)


@pytest.fixture
def endpoint(cast: Cast, model: RegisteredModel) -> Endpoint:
    """An endpoint on which a version answers that takes ``x`` [n, 3] and gives ``y`` [n, 1]."""
    endpoint = builders.endpoint(cast, "credit-risk")
    builders.live_request(cast, builders.recorded_version(cast, model), endpoint)
    return endpoint


def _published() -> EndpointEntry:
    row = ServingManifest.objects.order_by("-generation").first()
    assert row is not None
    return Manifest.from_bytes(row.body.encode()).endpoints[0]


def _event(action: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    document: dict[str, Any] = AuditEvent.objects.filter(action=action).order_by("-seq")[0].document
    return document


def _add(cast: Cast, endpoint: Endpoint, **changes: Any) -> Guardrail:
    values = {"name": "bounded", "requires": "0 <= x[0] <= 1", "action": "flag"}
    return configuration.add_guardrail(cast.actor("operator"), endpoint=endpoint, **(values | changes))


def test_settings_reach_the_manifest_and_the_audit_log(cast: Cast, endpoint: Endpoint) -> None:
    changes: dict[str, Any] = {"sticky_header": "X-Customer", "timeout_ms": 250, "cpu_cores": 0.5, "redacted": ["x"]}
    changes["retention_days"] = 30
    configuration.change_settings(cast.actor("operator"), endpoint=endpoint, changes=changes)
    entry = _published()
    assert (entry.sticky_header, entry.sticky_input) == ("x-customer", None)
    assert (entry.limits.timeout_ms, entry.limits.cpu_cores, entry.limits.queue_rows) == (250, 0.5, 4096)
    assert (entry.log.redact, entry.log.strict) == (("x",), False)
    event = _event("endpoint.settings_changed")
    assert event["before"]["timeout_ms"] == 30_000
    assert event["after"]["retention_days"] == 30
    assert "queue_rows" not in event["after"]


def test_the_retention_is_no_business_of_the_inference_service(cast: Cast, endpoint: Endpoint) -> None:
    generation = ServingManifest.objects.latest("generation").generation
    configuration.change_settings(cast.actor("operator"), endpoint=endpoint, changes={"retention_days": 7})
    assert ServingManifest.objects.latest("generation").generation == generation
    assert _event("endpoint.settings_changed")["after"] == {"retention_days": 7}


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_settings_have_bounds_that_the_database_holds_too(cast: Cast, endpoint: Endpoint, name: str) -> None:
    low, high = BOUNDS[name]
    for value in (low - 1, high + 1, float("nan")):
        with pytest.raises(DomainError, match="must be from"):
            configuration.change_settings(cast.actor("operator"), endpoint=endpoint, changes={name: value})
    for value in (low - 1, high + 1):
        with pytest.raises(IntegrityError), transaction.atomic():
            Endpoint.objects.filter(pk=endpoint.pk).update(**{name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sticky_input": "z"}, "not every version"),
        ({"sticky_header": "x-a", "sticky_input": "x"}, "not both"),
        ({"sticky_header": "no header"}, "no name of an http header"),
        ({"redacted": ["typo"]}, "no version that answers has a tensor “typo”"),
        ({"redacted": ["x"] * 101}, "at most 100"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    cast: Cast, endpoint: Endpoint, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DomainError) as refusal:
        configuration.change_settings(cast.actor("operator"), endpoint=endpoint, changes=changes)
    assert words in refusal.value.message.lower()
    with pytest.raises(NotAllowed):
        configuration.change_settings(cast.actor("data_scientist"), endpoint=endpoint, changes={})


def test_a_version_without_the_sticky_input_is_refused(cast: Cast, endpoint: Endpoint, model: RegisteredModel) -> None:
    configuration.change_settings(cast.actor("operator"), endpoint=endpoint, changes={"sticky_input": "x"})
    assert _published().sticky_input == "x"
    with pytest.raises(Conflict, match="no input “x”"):
        builders.submitted_request(cast, builders.recorded_version(cast, model, takes="z"), endpoint)


def test_the_settings_page_and_rest_say_the_same(cast: Cast, endpoint: Endpoint) -> None:
    browser, address = cast.browser("operator"), f"/endpoints/{endpoint.name}/settings/"
    page = browser.get(address)
    form = {name: field for name, field in page.context["form"].initial.items() if field not in (None, False)}
    assert browser.post(address, form | {"redacted": "x\ny\n", "is_log_strict": "on"}).status_code == 302
    rest = f"/api/v1/endpoints/{endpoint.name}/settings/"
    settings = cast.api("analyst").get(rest).json()
    assert (settings["redacted"], settings["is_log_strict"], settings["memory_mb"]) == (["x", "y"], True, None)
    refused = browser.post(address, form | {"timeout_ms": 1})
    assert refused.status_code == 422
    assert "must be from 10 to 600,000" in refused.content.decode()
    api = cast.api("operator")
    assert api.patch(rest, {"timeout_ms": 1}, format="json").json()["errors"][0]["pointer"] == "/timeout_ms"
    assert api.patch(rest, {"timeout_ms": 100, "redacted": []}, format="json").json()["timeout_ms"] == 100
    assert "disabled" in cast.browser("analyst").get(address).content.decode()


def test_a_guardrail_reaches_the_manifest_and_the_audit_log(cast: Cast, endpoint: Endpoint) -> None:
    rule = _add(cast, endpoint, action="fallback", fallback={"y": 0.5})
    (published,) = _published().guardrails
    assert (published.name, published.requires, published.action) == ("bounded", "0 <= x[0] <= 1", "fallback")
    assert published.fallback == {"y": 0.5}
    operator = cast.actor("operator")
    changed = {"name": "bounded", "requires": "y[0] < 9", "action": "reject"}
    configuration.change_guardrail(operator, guardrail=rule, **changed)
    assert _published().guardrails[0].requires == "y[0] < 9"
    assert _event("guardrail.changed")["before"]["fallback"] == {"y": 0.5}
    configuration.remove_guardrail(operator, guardrail=rule)
    assert _published().guardrails == ()
    with pytest.raises(Conflict, match="removed this guardrail meanwhile"):
        configuration.change_guardrail(operator, guardrail=rule, **changed)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"requires": "age < 3"}, "requires"),
        ({"requires": "__import__('os')"}, "requires"),
        ({"action": "fallback"}, "fallback"),
        ({"action": "fallback", "fallback": {"z": 1}}, "fallback"),
        ({"action": "reject", "fallback": {"y": 1}}, "fallback"),
        ({"action": "fallback", "fallback": {"y": [0.0] * 20_000}}, "fallback"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(
    cast: Cast, endpoint: Endpoint, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(DomainError) as refusal:
        _add(cast, endpoint, **changes)
    assert refusal.value.field == field
    assert not Guardrail.objects.exists()


def test_a_rule_fits_every_version_that_answers(cast: Cast, endpoint: Endpoint, model: RegisteredModel) -> None:
    builders.live_request(cast, builders.recorded_version(cast, model, width=9), endpoint, initial_weight=5)
    with pytest.raises(DomainError, match=rf"{model.name} v1: .* 3 elements"):
        _add(cast, endpoint, requires="x[7] > 0")


def test_rules_are_few_and_their_names_unique(cast: Cast, endpoint: Endpoint) -> None:
    _add(cast, endpoint)
    with pytest.raises(Conflict, match="already"):
        _add(cast, endpoint)
    others = [Guardrail(endpoint=endpoint, name=f"r{n}", requires="x[0] > 0") for n in range(MAX_RULES - 1)]
    Guardrail.objects.bulk_create(others)
    with pytest.raises(Conflict, match="at most 50"):
        _add(cast, endpoint, name="one-more")


def test_a_version_that_does_not_fit_the_rules_never_answers(
    cast: Cast, endpoint: Endpoint, model: RegisteredModel
) -> None:
    """Under a rule that it does not fit it would refuse every request."""
    other = builders.recorded_version(cast, model, takes="z")
    before = builders.submitted_request(cast, other, endpoint)
    builders.sign(cast, before)
    _add(cast, endpoint)
    rollouts.apply_promotions()
    before.refresh_from_db()
    assert (before.rollout, before.deployment_id) == (RolloutState.FAILED, None)
    assert "does not fit the guardrail “bounded”" in before.rollout_message
    with pytest.raises(Conflict, match="does not fit the guardrail"):
        builders.submitted_request(cast, other, endpoint)


def test_no_rollback_to_a_version_that_the_rules_do_not_fit(
    cast: Cast, endpoint: Endpoint, model: RegisteredModel
) -> None:
    builders.live_request(cast, builders.recorded_version(cast, model, takes="z"), endpoint)
    _add(cast, endpoint, requires="z[0] > 0")
    with pytest.raises(Conflict, match="Change the guardrail first"):
        services.roll_back(cast.actor("operator"), endpoint=endpoint)


def test_a_rule_may_come_before_the_first_version(cast: Cast, model: RegisteredModel) -> None:
    empty = builders.endpoint(cast)
    _add(cast, empty, requires="age < 3")
    with pytest.raises(Conflict, match="has no “age”"):
        builders.submitted_request(cast, builders.recorded_version(cast, model), empty)


def test_guardrails_on_the_pages(cast: Cast, endpoint: Endpoint) -> None:
    browser, address = cast.browser("operator"), f"/endpoints/{endpoint.name}/guardrails/"
    assert "No guardrails" in browser.get(address).content.decode()
    form = {"name": "bounded", "requires": "x[0] < 1", "action": "flag", "sample": '{"x": [0, 0, 0]}'}
    tried = browser.post(f"{address}new/", form | {"try": "1"}).content.decode()
    assert "The rule holds for this row" in tried
    tried = browser.post(f"{address}new/", form | {"try": "1", "sample": '{"x": [2, 0, 0]}'}).content.decode()
    assert "does not hold for this row" in tried
    assert not Guardrail.objects.exists()
    refused = browser.post(f"{address}new/", form | {"requires": "age < 1"})
    assert refused.status_code == 422
    assert "has no “age”" in refused.content.decode()
    assert browser.post(f"{address}new/", form).status_code == 302
    rule = Guardrail.objects.get()
    assert "x[0] &lt; 1" in browser.get(address).content.decode()
    assert browser.post(f"{address}{rule.pk}/", form | {"action": "reject"}).status_code == 302
    assert Guardrail.objects.get().action == "reject"
    assert browser.post(f"{address}{rule.pk}/remove/").status_code == 302
    assert not Guardrail.objects.exists()


def test_guardrails_over_rest(cast: Cast, endpoint: Endpoint) -> None:
    api, address = cast.api("operator"), f"/api/v1/endpoints/{endpoint.name}/guardrails/"
    rule = {"name": "bounded", "requires": "x[0] < 1", "action": "fallback", "fallback": {"y": 0.0}}
    assert api.post(address, rule, format="json").status_code == 201
    assert api.get(address).json() == [rule]
    refused = api.post(address, rule | {"name": "b", "requires": "x[9] < 1"}, format="json")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/requires")
    changed = api.put(f"{address}bounded/", {"name": "bounded", "requires": "x[1] < 1"}, format="json")
    assert changed.json() == {"name": "bounded", "requires": "x[1] < 1", "action": "flag", "fallback": None}
    assert api.delete(f"{address}bounded/").status_code == 204
    assert api.get(address).json() == []


SIGNATURE = Signature.from_dict(
    {
        "inputs": [
            {"name": "age", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "country", "datatype": "BYTES", "shape": [-1]},
            {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        ],
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    }
)


@pytest.mark.parametrize(
    ("requires", "row", "expected"),
    [
        ("0 <= age <= 120", {"age": 41}, True),
        ("0 <= age <= 120", {"age": 141}, False),
        ('country in ("DE", "FR")', {"country": "FR"}, True),
        ("input.x < 3", {"input.x": [1, 2, 3]}, False),
        ("is_missing(input.x[1])", {"input.x": [1, None, 3]}, True),
        ("output.x[0] > input.x[2]", {"input.x": [1, 2, 3], "output.x": [4, 0]}, True),
    ],
)
def test_a_rule_is_tried_on_a_row(requires: str, row: dict[str, Any], expected: bool) -> None:
    assert trial.Trial(requires, SIGNATURE).holds(row) is expected


@pytest.mark.parametrize(
    ("requires", "row", "words"),
    [
        ("age >", {"age": 1}, "cannot be read"),
        ("age > 3", {}, "reads the input “age”"),
        ("age > 3", {"age": "old"}, "not INT64"),
        ("age > 3", {"age": [1, 2]}, "has the shape"),
    ],
)
def test_a_row_that_does_not_fit_is_named(requires: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        trial.Trial(requires, SIGNATURE).holds(row)


def test_the_example_row_fits() -> None:
    row = trial.example_row(SIGNATURE)
    assert row == {"age": 0, "country": "", "input.x": [0, 0, 0], "output.x": [0, 0]}
    assert trial.Trial("age == 0 and all(input.x == 0) and output.x == 0", SIGNATURE).holds(json.loads(json.dumps(row)))


def test_a_rule_that_no_row_can_be_checked_by_is_refused() -> None:
    trial.require_computable("input.x < age", SIGNATURE)
    with pytest.raises(DomainError, match="different sizes"):
        trial.require_computable("input.x == 0 and output.x == 0", SIGNATURE)
