"""Changes to an endpoint's settings and guardrails."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from django.db import transaction

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError
from apps.deployments import trial
from apps.deployments.manifest import guardrail_rule, publish_manifest
from apps.deployments.models import BOUNDS, MAX_REDACTED, Endpoint, Guardrail, GuardrailAction
from apps.deployments.traffic import Split
from inference.contracts import Signature
from inference.guardrails import MAX_RULES, RuleRejected, check_rule

SETTINGS: Final = ("sticky_header", "sticky_input", *BOUNDS, "is_log_strict", "redacted")
MAX_FALLBACK_CHARACTERS: Final = 20_000
_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]*")


@transaction.atomic
def change_settings(actor: Actor, *, endpoint: Endpoint, changes: Mapping[str, Any]) -> Endpoint:
    """Change some of ``SETTINGS``. Raises ``DomainError`` naming the first one that is not acceptable."""
    actor.require("deployments.operate")
    endpoint = Endpoint.objects.select_for_update(of=("self",)).select_related("team").get(pk=endpoint.pk)
    before = {name: getattr(endpoint, name) for name in changes}
    for name, value in changes.items():
        setattr(endpoint, name, value)
    endpoint.sticky_header = endpoint.sticky_header.lower()
    _check_settings(endpoint)
    changed = [name for name in changes if getattr(endpoint, name) != before[name]]
    if changed:
        endpoint.save(update_fields=changed)
        after = {name: getattr(endpoint, name) for name in changed}
        _record(actor, "endpoint.settings_changed", endpoint, {name: before[name] for name in changed}, after)
    return endpoint


def _check_settings(endpoint: Endpoint) -> None:
    for name, (low, high) in BOUNDS.items():
        value = getattr(endpoint, name)
        if value is not None and not low <= value <= high:
            raise DomainError(f"This must be from {low:,} to {high:,}.", field=name)
    if endpoint.sticky_header and endpoint.sticky_input:
        raise DomainError("The sticky key is a header or an input, not both.", field="sticky_input")
    if not _HEADER_NAME.fullmatch(endpoint.sticky_header):
        raise DomainError("This is no name of an HTTP header.", field="sticky_header")
    _check_tensor_names(endpoint)


def _check_tensor_names(endpoint: Endpoint) -> None:
    """A name that no version knows is a slip, and one in the redaction would go unnoticed until it is too late."""
    signatures = [Signature.from_dict(row.model_version.signature) for row in Split.of(endpoint).answering]
    if not signatures:
        return
    for signature in signatures:
        if endpoint.sticky_input and all(spec.name != endpoint.sticky_input for spec in signature.inputs):
            raise DomainError("Not every version that answers has an input of this name.", field="sticky_input")
    if len(endpoint.redacted) > MAX_REDACTED:
        raise DomainError(f"At most {MAX_REDACTED} tensors can be redacted.", field="redacted")
    known = {spec.name for signature in signatures for spec in (*signature.inputs, *signature.outputs)}
    for name in endpoint.redacted:
        if name not in known:
            listed = ", ".join(sorted(known)[:12])
            raise DomainError(
                f"No version that answers has a tensor “{name[:80]}”; there are {listed}.", field="redacted"
            )


@transaction.atomic
def add_guardrail(
    actor: Actor, *, endpoint: Endpoint, name: str, requires: str, action: str, fallback: Any = None
) -> Guardrail:
    """A new rule. Every version that answers must fit it; what answers later is checked before it does."""
    actor.require("deployments.operate")
    endpoint = Endpoint.objects.select_for_update(of=("self",)).select_related("team").get(pk=endpoint.pk)
    if endpoint.guardrails.count() >= MAX_RULES:
        raise Conflict(f"An endpoint has at most {MAX_RULES} guardrails. Remove one first.")
    rule = Guardrail(endpoint=endpoint, name=name, requires=requires, action=action, fallback=fallback)
    _check_guardrail(rule)
    rule.save()
    _record(actor, "guardrail.added", endpoint, None, _as_document(rule))
    return rule


@transaction.atomic
def change_guardrail(
    actor: Actor, *, guardrail: Guardrail, name: str, requires: str, action: str, fallback: Any = None
) -> Guardrail:
    """Say something else in a rule."""
    actor.require("deployments.operate")
    rule = _locked(guardrail)
    before = _as_document(rule)
    rule.name, rule.requires, rule.action, rule.fallback = name, requires, action, fallback
    _check_guardrail(rule)
    if _as_document(rule) != before:
        rule.save()
        _record(actor, "guardrail.changed", rule.endpoint, before, _as_document(rule))
    return rule


@transaction.atomic
def remove_guardrail(actor: Actor, *, guardrail: Guardrail) -> None:
    """Check a rule no more."""
    actor.require("deployments.operate")
    rule = _locked(guardrail)
    before = _as_document(rule)
    rule.delete()
    _record(actor, "guardrail.removed", rule.endpoint, before, None)


def _locked(guardrail: Guardrail) -> Guardrail:
    """The rule, with its endpoint locked: what is on it changes one at a time."""
    endpoint = Endpoint.objects.select_for_update(of=("self",)).select_related("team").get(pk=guardrail.endpoint_id)
    rule: Guardrail | None = endpoint.guardrails.filter(pk=guardrail.pk).first()
    if rule is None:
        raise Conflict("Somebody removed this guardrail meanwhile.")
    rule.endpoint = endpoint
    return rule


def _check_guardrail(rule: Guardrail) -> None:
    """Raise ``DomainError`` if a rule does not fit what answers now. Without anything, the first version is checked."""
    if rule.endpoint.guardrails.exclude(pk=rule.pk).filter(name=rule.name).exists():
        raise Conflict(f"There is a guardrail “{rule.name}” already.", field="name")
    if (rule.action == GuardrailAction.FALLBACK) != (rule.fallback is not None):
        raise DomainError("The action “fallback” needs the answer to give, and no other action does.", field="fallback")
    if len(json.dumps(rule.fallback)) > MAX_FALLBACK_CHARACTERS:
        raise DomainError(f"The fallback has at most {MAX_FALLBACK_CHARACTERS:,} characters.", field="fallback")
    for row in Split.of(rule.endpoint).answering:
        signature = Signature.from_dict(row.model_version.signature)
        expression = Guardrail(name=rule.name, requires=rule.requires, action=GuardrailAction.FLAG)
        for field, checked in (("requires", expression), ("fallback", rule)):
            try:
                check_rule(guardrail_rule(checked), signature)
                trial.require_computable(rule.requires, signature)
            except (RuleRejected, DomainError) as error:
                raise DomainError(f"{row.model_version}: {error}", field=field) from error


def _as_document(rule: Guardrail) -> dict[str, Any]:
    return {"name": rule.name, "requires": rule.requires, "action": rule.action, "fallback": rule.fallback}


def _record(
    actor: Actor, action: str, endpoint: Endpoint, before: dict[str, Any] | None, after: dict[str, Any] | None
) -> None:
    """Tell the replicas, and write the event."""
    manifest = publish_manifest()
    generation = {"generation": manifest.generation} if manifest else {}
    record(actor, action, endpoint, team=endpoint.team, before=before, after=(after or {}) | generation)
