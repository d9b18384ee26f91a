"""The one table of roles and permissions, and of token scopes."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models


class Role(models.TextChoices):
    """What a member does in a team; a member may hold several."""

    ANALYST = "analyst", "Analyst"
    DATA_SCIENTIST = "data_scientist", "Data scientist"
    OPERATOR = "operator", "Operator"
    COMPLIANCE_OFFICER = "compliance_officer", "Compliance officer"
    ADMIN = "admin", "Admin"


ROLE_PERMISSIONS: dict[str, frozenset[str]] = {
    Role.ANALYST: frozenset(
        {"team.view", "evaluation.run", "promotions.comment", "deployments.predict", "monitoring.define"}
    ),
    Role.DATA_SCIENTIST: frozenset(
        {
            "team.view",
            "registry.upload",
            "evaluation.run",
            "promotions.request",
            "deployments.predict",
            "policies.assess",
            "promotions.comment",
        }
    ),
    Role.OPERATOR: frozenset(
        {
            "team.view",
            "evaluation.run",
            "promotions.request",
            "promotions.comment",
            "deployments.operate",
            "deployments.predict",
            "monitoring.define",
        }
    ),
    Role.COMPLIANCE_OFFICER: frozenset(
        {
            "team.view",
            "registry.review_card",
            "promotions.review",
            "promotions.set_policy",
            "policies.assess",
            "promotions.comment",
            "audit.read",
            "deployments.predict",
        }
    ),
    # Admins administer people, and hold no other power by it.
    Role.ADMIN: frozenset({"team.view", "accounts.administer", "accounts.provision"}),
}


class Scope(models.TextChoices):
    """What a token may do at most; its owner's roles bound it further."""

    READ = "read", "Read everything the owner sees"
    PREDICT = "predict", "Call inference endpoints"
    BUILD = "build", "Upload models and datasets, run evaluations"
    PROMOTE = "promote", "Request promotions"
    OPERATE = "operate", "Manage endpoints and roll back"
    AUDIT = "audit", "Read the audit log"
    PROVISION = "provision", "List members and deactivate them (SCIM)"


SCOPE_PERMISSIONS: dict[str, frozenset[str]] = {
    # "promotions.review", "registry.review_card" and "accounts.administer" are in no scope: a token never approves, and
    # never makes another.
    Scope.READ: frozenset({"team.view"}),
    Scope.PREDICT: frozenset({"deployments.predict"}),
    Scope.BUILD: frozenset({"registry.upload", "evaluation.run", "policies.assess"}),
    Scope.PROMOTE: frozenset({"promotions.request", "promotions.comment"}),
    Scope.OPERATE: frozenset({"deployments.operate"}),
    Scope.AUDIT: frozenset({"audit.read"}),
    Scope.PROVISION: frozenset({"accounts.provision"}),
}


def permissions_of_roles(roles: Iterable[str]) -> frozenset[str]:
    """The union of what the roles permit."""
    return frozenset().union(*(ROLE_PERMISSIONS.get(role, frozenset()) for role in roles))


def permissions_of_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The union of what the scopes permit."""
    return frozenset().union(*(SCOPE_PERMISSIONS.get(scope, frozenset()) for scope in scopes))
