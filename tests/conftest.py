"""One cast for all tests, on a real PostgreSQL of the suite's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from apps.accounts import services as accounts
from apps.accounts.models import Membership, Team
from apps.accounts.roles import Role, Scope
from apps.audit.actor import Actor
from console.postgres import EmbeddedPostgres

PASSWORD = "correct-horse-battery"
_numbers = count(1)


@pytest.fixture(autouse=True, scope="session")
def _plain_static_files() -> None:
    """No collected files in tests: names without digests."""
    settings.STORAGES = settings.STORAGES | {
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    }
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _own_anchors(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A log that is emptied for the next test would be a log that lost what was anchored."""
    settings.AUDIT_ANCHOR_DIR = tmp_path_factory.getbasetemp() / f"anchors-{next(_numbers)}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[None]:
    """The suite's server; an external one if DATABASE_URL names it."""
    if os.environ.get("DATABASE_URL"):
        yield
        return
    server = EmbeddedPostgres(settings.INSTALLATION, durable=False)
    server.start()
    try:
        yield
    finally:
        server.stop()


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres: None) -> None:
    """Start the server before the test database is created."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Grant the application's role as ``up`` does; lift the one trigger that keeps Django from emptying tables."""
    with django_db_blocker.unblock():
        call_command("grant_app_role")
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER audit_refuse_truncate")


@dataclass(frozen=True)
class Cast:
    """A team with one member of each role, and a stranger who holds every role in another team."""

    team: Team
    analyst: Membership
    data_scientist: Membership
    operator: Membership
    compliance_officer: Membership
    admin: Membership
    other_team: Team
    outsider: Membership

    def actor(self, role: str) -> Actor:
        """The member as the first argument of a service."""
        membership: Membership = getattr(self, role)
        return Actor(membership.user_id, membership.user.name, permissions=membership.permissions)

    def browser(self, role: str) -> Client:
        """A signed-in browser of Django's test client."""
        client = Client()
        client.force_login(getattr(self, role).user)
        return client

    def token(self, role: str, *scopes: Scope) -> str:
        """An API token of the member with these scopes, all of them if none are given."""
        membership: Membership = getattr(self, role)
        _, secret = accounts.create_token(
            self.actor(role), membership=membership, name="test", scopes=scopes or list(Scope), lifetime_days=1
        )
        return secret

    def api(self, role: str, *scopes: Scope) -> APIClient:
        """A REST client that sends such a token."""
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.token(role, *scopes)}")
        return client


@pytest.fixture
def cast(db: None) -> Cast:
    """The people in every test."""
    system = Actor.system("test")
    team = accounts.create_team(system, slug="risk", name="Risk")
    other = accounts.create_team(system, slug="marketing", name="Marketing")

    def member(name: str, team: Team, *roles: Role) -> Membership:
        email = f"{name.split()[0].lower()}@example.com"
        return accounts.create_member(system, team=team, email=email, name=name, password=PASSWORD, roles=roles)

    return Cast(
        team=team,
        analyst=member("Ana Lyst", team, Role.ANALYST),
        data_scientist=member("Mira Sato", team, Role.DATA_SCIENTIST),
        operator=member("Omar Reyes", team, Role.OPERATOR),
        compliance_officer=member("Cora Blom", team, Role.COMPLIANCE_OFFICER),
        admin=member("Ada Minh", team, Role.ADMIN),
        other_team=other,
        outsider=member("Otto Sider", other, *Role),
    )
